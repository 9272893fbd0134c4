"""Plans of sweeps: the cells to run, stored in the study's folder to show a sweep's progress."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from bnstudy.files import replacing
from bnstudy.sweeps.duration import timing_key
from bnstudy.sweeps.grid import Cell


class PlannedCell(NamedTuple):
    """Entry of a plan, from which the time that a cell takes is estimated.

    Attributes:
        timing_key: Hash shared by cells with similar run times.
        epochs: Number of epochs to train.
    """

    timing_key: str
    epochs: int


PLAN_SCHEMA = TypeAdapter(dict[str, PlannedCell])


def write_plan(study: Path, cells: Sequence[Cell]) -> None:
    """Write the plan of a grid to the study's folder; an earlier plan of the same grid is replaced.

    Args:
        study: Folder of the study.
        cells: Cells of the grid that belong to the study.
    """
    plan = {
        cell.folder.name: PlannedCell(timing_key(cell.config), cell.config["trainer"]["max_epochs"])
        for cell in cells
    }
    plan_id = hashlib.sha256("\n".join(plan).encode()).hexdigest()[:16]
    with replacing(study / ".sweeps" / f"{plan_id}.json") as temporary:
        temporary.write_text(json.dumps(plan))


def read_plans(study: Path) -> dict[str, PlannedCell]:
    """Read the planned cells of all sweeps of a study, by the name of the cell's folder."""
    planned: dict[str, PlannedCell] = {}
    for path in sorted((study / ".sweeps").glob("*.json")):
        # A damaged plan is ignored: plans are only used to display progress.
        with suppress(OSError, ValidationError):
            planned |= PLAN_SCHEMA.validate_json(path.read_bytes(), strict=True)
    return planned
