"""Progress of the sweeps over a study, read from the study's folder."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from bnstudy.errors import UserError, first_line
from bnstudy.runs.lease import STALE_AFTER, find_lease, is_alive
from bnstudy.runs.parts import Attempt
from bnstudy.runs.paths import list_cells
from bnstudy.runs.record import Record
from bnstudy.sweeps.duration import DurationEstimator, format_time_left, timing_key
from bnstudy.sweeps.plan import read_plans

# Statuses of a cell, in the order in which they are printed.
CELL_STATUSES = (
    "completed",
    "diverged",
    "running",
    "interrupted",
    "failed",
    "damaged",
    "not begun",
)


@dataclass(frozen=True)
class CellStatus:
    """Status of one cell of a study.

    Attributes:
        name: Name of the cell's folder.
        status: One of `CELL_STATUSES`.
        epoch: Number of epochs trained and recorded so far.
        epochs: Number of epochs to train in total; 0 if the user's own code trains it.
        timing_key: Hash shared by cells with similar run times.
        where: Host and process id of the last attempt.
        age: Seconds since the last attempt started, by this machine's clock.
        quiet: Seconds since the lease of a running cell was last renewed; 0 for other cells.
        attempts: Number of attempts.
        error: Last line of the error message of a failed cell, or damage of a damaged one.
        log: Log file; None if there is none.
    """

    name: str
    status: str
    epoch: int
    epochs: int
    timing_key: str
    where: str = ""
    age: float = 0.0
    quiet: float = 0.0
    attempts: int = 0
    error: str = ""
    log: Path | None = None


class StudyStatus:
    """Status of all cells of a study, with estimates of the time left.

    Args:
        study: Folder of the study.

    Raises:
        UserError: The folder contains no study.
    """

    def __init__(self, study: Path) -> None:
        planned = read_plans(study)
        records: dict[str, Record | UserError] = {}
        for folder in list_cells(study):
            try:
                records[folder.name] = Record.read(folder)
            except UserError as error:
                records[folder.name] = error
        if not records and not planned:
            raise UserError(
                f"{study}: no study is there; give its folder, such as multirun/mnist5k_cnn"
            )
        self.study = study
        self.estimator = DurationEstimator(
            record for record in records.values() if isinstance(record, Record)
        )
        self.cells = [_make_status(study / name, record) for name, record in records.items()]
        self.cells += [
            CellStatus(name, "not begun", 0, cell.epochs, cell.timing_key)
            for name, cell in planned.items()
            if name not in records
        ]

    def select_cells(self, status: str) -> list[CellStatus]:
        """Select the cells with a given status."""
        return [cell for cell in self.cells if cell.status == status]

    def __rich__(self) -> RenderableType:
        """Render the status for the terminal."""
        return Group(*self._render())

    def _render(self) -> Iterator[RenderableType]:
        counts = {status: len(self.select_cells(status)) for status in CELL_STATUSES}
        listed = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        yield f"{self.study}: {len(self.cells)} cells: {listed}"
        if running := self.select_cells("running"):
            table = _make_table("running", "epoch", "for", "last sign of life", "on")
            for cell in running:
                table.add_row(
                    cell.name,
                    f"{cell.epoch}/{cell.epochs}" if cell.epochs else str(cell.epoch),
                    _format_duration(cell.age),
                    f"{_format_duration(cell.quiet)} ago",
                    cell.where,
                    style="yellow" if cell.quiet > STALE_AFTER else None,
                )
            yield table
        if failed := [*self.select_cells("failed"), *self.select_cells("damaged")]:
            table = _make_table("failed", "attempts", "error", "log")
            for cell in failed:
                table.add_row(cell.name, str(cell.attempts), cell.error, str(cell.log or "–"))
            yield table
        seconds = [
            self.estimator.estimate(cell.timing_key, max(cell.epochs - cell.epoch, 0))
            for cell in self.cells
            if cell.status in ("running", "interrupted", "not begun")
        ]
        if seconds:
            yield format_time_left(seconds, max(len(running), 1))


def _make_status(folder: Path, record: Record | UserError) -> CellStatus:
    """Make the status of a cell from its record, or from the error raised when it was read."""
    if isinstance(record, UserError):
        return CellStatus(folder.name, "damaged", 0, 0, "", error=first_line(record))
    description = record.description
    last = description.attempts[-1] if description.attempts else Attempt(status="interrupted")
    status, quiet, error = str(description.status), 0.0, last.error or ""
    if status == "running":
        status, quiet = _check_running(folder)
    elif damage := record.describe_table_damage():
        status, error = "damaged", damage
    log = record.paths.log
    age = 0.0
    if last.started:
        started = datetime.fromisoformat(last.started).astimezone()  # local if it has no time zone
        age = (datetime.now(UTC) - started).total_seconds()
    return CellStatus(
        folder.name,
        status,
        description.final.epoch or record.table.epochs_trained(),
        description.config["trainer"]["max_epochs"],
        timing_key(description.config),
        where=f"{last.host}, process {last.pid}",
        age=max(age, 0.0),
        quiet=quiet,
        attempts=len(description.attempts),
        error=error.strip().rpartition("\n")[2],
        log=log if log.exists() else None,
    )


def _check_running(folder: Path) -> tuple[str, float]:
    """Check whether a cell recorded as running still is.

    Returns:
        `running` or `interrupted`, and the seconds since the lease was last renewed.
    """
    occupied = find_lease(folder)
    if occupied is None:
        return "interrupted", 0.0
    worker, lease = occupied
    if is_alive(worker) is False:
        return "interrupted", 0.0
    try:
        return "running", max(time.time() - lease.stat().st_mtime, 0.0)
    except FileNotFoundError:  # just released
        return "interrupted", 0.0
    except OSError:  # may be transient
        return "running", 0.0


def _make_table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")  # wraps long names instead of cutting them
    return table


def _format_duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
