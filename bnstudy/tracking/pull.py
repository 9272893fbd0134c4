"""Download of a W&B project's runs as studies."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from bnstudy.errors import UserError, first_line
from bnstudy.files import replacing
from bnstudy.runs.description import RunDescription
from bnstudy.runs.long_table import LongTable
from bnstudy.runs.paths import RECORD, TABLE, CellPaths
from bnstudy.terminal import console
from bnstudy.tracking.sync import connect
from bnstudy.tracking.wandb_run import RUN_ID

if TYPE_CHECKING:
    from wandb.apis.public import Run as ServedRun

FILES = (TABLE, RECORD)  # the record last: a cell counts as present once it has one

# Outcomes of runs that make the command fail.
UNSAFE_NAME, NOT_DOWNLOADED = "without a valid folder name", "not downloaded"


def pull(project: str, entity: str | None, root: Path) -> None:
    """Download the records of a W&B project's runs and write them as studies.

    Each run is written to the folder of its cell. Cells that already exist on this disk are
    skipped. If W&B has several runs of a cell, the newest attempt is downloaded.

    Args:
        project: Name of the W&B project.
        entity: W&B user or team; None for the default one.
        root: Folder to write the studies to.

    Raises:
        UserError: The project does not exist or has no runs of bnstudy, a run's name or group is
            not a valid folder name, or a download failed.
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
        if not (_is_folder_name(run.group) and _is_folder_name(run.name)):
            console.print(
                f"{run.id}: {run.group!r}/{run.name!r} is not a valid folder name", style="yellow"
            )
            outcomes[UNSAFE_NAME] += 1
            continue
        cell = root / run.group / run.name
        if cell in pulled:
            outcomes["of earlier attempts"] += 1
        elif CellPaths(cell).record.exists():
            outcomes["here already"] += 1
        else:
            try:
                outcome = _pull_run(run, cell)
            except UserError:
                raise  # this disk cannot be written
            except Exception as error:  # wandb and the network raise errors of many classes
                outcome = NOT_DOWNLOADED
                console.print(f"{cell}: {first_line(error)}", style="yellow")
            console.print(f"{cell}: {outcome}")
            outcomes[outcome] += 1
        pulled.add(cell)
    if not outcomes:
        raise UserError(f"{path} has no runs of bnstudy")
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    if outcomes[UNSAFE_NAME] or outcomes[NOT_DOWNLOADED]:
        advice = "The same command downloads what is missing"
        if outcomes[UNSAFE_NAME]:
            advice = "Rename the runs without a valid folder name in W&B, then repeat the command"
        raise UserError(f"{path}: {counts}\n{advice}")
    console.print(f"{path}: {counts}")


def _pull_run(run: "ServedRun", cell: Path) -> str:
    """Download a run's record to a folder.

    Returns:
        `pulled`, or the reason why nothing was written.
    """
    with tempfile.TemporaryDirectory() as temporary:
        for name in FILES:
            path = f"record/{name}"
            for file in run.files(names=[path]):
                if file.name == path:  # a path of the server's choice could lead anywhere
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
        if not description.matches_identity:
            return "its record is incomplete"
        if paths.table.exists() and (damage := LongTable(paths).find_damage()):
            return f"its table is damaged: {damage}"
        for name in FILES:
            source = paths.folder / name
            if source.exists():
                with replacing(cell / name) as target:
                    target.write_bytes(source.read_bytes())
    return "pulled"


def _is_folder_name(name: str | None) -> bool:
    """Return whether a name received from a server is safe to use as a folder's name."""
    return bool(name) and Path(str(name)).name == name and not str(name).startswith(".")
