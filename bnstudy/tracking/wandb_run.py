"""Logging of a cell as a W&B run: its id, its rows, and its final tables and summary.

W&B stores a run as rows, numbered by a step that can only increase. Here, W&B's step is computed
from the training step at which a row was logged. When a resumed run logs a row again, the row has
the same step as before, so that it is not sent twice to a server that already has it.
"""

import hashlib
import math
import netrc
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from http.client import HTTPException
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal
from unittest.mock import patch
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from lightning.pytorch.loggers import WandbLogger
from rich.console import Console

from bnstudy.adapters.wandb_internals import (
    flush_settings,
    redacted_command_line,
    without_launch,
)
from bnstudy.callbacks.names import logged_name
from bnstudy.errors import UserError
from bnstudy.files import replacing
from bnstudy.headline import CLUSTERING, choose_measured
from bnstudy.metrics import METRICS
from bnstudy.redaction import redact_values
from bnstudy.runs.description import RunDescription
from bnstudy.runs.long_table import Row, extract_final_numbers
from bnstudy.runs.parquet_file import write_table
from bnstudy.runs.parts import FINISHED, Status
from bnstudy.runs.paths import RECORD, TABLE
from bnstudy.runs.record import Record
from bnstudy.terms import EVALUATED_SPLITS, PERFORMANCE
from bnstudy.tracking.transaction_log import read_log

if TYPE_CHECKING:
    import wandb

# Timeouts in seconds for a server that does not answer: at a run's beginning, at its end, and for
# the check before its end. Data that are not uploaded by then stay on disk.
BEGIN_TIMEOUT = 10.0
END_TIMEOUT = 30.0
PING_TIMEOUT = 3.0
FLUSH_INTERVAL = 1.0  # seconds; a kill -9 loses at most the rows of this interval

HEAT_MAP = "bnstudy-layer-epoch"  # custom chart that draws the table of representations
HEAT_MAP_FIELDS = {  # the table's columns, by the chart's fields
    "x": "epoch",
    "y": "layer",
    "value": "value",
    "metric": "metric",
    "split": "split",
}
TABLES = {"representations": "representations_table", "optimization": "optimization_table"}
TABLE_COLUMNS: list[str | int] = ["layer", "epoch", "split", "metric", "value"]
RUN_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{8}-\d+")  # cell, study and number of the attempt
EARLIER = "earlier"  # subfolder of a cell's folder wandb for superseded attempts

console = Console(highlight=False, markup=False, soft_wrap=True, stderr=True)

Mode = Literal["online", "offline", "disabled"]


def wandb_id(record: Record, resumed: bool) -> str:
    """Return the id of a cell's W&B run.

    The id is derived from the cell's identity, its study and the number of the attempt. A resumed
    run keeps its id; a run that starts over gets a new one.

    Args:
        record: Record of the run, including the attempt that begins.
        resumed: Whether the run resumes from a checkpoint.
    """
    description = record.description
    earlier_ids = [
        attempt.wandb_id for attempt in description.attempts if attempt.wandb_id is not None
    ]
    if resumed and earlier_ids:
        return earlier_ids[-1]
    study = hashlib.sha256(description.study.encode()).hexdigest()
    return f"{description.identity[:8]}-{study[:8]}-{len(description.attempts)}"


@contextmanager
def wandb_files(folder: Path) -> Iterator[None]:
    """Let W&B write its data to a folder for a later upload, without console output.

    Args:
        folder: Folder of W&B's files.
    """
    data = str((folder / "data").absolute())
    with patch.dict(os.environ, WANDB_DATA_DIR=data, WANDB_SILENT="true"):
        yield


def start_run(
    record: Record,
    run_id: str,
    project: str,
    entity: str | None,
    mode: Mode | None,
    timeout_factor: float = 1.0,
) -> "wandb.Run":
    """Start a cell's W&B run, or resume it.

    Args:
        record: Record of the run.
        run_id: Id of the W&B run.
        project: W&B project.
        entity: W&B user or team; None for the default one.
        mode: W&B mode; None for the value of the environment variable WANDB_MODE.
        timeout_factor: Factor by which the usual timeouts are multiplied.

    Raises:
        wandb.Error: The server does not answer, or refuses the run.
    """
    import wandb

    description = record.description
    with without_launch(), redacted_command_line():
        run = wandb.init(
            project=project,
            entity=entity,
            id=run_id,
            resume="allow",
            name=description.cell,
            group=description.study,
            job_type="train",
            tags=list(filter(None, map(description.choices.get, ("norm", "model", "data")))),
            config=redact_values(description.config),
            dir=record.folder.absolute(),  # absolute, as W&B writes from another process
            mode=mode,
            reinit="finish_previous",  # do not resume a run that an earlier job left open
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,  # a remote's URL can contain a password
                save_code=False,
                **flush_settings(FLUSH_INTERVAL),
                init_timeout=BEGIN_TIMEOUT * timeout_factor,
                finish_timeout=END_TIMEOUT * timeout_factor,
                finish_timeout_raises=True,
            ),
        )
    run.define_metric("epoch")
    run.define_metric("trainer/global_step")
    for names in ("rep/*", "opt/*"):
        run.define_metric(names, step_metric="epoch", step_sync=True)
    for split in EVALUATED_SPLITS:
        for name in PERFORMANCE:
            run.define_metric(f"{split}/{name}", step_metric="epoch", step_sync=True)
    for names in ("train/loss_step", "opt_step/*"):
        run.define_metric(names, step_metric="trainer/global_step", step_sync=True)
    run.summary["status"] = "running"
    return run


