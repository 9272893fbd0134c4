"""A cell as a W&B run: its id, its rows, and what it ends with.

A W&B run is rows, and W&B numbers them by a step of its own that only grows. Here that step follows
from where in the training a row was logged, so that a row that is logged again, as it is when a run
goes on, has the step it had, and a server that has it is not given it twice.
"""

import hashlib
import math
import netrc
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal
from unittest.mock import patch
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import pyarrow.parquet as pq
from lightning.pytorch.loggers import WandbLogger
from rich.console import Console

from bnstudy.adapters.wandb_internals import flush_settings, without_launch
from bnstudy.callbacks.names import logged_name
from bnstudy.files import replacing
from bnstudy.headline import CLUSTERING, choose_measured
from bnstudy.metrics import METRICS
from bnstudy.runs.description import ENDED, RunDescription, Status
from bnstudy.runs.long_table import Row, final_numbers
from bnstudy.runs.paths import RECORD, TABLE, CellPaths
from bnstudy.runs.record import Record
from bnstudy.tracking.transaction_log import TransactionLog, read

if TYPE_CHECKING:
    import wandb

# Seconds for which a server that does not answer is waited for: at a run's beginning, at its end,
# and before that to see if it is there. What is not uploaded by then stays on disk.
BEGIN_TIMEOUT = 10.0
END_TIMEOUT = 30.0
PROBE_TIMEOUT = 3.0
FLUSHED_EVERY = 1.0  # seconds: what a kill -9 can cost of the rows between epochs

HEAT_MAP = "bnstudy-layer-epoch"  # the custom chart that draws the table of representations
TABLES = {"representations": "representations_table", "optimization": "optimization_table"}
TABLE_COLUMNS: list[str | int] = ["layer", "epoch", "split", "metric", "value"]
RUN_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{8}-\d+")  # of a cell, its study, and an attempt
SEPARATE = "earlier"  # in a cell's folder wandb: what an attempt left that a later one stands for

console = Console(highlight=False, markup=False, soft_wrap=True, stderr=True)

Mode = Literal["online", "offline", "disabled"]


def wandb_id(record: Record, resumed: bool) -> str:
    """The id of a cell's W&B run.

    It follows from the cell's identity and its study. A run that goes on keeps it; one that starts
    over takes another one.

    Args:
        record: Of the run, with the attempt that begins.
        resumed: Whether it goes on from a checkpoint.
    """
    description = record.description
    had = [one.wandb_id for one in description.attempts if one.wandb_id is not None]
    if resumed and had:
        return had[-1]
    study = hashlib.sha256(description.study.encode()).hexdigest()
    return f"{description.identity[:8]}-{study[:8]}-{len(description.attempts)}"


@contextmanager
def wandb_files(folder: Path) -> Iterator[None]:
    """Keep all that W&B needs to upload a run later in a folder, and W&B silent.

    Args:
        folder: Folder of W&B's files.
    """
    data = str((folder / "data").absolute())
    with patch.dict(os.environ, WANDB_DATA_DIR=data, WANDB_SILENT="true"):
        yield


def begin(
    record: Record,
    run_id: str,
    project: str,
    entity: str | None,
    mode: Mode | None,
    patience: float = 1.0,
) -> "wandb.Run":
    """Begin a cell's W&B run, or go on with it.

    Args:
        record: Of the run.
        run_id: The W&B run's.
        project: W&B's project.
        entity: W&B's user or team; None: the default one.
        mode: None: what WANDB_MODE says.
        patience: How many times as long as usual the server is waited for.

    Raises:
        wandb.Error: The server does not answer, or wants no run of this user's.
    """
    import wandb

    description = record.description
    with without_launch():
        run = wandb.init(
            project=project,
            entity=entity,
            id=run_id,
            resume="allow",
            name=description.cell,
            group=description.study,
            job_type="train",
            tags=[description.choices[group] for group in ("norm", "model", "data")],
            config=description.config,
            dir=record.folder.absolute(),  # W&B writes from a process of its own
            mode=mode,
            reinit="finish_previous",  # a leaked run of another job is never gone on with
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,  # a remote's address can hold a password
                save_code=False,
                **flush_settings(FLUSHED_EVERY),
                init_timeout=BEGIN_TIMEOUT * patience,
                finish_timeout=END_TIMEOUT * patience,
                finish_timeout_raises=True,
            ),
        )
    run.define_metric("epoch")
    run.define_metric("trainer/global_step")
    for names in ("rep/*", "opt/*"):
        run.define_metric(names, step_metric="epoch", step_sync=True)
    for split in ("train", "validation", "test"):
        for name in ("loss", "accuracy"):
            run.define_metric(f"{split}/{name}", step_metric="epoch", step_sync=True)
    for names in ("train/loss_step", "opt_step/*"):
        run.define_metric(names, step_metric="trainer/global_step", step_sync=True)
    run.summary["status"] = "running"
    return run


