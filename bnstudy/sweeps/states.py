"""States of a grid's cells, derived from their records and leases."""

from collections.abc import Sequence
from typing import Literal

from bnstudy.errors import UserError
from bnstudy.runs.lease import find_occupied
from bnstudy.runs.paths import CellPaths
from bnstudy.runs.record import Record
from bnstudy.runs.version import VERSION
from bnstudy.sweeps.detached import queued
from bnstudy.sweeps.grid import Cell
from bnstudy.trained.measuring import missing_metrics

MAX_FAILURES = 3  # per cell, before a sweep skips it

State = Literal[
    "complete",
    "diverged",
    "not measurable",  # complete, but further metrics need checkpoints that were not kept
    "to measure",
    "to resume",
    "to run",
    "running elsewhere",
    "queued",  # its detached job has not begun, or is just beginning
    "skipped",  # it failed too often
]
FINISHED: tuple[State, ...] = ("complete", "diverged", "not measurable")
MISSING: tuple[State, ...] = ("to measure", "to resume", "to run")


Recorded = Record | Literal["damaged"] | None  # None: no run was started


def read_record(cell: Cell) -> Recorded:
    """Read the record of a cell; `damaged` if it cannot be read, None if there is none."""
    if not CellPaths(cell.folder).record.exists():
        return None
    try:
        return Record.read(cell.folder)
    except UserError:  # the next run of the cell moves it aside
        return "damaged"


def determine_states(cells: Sequence[Cell], records: Sequence[Recorded]) -> list[State]:
    """Determine the state of each cell from its record and its lease.

    Leases held on other machines are watched for a few seconds, all at the same time.

    Args:
        cells: Cells of a grid.
        records: Record of each cell.

    Returns:
        State of each cell, in the order of `cells`.
    """
    states = [_by_record(cell, record) for cell, record in zip(cells, records, strict=True)]
    index_of = {cell.folder: index for index, cell in enumerate(cells) if states[index] in MISSING}
    for folder in queued([cells[index] for index in index_of.values()]):
        states[index_of[folder]] = "queued"
    for folder in find_occupied(index_of):
        states[index_of[folder]] = "running elsewhere"
    return states


def _by_record(cell: Cell, record: Recorded) -> State:
    if not isinstance(record, Record):
        return "to resume" if record else "to run"
    description = record.description
    if record.is_finished:
        # Equal settings need no look into the table, which would be slow for thousands of cells.
        # Cells of other versions are not measured again.
        asked = cell.config["metrics"]
        if description.config.get("metrics") != asked and description.version == VERSION:
            possible, impossible = missing_metrics(record, asked)
            if possible or impossible:
                return "to measure" if possible else "not measurable"
        return "diverged" if description.status == "diverged" else "complete"
    if description.status == "failed" and description.failures >= MAX_FAILURES:
        return "skipped"
    return "to resume" if record.paths.last_checkpoint.exists() else "to run"