class RowLogger(WandbLogger):
    """W&B logger of Lightning that writes complete rows at reproducible steps.

    Values logged at the same training step form a row. A row is written when `save` is called or
    when values of another step are logged. If training stops, an unwritten row is dropped: its
    epoch is trained and logged again when the run resumes. Errors of W&B do not stop the training.

    Args:
        run: W&B run.
        written: W&B's step of the last row that the run already has.
    """

    def __init__(self, run: "wandb.Run", written: int) -> None:
        super().__init__(experiment=run, log_model=False)
        self.run = run
        self.row: dict[str, float] = {}
        self.step = 0
        self.written = written

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add values to the row of a training step."""
        if step is not None and step != self.step:
            self.save()
            self.step = step
        self.row |= metrics

    def save(self) -> None:
        """Write the row."""
        if self.row:
            # An epoch's row and that of the next batch can have the same training step.
            self.written = max(2 * self.step, self.written + 1)
            write_row(self.run, self.written, self.row | {"trainer/global_step": self.step})
            self.row = {}


def write_row(run: "wandb.Run", step: int, row: Mapping[str, Any]) -> None:
    """Log a row to W&B, unless the server already has its step."""
    if step < run.starting_step:
        return
    try:
        run.log(dict(row), step=step, commit=True)
    except Exception as error:  # no error of W&B stops the run, as the record has all values
        warn_once(
            f"W&B accepts no more values ({type(error).__name__}: {error}); the record has them"
        )


def replay_rows(run: "wandb.Run", record: Record, until_epoch: int | None = None) -> int:
    """Log those rows of earlier attempts that the server does not have.

    Each epoch's values come from the record. Rows between epochs come from the log files of the
    earlier attempts; those of an epoch that will be trained again are left out.

    Args:
        run: W&B run.
        record: Record of the run.
        until_epoch: Last epoch to log; None for all recorded epochs.

    Returns:
        W&B's step of the last row; -1 if there is none.
    """
    epochs = record.table.rows_by_epoch(until_epoch)
    end = 2 * epochs[-1][0].step if epochs else -1
    rows: dict[int, dict[str, Any]] = {}
    for log in map(read_log, record.paths.wandb_logs(run.id)):
        for step, row in log.rows.items():
            values = {key: value for key, value in row.items() if not key.startswith("_")}
            if step <= end and all(isinstance(value, int | float) for value in values.values()):
                rows[step] = values
    for epoch_rows in epochs:
        epoch, step = epoch_rows[0].epoch, epoch_rows[0].step
        rows[2 * step] = {
            **{logged_name(row): row.value for row in epoch_rows},
            "epoch": epoch,
            "trainer/global_step": step,
        }
    for step in sorted(rows):
        write_row(run, step, rows[step])
    return end


def log_final_data(run: "wandb.Run", record: Record, status: Status, checkpoint: bool) -> None:
    """Log a run's final data: its tables, its summary values and its record.

    Args:
        run: W&B run.
        record: Record of the run.
        status: Status that the record is about to get.
        checkpoint: Whether to log the last checkpoint as well, if the run is finished.
    """
    epochs = record.table.rows_by_epoch()
    run.summary.update({"status": status} | compute_summary(epochs))
    folder = Path(run.dir) / "record"
    with replacing(folder / RECORD) as temporary:
        temporary.write_text(describe_finished(record, status, epochs).to_json())
    if epochs:
        with replacing(folder / TABLE) as temporary:
            write_table(record.table.read(), temporary)
    for path in folder.iterdir():
        run.save(path, base_path=run.dir, policy="now")
    if status not in FINISHED:
        return
    if not run.offline and not is_reachable(run.settings.base_url):
        # Before it logs artifacts, W&B queries the server, and would wait long for an answer.
        warn_once(
            f"W&B's server does not answer; nothing is lost: python -m bnstudy.dashboard sync "
            f"{record.folder.parent} uploads the rest"
        )
        return
    if tables := _tables(run, epochs):
        run.log(tables, step=max(2 * epochs[-1][0].step + 1, run.step), commit=True)
    if checkpoint and record.paths.last_checkpoint.exists():
        _add_checkpoint(run, record)


def is_reachable(server: str) -> bool:
    """Return whether a server responds without a server error."""
    try:
        with urlopen(f"{server}/graphql", timeout=PING_TIMEOUT):
            return True
    except HTTPError as error:
        return error.code < 500  # a client error is a response as well
    except (OSError, HTTPException):
        return False


def _tables(run: "wandb.Run", epochs: list[list[Row]]) -> dict[str, Any]:
    """Make the tables in long form.

    The table of representations becomes a heat map if the run has an entity, which the name of the
    custom chart requires.
    """
    import wandb

    tables: dict[str, Any] = {}
    for name, key in TABLES.items():
        rows = [row for epoch_rows in epochs for row in epoch_rows if table_name(row) == name]
        if not rows:
            continue
        table = wandb.Table(columns=TABLE_COLUMNS, data=[table_row(row) for row in rows])
        if name == "representations" and run.entity:
            names = [row.metric for row in rows]
            drawn_metric = (choose_measured(CLUSTERING, names) or names)[0]
            tables[name] = wandb.plot_table(
                vega_spec_name=f"{run.entity}/{HEAT_MAP}",
                data_table=table,
                fields=HEAT_MAP_FIELDS,
                string_fields={"metric": drawn_metric, "split": "train"},
            )
        else:
            tables[key] = table
    return tables


def finish_run(run: "wandb.Run", exit_code: int, study: Path) -> None:
    """Finish a W&B run; if this takes too long, print how to upload the rest later.

    Args:
        run: W&B run.
        exit_code: Exit code; 0 for a finished run, whether or not it diverged.
        study: Folder of the cell's study.
    """
    try:
        run.finish(exit_code=exit_code)
    except TimeoutError:
        warn_once(
            f"W&B's server did not accept all data in time; nothing is lost: "
            f"python -m bnstudy.dashboard sync {study} uploads the rest"
        )
    except Exception as error:
        warn_once(
            f"W&B did not end the run ({type(error).__name__}: {error}); the record is complete"
        )


@contextmanager
def warn_on_error(record: Record) -> Iterator[None]:
    """Turn any exception in the body into a warning, as the run's record does not depend on W&B."""
    try:
        yield
    except Exception as error:
        warn_once(
            f"{record.folder}: W&B did not get its final data ({type(error).__name__}: {error})"
        )


