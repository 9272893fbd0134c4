"""The metrics there are, as a table. `python -m bnstudy.metrics`."""

import argparse
import math
from itertools import groupby

from omegaconf import OmegaConf
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from bnstudy.config import CONFIG_FOLDER
from bnstudy.metrics import METRICS, SIMILARITIES
from bnstudy.metrics.registry import Declaration

WIDTH = 160  # at least, but where less is enough
SETS = ("default", "fast", "paper")  # all are in full


def table() -> Table:
    """Name, direction, range, invariances, sets, definition and source of every metric."""
    sets = {name: OmegaConf.load(CONFIG_FOLDER / "metrics" / f"{name}.yaml").names for name in SETS}
    shown = Table(box=box.SIMPLE_HEAD)
    for column in ("metric", "better", "range", "invariant", "needs", "in", "what it is"):
        shown.add_column(column, no_wrap=column in ("metric", "range", "invariant"))
    declared: list[Declaration] = [*METRICS.values(), *SIMILARITIES.values()]
    for family, members in groupby(declared, key=lambda one: one.family):
        shown.add_section()
        shown.add_row(f"[bold]{family}")
        for one in members:
            shown.add_row(
                one.name,
                one.direction or "",
                f"{_bound(one.bounds[0])} to {_bound(one.bounds[1])}",
                " ".join(name[0].upper() for name in sorted(one.invariant_to)),
                ", ".join(sorted(one.needs)),
                ", ".join(name for name in SETS if one.name in sets[name]),
                Text.assemble(one.description.rstrip("."), "\n", (one.source, "dim")),
            )
    return shown


def _bound(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "∞" if value > 0 else "-∞"


def main() -> None:
    """The command line."""
    argparse.ArgumentParser("bnstudy.metrics", description=__doc__).parse_args()
    console, shown = Console(), table()
    # Legible also where the terminal is narrow or there is none.
    least = Measurement.get(console, console.options.update(max_width=1000), shown).maximum
    Console(width=max(console.width, min(least, WIDTH))).print(shown)
    console.print(
        "Invariant: to R rotation, S scale, T translation of the representations.\n"
        "Choose with metrics=default, fast, full (all but similarity) or paper; or by name, "
        "metrics.names=[silhouette,hoyer].\n"
        "Similarity: python -m bnstudy.measure similarity",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
