"""Download of a W&B project's runs as studies."""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from bnstudy.config.identity import identity
from bnstudy.errors import UserError, first_line
from bnstudy.files import replacing
from bnstudy.redaction import REMOVED
from bnstudy.runs.description import RunDescription
from bnstudy.runs.long_table import LongTable
from bnstudy.runs.paths import RECORD, TABLE, CellPaths
from bnstudy.terminal import console
from bnstudy.tracking.sync import connect
from bnstudy.tracking.wandb_run import RUN_ID

if TYPE_CHECKING:
    from wandb.apis.public import Run as ServedRun

FILES = (TABLE, RECORD)  # the record last: a cell counts as present once it has one


def pull(project: str, entity: str | None, root: Path) -> None:
    """Download the records of a W&B project's runs and write them as studies.

    Each run is written to the folder of its cell. Cells that already exist on this disk are
    skipped. If W&B has several runs of a cell, the newest attempt is downloaded.

    Args:
        project: Name of the W&B project.
        entity: W&B user or team; None for the default one.
        root: Folder to write the studies to.

    Raises:
        UserError: The project does not exist or has no runs of bnstudy.
    """
    api, entity = connect(entity)
    path = f"{entity}/{project}"
    try:
        runs = [run for run in api.runs(path, lazy=True) if RUN_ID.fullmatch(run.id)]
    except Exception as error:
        reason = first_line(error)
        raise UserError(f"{path}: W&B cannot list its runs ({reason})") from error
    runs.sort(key=lambda run: int(run.id.rpartition("-")[2]), reverse=True)
    outcomes: Counter[str] = Counter()
    pulled: set[Path] = set()
    for run in runs:
        cell = root / _checked(run.group) / _checked(run.name)
        if cell in pulled:
            outcomes["of earlier attempts"] += 1
        elif CellPaths(cell).record.exists():
            outcomes["here already"] += 1
        else:
            outcome = _pull_run(run, cell)
            console.print(f"{cell}: {outcome}")
            outcomes[outcome] += 1
        pulled.add(cell)
    if not outcomes:
        raise UserError(f"{path} has no runs of bnstudy")
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    console.print(f"{path}: {counts}")


def _pull_run(run: "ServedRun", cell: Path) -> str:
    """Download a run's record to a folder.

    Returns:
        `pulled`, or the reason why nothing was written.
    """
    with tempfile.TemporaryDirectory() as temporary:
        for name in FILES:
            for file in run.files(names=[f"record/{name}"]):
                file.download(root=temporary, replace=True).close()
        paths = CellPaths(Path(temporary) / "record")
        if not paths.record.exists():
            return "without a record: still running, or killed (bnstudy.dashboard sync adds it)"
        try:
            description = RunDescription.from_json(paths.record.read_bytes(), cell / RECORD)
        except UserError:
            return "its record is from a later version of bnstudy"
        except ValueError:
            return "its record is incomplete"
        # The identity is that of the configuration before credentials were removed from it.
        is_whole = identity(description.config) == description.identity
        if not is_whole and REMOVED not in json.dumps(description.config):
            return "its record is incomplete"
        if paths.table.exists() and (damage := LongTable(paths).damage()):
            return f"its table is damaged: {damage}"
        for name in FILES:
            source = paths.folder / name
            if source.exists():
                with replacing(cell / name) as target:
                    target.write_bytes(source.read_bytes())
    return "pulled"


def _checked(name: str | None) -> str:
    """Return a folder name received from a server, after checking that it is safe to use.

    Raises:
        UserError: The name could refer to another folder.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise UserError(f"W&B has a group or run named {name!r}, which is not a folder name")
    return name
