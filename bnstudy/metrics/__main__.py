"""Command that prints a table of all metrics: `python -m bnstudy.metrics`."""

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
from bnstudy.metrics import METRICS, SIMILARITIES, Similarity
from bnstudy.metrics.registry import Declaration

MAX_WIDTH = 160  # columns that the table may take in a narrower terminal
SETS = ("default", "fast", "paper")  # the set full has all metrics


def make_table() -> Table:
    """Create the table of all metrics: properties, sets, definition and source."""
    sets = {name: OmegaConf.load(CONFIG_FOLDER / "metrics" / f"{name}.yaml").names for name in SETS}
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("metric", "better", "range", "invariant", "needs", "sets"):
        table.add_column(column, no_wrap=column in ("metric", "range", "invariant"))
    table.add_column("definition and source")
    declared: list[Declaration] = [*METRICS.values(), *SIMILARITIES.values()]
    for family, members in groupby(declared, key=lambda entry: entry.family):
        table.add_section()
        table.add_row(f"[bold]{family}")
        for entry in members:
            table.add_row(
                entry.name,
                entry.direction or "",
                " to ".join(map(format_bound, entry.bounds)),
                " ".join(name[0].upper() for name in sorted(entry.invariant_to)),
                ", ".join(sorted(entry.needs)),
                ", ".join(name for name in SETS if entry.name in sets[name]),
                Text.assemble(
                    f"{entry.description.rstrip('.')}{_format_properties(entry)}\n",
                    (entry.source, "dim"),
                ),
            )
    return table


def _format_properties(entry: Declaration) -> str:
    if not isinstance(entry, Similarity):
        return ""
    return "; symmetric" * entry.is_symmetric + "; a metric" * entry.is_metric


def format_bound(value: float) -> str:
    """Format a smallest or largest possible value, such as 0 or ∞."""
    return f"{value:.3g}" if math.isfinite(value) else "∞" if value > 0 else "-∞"


def main() -> None:
    """Run the command."""
    argparse.ArgumentParser(
        "bnstudy.metrics", description="Print a table of all metrics."
    ).parse_args()
    console, table = Console(), make_table()
    # The table stays legible in a narrow terminal, or without one.
    width = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    Console(width=max(console.width, min(width, MAX_WIDTH))).print(table)
    console.print(
        "Invariant to: R rotation, S scale, T translation of the representations.\n"
        "Select a set with metrics=default, fast, paper or full (all except similarity), or single "
        "metrics with metrics.names=[silhouette,hoyer].\n"
        "Compute similarities with python -m bnstudy.measure similarity.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
