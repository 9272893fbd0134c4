"""What a sweep was to run, left in its study for those who ask how far it is."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from bnstudy.files import replacing
from bnstudy.sweeps.duration import kind
from bnstudy.sweeps.grid import Cell


class Planned(NamedTuple):
    """A cell that a sweep was to run.

    Attributes:
        kind: Of cells that take about as long.
        epochs: Of training.
    """

    kind: str
    epochs: int


def write_plan(study: Path, cells: Sequence[Cell]) -> None:
    """Leave the cells of a grid in a study; the same grid again replaces its plan.

    Args:
        study: Its folder.
        cells: That are in it.
    """
    plan = {
        cell.folder.name: Planned(kind(cell.config), cell.config["trainer"]["max_epochs"])
        for cell in cells
    }
    mark = hashlib.sha256("\n".join(plan).encode()).hexdigest()[:16]
    with replacing(study / ".sweeps" / f"{mark}.json") as temporary:
        temporary.write_text(json.dumps(plan))


def read_plans(study: Path) -> dict[str, Planned]:
    """By folder's name, every cell that the sweeps over a study were to run."""
    planned: dict[str, Planned] = {}
    for path in sorted((study / ".sweeps").glob("*.json")):
        with suppress(
            AttributeError, OSError, TypeError, ValueError
        ):  # a plan is a help, nothing depends on it
            planned |= {name: Planned(*cell) for name, cell in json.loads(path.read_text()).items()}
    return planned
