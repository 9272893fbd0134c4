"""Upload of the parts of a study's runs that W&B's server does not have."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bnstudy.adapters.wandb_internals import QUIET_SETTINGS
from bnstudy.errors import UserError, first_line
from bnstudy.runs.lease import CellInUse
from bnstudy.runs.long_table import Row
from bnstudy.runs.parts import FINISHED, Status
from bnstudy.runs.paths import WANDB, CellPaths, find_cells
from bnstudy.runs.record import Record
from bnstudy.terminal import console
from bnstudy.terms import format_count
from bnstudy.tracking.transaction_log import TransactionLog, read_log
from bnstudy.tracking.wandb_run import (
    finish_run,
    is_logged_in,
    log_final_data,
    replay_rows,
    server_url,
    set_earlier_aside,
    start_run,
    table_name,
    wandb_files,
)

if TYPE_CHECKING:
    import wandb
    from wandb.apis.public import Run as ServedRun

REPORT_PAGE = Path("report", "index.html")  # relative to the study's folder

TIMEOUT = 30  # seconds per API request
TIMEOUT_FACTOR = 10.0  # timeouts can be longer than in training, as nothing waits for a sync

Outcome = Literal[
    "uploaded", "already there", "not logged to W&B", "running", "damaged", "incomplete"
]


def sync(study: Path, project: str | None, entity: str | None) -> None:
    """Upload the missing parts of each run and print the outcome.

    Calling it again uploads only what is still missing.

    Args:
        study: Folder of a study or of a run.
        project: W&B project; None for the one in each run's configuration.
        entity: W&B user or team; None for the one in each run's configuration, or else the default
            one.

    Raises:
        UserError: There is no run, W&B is not available, or a run was not uploaded completely.
    """
    api, default_entity = connect(entity)
    outcomes: list[Outcome] = []
    projects = set()  # paths, `entity/project`
    for cell in find_cells(study):
        outcome, path = _sync_cell(cell, api, project, entity, default_entity)
        console.print(f"{cell}: {outcome}")
        outcomes.append(outcome)
        projects |= {path.rpartition("/")[0]} if path else set()
    for path in sorted(projects):
        _sync_page(study, api, path)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in Counter(outcomes).items())
    console.print(f"{format_count(len(outcomes), 'run')}: {counts}")
    if missing := sum(outcome in ("damaged", "incomplete") for outcome in outcomes):
        raise UserError(
            f"{missing} of {len(outcomes)} runs could not be uploaded completely; "
            "repeat the command to upload the rest"
        )


def connect(entity: str | None) -> tuple["wandb.Api", str]:
    """Connect to W&B's server.

    Args:
        entity: W&B user or team; None for the default one of the user that is logged in.

    Returns:
        API client, and the name of the user or team.

    Raises:
        UserError: wandb is not installed, nobody is logged in, or the server does not answer.
    """
    try:
        import wandb
    except ImportError:
        raise UserError("The package wandb is not installed; pip install wandb") from None

    server = server_url()
    if not is_logged_in():
        raise UserError(
            f"Not logged in to {server}; run wandb login, or set the environment variable "
            "WANDB_API_KEY"
        )
    try:
        api = wandb.Api(timeout=TIMEOUT)
        user = api.default_entity
    except Exception as error:
        reason = first_line(error)
        raise UserError(f"{server} does not answer like a W&B server ({reason})") from error
    if (entity := entity or user) is None:
        raise UserError("Your W&B account has no default entity; set --entity TEAM")
    return api, entity


def find_run(api: "wandb.Api", path: str) -> "ServedRun | None":
    """Look up a run on the server.

    Args:
        api: W&B API client.
        path: Path of the run, `entity/project/id`.

    Returns:
        Run as the server has it; None if there is no such run.
    """
    import wandb

    api.flush()  # type: ignore[no-untyped-call]  # the client caches earlier answers
    try:
        return api.run(path)
    except (ValueError, wandb.Error) as error:
        if "not find" in str(error):
            return None
        raise


def is_whole(run: "ServedRun | None", record: Record, status: str) -> bool:
    """Return whether the server has a run's last row and its final status."""
    if run is None or run.state == "running" or run.summary_metrics.get("status") != status:
        return False
    return bool(run.lastHistoryStep >= _last_step(record.table.rows_by_epoch(), status))


def _last_step(epochs: list[list[Row]], status: str) -> int:
    """Compute W&B's step of a run's last row, that of the last epoch or that of the tables.

    W&B's steps are twice the training steps, so that the tables come one step after the last epoch.
    """
    if not epochs:
        return -1
    has_tables = status in FINISHED and any(table_name(row) for rows in epochs for row in rows)
    return 2 * epochs[-1][0].step + has_tables


def _sync_cell(
    cell: Path, api: "wandb.Api", project: str | None, entity: str | None, default_entity: str
) -> tuple[Outcome, str | None]:
    """Upload a cell's run.

    Returns:
        Outcome, and the path of the W&B run; None if there is no path to upload to.
    """
    if not (folders := CellPaths(cell).wandb_runs()):
        return "not logged to W&B", None
    try:
        with Record.open(cell) as record:
            options = record.description.config.get("logger", {})
            return _upload(
                record,
                folders[-1],
                api,
                project or options.get("project") or "bnstudy",
                entity or options.get("entity") or default_entity,
            )
    except CellInUse:
        return "running", None
    except UserError as error:
        console.print(str(error), style="yellow")
        return "damaged", None


