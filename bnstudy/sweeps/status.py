"""How far the sweeps over a study are, by what lies in its folder."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from bnstudy.errors import UserError, first_line
from bnstudy.runs.description import ENDED, Attempt
from bnstudy.runs.lease import STALE_AFTER, is_known_alive, lease_of
from bnstudy.runs.paths import cells_of
from bnstudy.runs.record import Record
from bnstudy.sweeps.duration import Timing, kind, told
from bnstudy.sweeps.plan import read_plans

# In the order in which they are told.
KINDS = ("completed", "diverged", "running", "interrupted", "failed", "damaged", "not begun")


@dataclass(frozen=True)
class CellStatus:
    """One cell of a study.

    Attributes:
        name: Its folder's.
        status: One of KINDS.
        epoch: How many epochs were trained and recorded.
        epochs: How many there will be.
        kind: Of cells that take about as long.
        where: Host and process, of a running one.
        age: Since it was begun or went on, in seconds by this machine's clock.
        quiet: Since its last sign of life, in seconds.
        attempts: How often it was begun.
        error: Of a failed one, its last line.
        log: Where more stands.
    """

    name: str
    status: str
    epoch: int
    epochs: int
    kind: str
    where: str = ""
    age: float = 0.0
    quiet: float = 0.0
    attempts: int = 0
    error: str = ""
    log: Path | None = None


class StudyStatus:
    """All cells of a study, and what was timed.

    Args:
        study: Its folder.

    Raises:
        UserError: It is no study's.
    """

    def __init__(self, study: Path) -> None:
        planned = read_plans(study)
        records: dict[str, Record | UserError] = {}
        for folder in cells_of(study):
            try:
                records[folder.name] = Record.read(folder)
            except UserError as error:
                records[folder.name] = error
        if not records and not planned:
            raise UserError(
                f"{study}: no study is there; give its folder, such as multirun/mnist5k_cnn"
            )
        self.study = study
        self.timing = Timing(record for record in records.values() if isinstance(record, Record))
        self.cells = [_cell(study / name, record) for name, record in records.items()]
        self.cells += [
            CellStatus(name, "not begun", 0, cell.epochs, cell.kind)
            for name, cell in planned.items()
            if name not in records
        ]

    def of(self, status: str) -> list[CellStatus]:
        """The cells of one status."""
        return [cell for cell in self.cells if cell.status == status]

    def __rich__(self) -> RenderableType:
        """For the terminal."""
        return Group(*self._lines())

    def _lines(self) -> Iterator[RenderableType]:
        counts = {status: len(self.of(status)) for status in KINDS}
        told_counts = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        yield f"{self.study}: {len(self.cells)} cells: {told_counts}"
        if running := self.of("running"):
            table = _table("running", "epoch", "for", "last sign of life", "on")
            for cell in running:
                table.add_row(
                    cell.name,
                    f"{cell.epoch}/{cell.epochs}",
                    _duration(cell.age),
                    f"{_duration(cell.quiet)} ago",
                    cell.where,
                    style="yellow" if cell.quiet > STALE_AFTER else None,
                )
            yield table
        if failed := [*self.of("failed"), *self.of("damaged")]:
            table = _table("failed", "attempts", "error", "log")
            for cell in failed:
                table.add_row(cell.name, str(cell.attempts), cell.error, str(cell.log or "–"))
            yield table
        left = [
            cell for cell in self.cells if cell.status in ("running", "interrupted", "not begun")
        ]
        if left:
            seconds = [self.timing.seconds(cell.kind, cell.epochs - cell.epoch) for cell in left]
            yield told(seconds, max(len(running), 1))


def _cell(folder: Path, record: Record | UserError) -> CellStatus:
    if isinstance(record, UserError):
        return CellStatus(folder.name, "damaged", 0, 0, "", error=first_line(record))
    description = record.description
    last = description.attempts[-1] if description.attempts else Attempt(status="interrupted")
    status, quiet = str(description.status), 0.0
    if status == "running":
        status, quiet = _running(folder)
    elif description.status in ENDED and not record.has_ended:
        status = "interrupted"  # its table is lost
    log = record.paths.log
    age = 0.0
    if last.started:
        age = (datetime.now(UTC) - datetime.fromisoformat(last.started)).total_seconds()
    return CellStatus(
        folder.name,
        status,
        description.final.epoch or record.table.epochs_trained(),
        description.config["trainer"]["max_epochs"],
        kind(description.config),
        where=f"{last.host}, process {last.pid}",
        age=max(age, 0.0),
        quiet=quiet,
        attempts=len(description.attempts),
        error=(last.error or "").strip().rpartition("\n")[2],
        log=log if log.exists() else None,
    )


def _running(folder: Path) -> tuple[str, float]:
    """Of a cell that was running when it was last heard of: whether it is, and how long ago."""
    found = lease_of(folder)
    if found is None:
        return "interrupted", 0.0
    worker, lease = found
    if is_known_alive(worker) is False:
        return "interrupted", 0.0
    try:
        return "running", max(time.time() - lease.stat().st_mtime, 0.0)
    except FileNotFoundError:  # released in this moment
        return "interrupted", 0.0


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")  # no name is cut where the terminal is narrow
    return table


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
