"""States of a grid's cells, derived from their records and leases."""

from collections.abc import Sequence
from typing import Literal

from bnstudy.errors import UserError
from bnstudy.runs.lease import find_occupied
from bnstudy.runs.paths import CellPaths
from bnstudy.runs.record import Record
from bnstudy.runs.version import VERSION
from bnstudy.sweeps.detached import find_queued
from bnstudy.sweeps.grid import Cell
from bnstudy.trained.measuring import find_missing_metrics

MAX_FAILURES = 3  # per cell, before a sweep skips it

State = Literal[
    "complete",
    "diverged",
    "not measurable",  # complete, but further metrics need checkpoints that were not kept
    "to measure",
    "to resume",
    "to run",
    "running elsewhere",
    "queued",  # its detached job is in SLURM's queue and does not hold the cell's lease yet
    "skipped",  # it failed too often
]
COMPLETE_STATES: tuple[State, ...] = ("complete", "diverged", "not measurable")
STATES_TO_LAUNCH: tuple[State, ...] = ("to measure", "to resume", "to run")


Recorded = Record | Literal["damaged"] | None  # None: no run was started


def read_record(cell: Cell) -> Recorded:
    """Read the record of a cell; `damaged` if it cannot be read, None if there is none."""
    if not CellPaths(cell.folder).record.exists():
        return None
    try:
        return Record.read(cell.folder)
    except UserError:  # the next run of the cell renames the file
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
    states = [
        _determine_by_record(cell, record) for cell, record in zip(cells, records, strict=True)
    ]
    index_of = {
        cell.folder: index for index, cell in enumerate(cells) if states[index] in STATES_TO_LAUNCH
    }
    for folder in find_queued([cells[index] for index in index_of.values()]):
        states[index_of[folder]] = "queued"
    for folder in find_occupied(index_of):
        states[index_of[folder]] = "running elsewhere"
    return states


def _determine_by_record(cell: Cell, record: Recorded) -> State:
    """Determine the state of a cell that no process is working in."""
    if not isinstance(record, Record):
        # The next run renames a damaged record, and resumes from a checkpoint if there is one.
        return "to resume" if record == "damaged" else "to run"
    description = record.description
    if record.is_finished:
        # With equal settings nothing is missing. The table is not read then, because that would be
        # slow for thousands of cells. Cells of other versions are not measured again.
        requested = cell.config["metrics"]
        if description.config.get("metrics") != requested and description.version == VERSION:
            possible, impossible = find_missing_metrics(record, requested)
            if possible or impossible:
                return "to measure" if possible else "not measurable"
        return "diverged" if description.status == "diverged" else "complete"
    if description.status == "failed" and description.num_failures >= MAX_FAILURES:
        return "skipped"
    return "to resume" if record.paths.last_checkpoint.exists() else "to run"