def _add_checkpoint(run: "wandb.Run", record: Record) -> None:
    """Log the last checkpoint as an artifact."""
    import wandb

    artifact = wandb.Artifact(f"checkpoint-{record.description.cell}", type="model")
    artifact.add_file(str(record.paths.last_checkpoint))
    run.log_artifact(artifact)


def set_earlier_aside(record: Record, current: Path) -> None:
    """Move the W&B folders of earlier attempts aside, so that a sync uploads one run per cell.

    Args:
        record: Record of the run.
        current: Folder of the current W&B run.
    """
    for folder in record.paths.wandb_runs():
        if folder.resolve() != current.resolve():
            aside = folder.parent / EARLIER / folder.name
            aside.parent.mkdir(exist_ok=True)
            with suppress(OSError):
                folder.rename(aside)


def compute_summary(epochs: list[list[Row]]) -> dict[str, float]:
    """Compute the summary of the last epoch: the model's values and each metric's layer mean.

    The means are over the layers' activations on the training split's probe set.
    """
    last = epochs[-1] if epochs else []
    whole = {f"final/{row.split}_{row.metric}": row.value for row in last if row.layer_index < 0}
    layer_values: dict[str, list[float]] = defaultdict(list)
    for row in last:
        if row.site == "act" and row.split == "train" and math.isfinite(row.value):
            layer_values[f"final/{row.metric}"].append(row.value)
    return whole | {name: fmean(values) for name, values in layer_values.items()}


def table_name(row: Row) -> str | None:
    """Return the name of the table that a row belongs to; None for loss and accuracy."""
    if row.metric in METRICS:
        return "representations"
    return "optimization" if logged_name(row).startswith("opt/") else None


def table_row(row: Row) -> list[Any]:
    """Convert a row to the columns of the tables; None replaces a value that is not finite."""
    value = row.value if math.isfinite(row.value) else None
    return [row.label, row.epoch, row.split, row.metric, value]


def describe_finished(record: Record, status: Status, epochs: list[list[Row]]) -> RunDescription:
    """Make the description that run.json will contain once the run has the status."""
    description = record.description.model_copy(deep=True)
    description.status = status
    if description.attempts:
        description.attempts[-1].status = status
    if epochs and status in FINISHED:
        description.final = extract_final_numbers(epochs[-1])
    return description


def _unset_empty_variables() -> None:
    """Remove empty WANDB_... variables from the environment; W&B would refuse some of them."""
    for name in [name for name in os.environ if name.startswith("WANDB_") and not os.environ[name]]:
        del os.environ[name]


def server_url() -> str:
    """Return the URL of W&B's server. Empty environment variables count as not set.

    Raises:
        UserError: W&B refuses a value of its settings.
    """
    import wandb

    _unset_empty_variables()
    try:
        return str(wandb.setup().settings.base_url)
    except (wandb.Error, ValueError) as error:
        raise UserError(
            f"W&B's settings: {' '.join(str(error).split())}\n"
            "Correct the environment variables WANDB_... or W&B's settings file, or take "
            "logger=csv or logger=none"
        ) from error


def is_logged_in() -> bool:
    """Return whether W&B has a key for its server, without prompting the user for one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(server_url()).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


@cache
def warn_once(message: str) -> None:
    """Print a warning, at most once per process."""
    console.print(message, style="yellow")
