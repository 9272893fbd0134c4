"""What the records say of the cells of a grid."""

from collections.abc import Sequence
from typing import Literal

from bnstudy.errors import UserError
from bnstudy.runs.lease import is_known_alive, lease_of, watch
from bnstudy.runs.paths import CellPaths
from bnstudy.runs.record import Record
from bnstudy.runs.version import VERSION
from bnstudy.sweeps.grid import Cell
from bnstudy.trained.measuring import missing_metrics

GIVEN_UP_AFTER = 3  # failures

State = Literal[
    "complete",
    "diverged",
    "not measurable",  # complete, but what is asked for would need checkpoints that were not kept
    "to measure",
    "to resume",
    "to run",
    "running elsewhere",
    "left alone",
]
ENDED: tuple[State, ...] = ("complete", "diverged", "not measurable")
MISSING: tuple[State, ...] = ("to measure", "to resume", "to run")


Recorded = Record | Literal["damaged"] | None  # None where no run was begun


def read_record(cell: Cell) -> Recorded:
    """The record of a cell."""
    if not CellPaths(cell.folder).record.exists():
        return None
    try:
        return Record.read(cell.folder)
    except UserError:  # whoever works there next sets it aside
        return "damaged"


def states(cells: Sequence[Cell], records: Sequence[Recorded]) -> list[State]:
    """The state of each cell, by its record and its lease.

    Leases that are held on other machines are watched for some seconds, all of them together.

    Args:
        cells: Cells of a grid.
        records: The record of each.
    """
    known = [_by_record(cell, record) for cell, record in zip(cells, records, strict=True)]
    unknown = {}
    for place, cell in enumerate(cells):
        if known[place] in MISSING and (found := lease_of(cell.folder)):
            worker, lease = found
            match is_known_alive(worker):
                case True:
                    known[place] = "running elsewhere"
                case None:
                    unknown[lease] = place
    for lease in watch(list(unknown)):
        known[unknown[lease]] = "running elsewhere"
    return known


def _by_record(cell: Cell, record: Recorded) -> State:
    if not isinstance(record, Record):
        return "to resume" if record else "to run"
    described = record.description
    if record.has_ended:
        # What it was trained with needs no look into the table, of which there may be thousands.
        # A cell of another version is not measured again.
        asked = cell.config["metrics"]
        if described.config.get("metrics") != asked and described.version == VERSION:
            possible, impossible = missing_metrics(record, asked)
            if possible or impossible:
                return "to measure" if possible else "not measurable"
        return "diverged" if described.status == "diverged" else "complete"
    if described.status == "failed" and described.failures >= GIVEN_UP_AFTER:
        return "left alone"
    return "to resume" if record.paths.last_checkpoint.exists() else "to run"