def _upload(
    record: Record, folder: Path, api: "wandb.Api", project: str, entity: str
) -> tuple[Outcome, str]:
    run_id = folder.name.removeprefix("offline-").split("-", 2)[-1]  # run-TIME-ID
    path = f"{entity}/{project}/{run_id}"
    status = _final_status(record)
    served = find_run(api, path)
    if is_whole(served, record, status):
        return "already there", path
    file = folder / f"run-{run_id}.wandb"
    log = read_log(file) if file.exists() else TransactionLog()
    if served is None and _is_self_contained(log, record):
        _wandb_sync(folder, project, entity)
    else:
        _complete(record, run_id, project, entity, status, log)
    whole = is_whole(find_run(api, path), record, status)
    return "uploaded" if whole else "incomplete", path


def _final_status(record: Record) -> Status:
    """Return the status of a run whose cell this process holds.

    No other process can be running the cell, so a run recorded as running was killed.
    """
    status = record.description.status
    return "interrupted" if status in ("running", None) else status


def _is_self_contained(log: TransactionLog, record: Record) -> bool:
    """Return whether a log covers the whole run and all files that it refers to exist.

    The log of an attempt that resumed online begins at the last step that the server had. The log
    of a study that was moved refers to files in the old folder.
    """
    has_all_epochs = all(2 * rows[0].step in log.rows for rows in record.table.rows_by_epoch())
    return (
        log.exit_code is not None and has_all_epochs and all(path.exists() for path in log.staged)
    )


def _wandb_sync(folder: Path, project: str, entity: str) -> None:
    """Upload a run's folder with `wandb sync`, which includes the system metrics.

    The server must not have the run yet.
    """
    command = [sys.executable, "-m", "wandb", "sync", "--include-online", "--include-synced"]
    subprocess.run(
        [*command, "--project", project, "--entity", entity, str(folder)],
        capture_output=True,
        check=False,  # the caller checks on the server whether the upload is complete
        env=os.environ | {"WANDB_MODE": "online"},
    )


def _complete(
    record: Record, run_id: str, project: str, entity: str, status: Status, log: TransactionLog
) -> None:
    """Resume a run on the server and log what is missing there."""
    exit_code = 0 if status in FINISHED else log.exit_code or 1
    checkpoint = record.description.config.get("logger", {}).get("checkpoint", False)
    with wandb_files(record.paths.wandb):
        run = start_run(record, run_id, project, entity, "online", TIMEOUT_FACTOR)
        set_earlier_aside(record, Path(run.sync_dir))
        replay_rows(run, record)
        log_final_data(run, record, status, checkpoint)
        finish_run(run, exit_code, record.folder.parent)


def _sync_page(study: Path, api: "wandb.Api", project_path: str) -> None:
    """Upload a study's report, if it has one, as an artifact of a separate W&B run.

    An outdated report is regenerated first. A page that bnstudy did not write is uploaded
    unchanged.
    """
    page = study / REPORT_PAGE
    if not page.exists():
        return
    import wandb

    from bnstudy.study.present.report_files import is_report, refresh_pages  # slow imports

    try:
        pages = refresh_pages(study) if is_report(page) else [page]
    except UserError as error:
        console.print(f"{page}: not uploaded; {first_line(error)}")
        return
    content = hashlib.sha256(b"".join(path.read_bytes() for path in pages)).hexdigest()
    entity, project = project_path.split("/")
    run_id = f"report-{hashlib.sha256(study.resolve().name.encode()).hexdigest()[:8]}"
    served = find_run(api, f"{project_path}/{run_id}")
    if served is not None and served.summary_metrics.get("page") == content:
        console.print(f"{page}: already there")
        return
    settings: dict[str, Any] = {
        "console": "off",
        "silent": True,
        "disable_git": True,
        "finish_timeout": 0,  # wait for the upload, whatever WANDB_FINISH_TIMEOUT says
    }
    with wandb_files(study / WANDB):
        run = wandb.init(
            project=project,
            entity=entity,
            id=run_id,
            resume="allow",
            name=f"report of {study.resolve().name}",
            group=study.resolve().name,
            job_type="report",
            dir=study.absolute(),
            mode="online",
            reinit="finish_previous",
            settings=wandb.Settings(**settings, **QUIET_SETTINGS),
        )
        artifact = wandb.Artifact(f"report-{study.resolve().name}", type="report")
        for path in pages:
            artifact_path = path.relative_to(page.parent).as_posix() if pages[1:] else "report.html"
            artifact.add_file(str(path), name=artifact_path)
        run.log_artifact(artifact)
        # An index page of several reports would only have broken links in W&B.
        shown = pages[1:] or pages
        run.log(
            {_shown_name(path, page): wandb.Html(path.read_text(), inject=False) for path in shown}
        )
        run.summary["page"] = content
        run.finish()
    served = find_run(api, f"{project_path}/{run_id}")
    is_uploaded = served is not None and served.summary_metrics.get("page") == content
    console.print(f"{page}: {'uploaded' if is_uploaded else 'incomplete; repeat the command'}")


def _shown_name(path: Path, page: Path) -> str:
    """Return the name under which W&B shows a page, such as `report` or `report/part1`."""
    return (Path("report") / path.parent.relative_to(page.parent)).as_posix()