class RowLogger(WandbLogger):
    """Lightning's logger, but rows are whole, and each has the step that its place gives it.

    Values that are logged at the same step of training make a row, which is written when `save` is
    called or values of another step come. What has not been written when training stops is of an
    epoch that has not been recorded, and is logged again when the run goes on. A W&B that fails
    does not stop the training.

    Args:
        run: W&B's.
        written: The step of the last row that it has been given.
    """

    def __init__(self, run: "wandb.Run", written: int) -> None:
        super().__init__(experiment=run, log_model=False)
        self.run = run
        self.row: dict[str, float] = {}
        self.step = 0
        self.written = written

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add values to the row of a step of training."""
        if step is not None and step != self.step:
            self.save()
            self.step = step
        self.row |= metrics

    def save(self) -> None:
        """Write the row."""
        if self.row:
            # Two places for each batch: the row of an epoch's end comes before that of the batch.
            self.written = max(2 * self.step, self.written + 1)
            write(self.run, self.written, self.row | {"trainer/global_step": self.step})
            self.row = {}


def write(run: "wandb.Run", step: int, row: Mapping[str, Any]) -> None:
    """Give W&B a row, unless its server has that step already."""
    if step < run.starting_step:
        return
    try:
        run.log(dict(row), step=step, commit=True)
    except Exception as error:  # whatever is wrong with W&B, the run goes on: it has its record
        warn_once(f"W&B takes no more values ({type(error).__name__}: {error}); the record has all")


def replay(run: "wandb.Run", record: Record, until_epoch: int | None = None) -> int:
    """Log again what a W&B run had been given before, as far as its server does not have it.

    Each epoch's values come from the record. What was logged between comes from the files of the
    earlier attempts; of an epoch that is trained again it is left out.

    Args:
        run: W&B's.
        record: Of the run.
        until_epoch: The last epoch that counts; None: all that are recorded.

    Returns:
        The step of the last row; -1 where there is none.
    """
    epochs = record.table.rows_by_epoch(until_epoch)
    end = 2 * epochs[-1][0].step if epochs else -1
    rows: dict[int, dict[str, Any]] = {}
    for log in logs(record.paths, run.id):
        for step, row in log.rows.items():
            values = {key: value for key, value in row.items() if not key.startswith("_")}
            if step <= end and all(isinstance(value, int | float) for value in values.values()):
                rows[step] = values
    for of_epoch in epochs:
        epoch, step = of_epoch[0].epoch, of_epoch[0].step
        rows[2 * step] = {
            **{logged_name(row): row.value for row in of_epoch},
            "epoch": epoch,
            "trainer/global_step": step,
        }
    for step in sorted(rows):
        write(run, step, rows[step])
    return end


def conclude(run: "wandb.Run", record: Record, status: Status, checkpoint: bool) -> None:
    """Log what a run ends with: its tables, the numbers that runs are sorted by, its record.

    Args:
        run: W&B's.
        record: Of the run.
        status: As the record's will be.
        checkpoint: Whether the last checkpoint is logged too, of a run that has ended.
    """
    epochs = record.table.rows_by_epoch()
    run.summary.update({"status": status} | summary(epochs))
    folder = Path(run.dir) / "record"
    with replacing(folder / RECORD) as temporary:
        temporary.write_text(described(record, status, epochs).to_json())
    if epochs:
        with replacing(folder / TABLE) as temporary:
            pq.write_table(record.table.read(), temporary)
    for path in folder.iterdir():
        run.save(path, base_path=run.dir, policy="now")
    if status not in ENDED:
        return
    if not run.offline and not answers(run.settings.base_url):
        # Of artifacts, W&B would ask the server whether it may, and wait long for an answer.
        warn_once(
            f"W&B's server does not answer; nothing is lost: python -m bnstudy.dashboard sync "
            f"{record.folder.parent} uploads the rest"
        )
        return
    if tables := _tables(run, epochs):
        run.log(tables, step=2 * epochs[-1][0].step + 1, commit=True)
    if checkpoint and record.paths.last_checkpoint.exists():
        _add_checkpoint(run, record)


def answers(server: str) -> bool:
    """Whether a server is there and does not err."""
    try:
        with urlopen(f"{server}/graphql", timeout=PROBE_TIMEOUT):
            return True
    except HTTPError as error:
        return error.code < 500  # it wants something else; that is an answer
    except (OSError, HTTPException):
        return False


def _tables(run: "wandb.Run", epochs: list[list[Row]]) -> dict[str, Any]:
    """The long tables, that of representations as a heat map where W&B knows whose chart it is."""
    import wandb

    tables: dict[str, Any] = {}
    for name, key in TABLES.items():
        rows = [row for of_epoch in epochs for row in of_epoch if table_of(row) == name]
        if not rows:
            continue
        table = wandb.Table(columns=TABLE_COLUMNS, data=[table_row(row) for row in rows])
        if name == "representations" and run.entity:
            names = [row.metric for row in rows]
            drawn = (choose_measured(CLUSTERING, names) or names)[0]
            tables[name] = wandb.plot_table(
                vega_spec_name=f"{run.entity}/{HEAT_MAP}",
                data_table=table,
                fields={"x": "epoch", "y": "layer", "value": "value"}
                | {"metric": "metric", "split": "split"},
                string_fields={"metric": drawn, "split": "train"},
            )
        else:
            tables[key] = table
    return tables


def finish(run: "wandb.Run", exit_code: int, study: Path) -> None:
    """End a W&B run; where the server takes too long, say how the rest is uploaded later.

    Args:
        run: W&B's.
        exit_code: 0 for a run that has ended, diverged or not.
        study: The folder of the cell's study.
    """
    try:
        run.finish(exit_code=exit_code)
    except TimeoutError:
        warn_once(
            f"W&B's server has not taken all of it in time; nothing is lost: "
            f"python -m bnstudy.dashboard sync {study} uploads the rest"
        )
    except Exception as error:
        warn_once(f"W&B did not end the run ({type(error).__name__}: {error}); the record has all")


@contextmanager
def nothing_stops(record: Record) -> Iterator[None]:
    """Have what goes wrong in the body told, and nothing more: a run has its record without it."""
    try:
        yield
    except Exception as error:
        warn_once(f"{record.folder}: W&B lacks its end ({type(error).__name__}: {error})")


def _add_checkpoint(run: "wandb.Run", record: Record) -> None:
    """Log the last checkpoint as an artifact."""
    import wandb

    artifact = wandb.Artifact(f"checkpoint-{record.description.cell}", type="model")
    artifact.add_file(str(record.paths.last_checkpoint))
    run.log_artifact(artifact)


def set_earlier_aside(record: Record, current: Path | None) -> None:
    """Keep apart what earlier attempts left, so that a sync uploads one run for a cell.

    Args:
        record: Of the run.
        current: The folder of the W&B run that goes on.
    """
    for folder in record.paths.wandb_runs():
        if current is None or folder.resolve() != current.resolve():
            aside = folder.parent / SEPARATE / folder.name
            aside.parent.mkdir(exist_ok=True)
            with suppress(OSError):
                folder.rename(aside)


def logs(paths: CellPaths, run_id: str) -> list[TransactionLog]:
    """Read what was logged to a W&B run, by all its attempts on this disk, oldest first."""
    return [read(file) for file in paths.wandb_logs(run_id)]


def summary(epochs: list[list[Row]]) -> dict[str, float]:
    """The numbers of the last epoch: those of the model, and each metric's mean over the layers.

    Of layers, those of activations are meant, on the training split's probe set.
    """
    last = epochs[-1] if epochs else []
    whole = {f"final/{row.split}_{row.metric}": row.value for row in last if row.layer_index < 0}
    of_layers: dict[str, list[float]] = defaultdict(list)
    for row in last:
        if row.site == "act" and row.split == "train" and math.isfinite(row.value):
            of_layers[f"final/{row.metric}"].append(row.value)
    return whole | {name: fmean(values) for name, values in of_layers.items()}


def table_of(row: Row) -> str | None:
    """Which of the tables a row is in: none for loss and accuracy."""
    if row.metric in METRICS:
        return "representations"
    return "optimization" if logged_name(row).startswith("opt/") else None


def table_row(row: Row) -> list[Any]:
    """A row as the tables have it, without the value where it is undefined."""
    value = row.value if math.isfinite(row.value) else None
    return [row.label, row.epoch, row.split, row.metric, value]


def described(record: Record, status: Status, epochs: list[list[Row]]) -> RunDescription:
    """Describe the run as run.json will once it has the status."""
    description = record.description.model_copy(deep=True)
    description.status = status
    if description.attempts:
        description.attempts[-1].status = status
    if epochs and status in ENDED:
        description.final = final_numbers(epochs[-1])
    return description


def logged_in() -> bool:
    """Whether W&B has a key for its server, without asking for one."""
    import wandb

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(wandb.setup().settings.base_url).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


_warned: set[str] = set()


def warn_once(message: str) -> None:
    """Tell the user, once in a process."""
    if message not in _warned:
        _warned.add(message)
        console.print(message, style="yellow")
