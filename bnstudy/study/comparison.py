"""The normalizations of a study beside each other, in one table for the terminal."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import duckdb
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from bnstudy.config import OF_EACH_NORM
from bnstudy.errors import UserError
from bnstudy.runs.identity import essence
from bnstudy.runs.record import WHOLE_MODEL, Record

# Of what was measured, what the table shows: the most telling of each family.
MAIN_METRICS = (
    "unit_sparsity",
    "channel_sparsity",
    "silhouette",
    "davies_bouldin",
    "within_between_ratio",
    "knn_purity",
    "kmeans_nmi",
)
PERFORMANCE: dict[tuple[str, str], Literal["higher", "lower"]] = {
    ("test", "accuracy"): "higher",
    ("validation", "accuracy"): "higher",
    ("train", "accuracy"): "higher",
    ("test", "loss"): "lower",
    ("validation", "loss"): "lower",
    ("train", "loss"): "lower",
}
ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}

TREATMENT = ("norm.", "regularizer.")  # keys of what is compared

Key = tuple[str, str, int, str]  # split, metric, layer's index, layer


@dataclass(frozen=True)
class Cell:
    """A run that has ended, as the table sees it.

    Attributes:
        group: What it shares with the runs it is compared with, but for the seed.
        variant: Its normalization, and its regularizer if it has one.
        diverged: Whether its loss was ever not finite.
        values: Of its last epoch, by split, metric and layer.
    """

    group: str
    variant: str
    diverged: bool
    values: dict[Key, float]


def show(study: Path, console: Console) -> None:
    """Print the comparison of a study's runs, and where everything lies."""
    records = []
    for path in sorted(study.glob("*/run.json")):
        try:
            records.append(Record.read(path.parent))
        except UserError as error:
            console.print(str(error), style="red")
    ended = [record for record in records if record.has_ended]
    if ended:
        table = _table(study, ended)
        # Whole also where the terminal is narrow or there is none.
        width = Measurement.get(console, console.options.update(max_width=1000), table).maximum
        Console(file=console.file, width=max(console.width, width)).print(table)
        console.print(
            "Layers: representations of the training split's probe set. "
            "* the better mean by the metric's direction; no test of significance.",
            style="dim",
        )
    counts = Counter(record.status for record in records)
    told = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    for what, where in (
        ("Study", f"{study}/ ({len(records)} cells: {told})"),
        ("Records", f"{study}/*/run.json"),
        ("Tables", f"{study}/*/metrics.parquet"),
        ("W&B", f"{study}/*/wandb/" if next(study.glob("*/wandb"), None) else None),
    ):
        if where:
            console.print(f"{what:<8} {where}", soft_wrap=True, highlight=False)


def _table(study: Path, records: Sequence[Record]) -> Table:
    cells = _cells(records)
    directions: dict[str, str | None] = {}
    for record in records:
        directions |= record.description["metrics"]
    groups = sorted({cell.group for cell in cells})
    variants = list(dict.fromkeys(cell.variant for cell in cells))

    table = Table(box=box.SIMPLE_HEAD, title=f"{study.name}: mean ± standard deviation over seeds")
    table.add_column("metric", no_wrap=True)
    table.add_column("layer", no_wrap=True)
    for variant in variants:
        table.add_column(variant, justify="right", no_wrap=True)
    for group in groups:
        table.add_section()
        of_variant = {
            variant: [c for c in cells if (c.group, c.variant) == (group, variant)]
            for variant in variants
        }
        table.add_row(Text(group, "bold"), "", *(_count(of_variant[name]) for name in variants))
        shown = None
        for key, direction in _rows(cells, directions):
            split, metric, index, layer = key
            label = f"{split} {metric}" if index < 0 else metric
            columns = [[cell.values.get(key, math.nan) for cell in of_variant[v]] for v in variants]
            if not any(columns) or all(math.isnan(value) for c in columns for value in c):
                continue
            table.add_row(
                "" if label == shown else label + ARROWS[direction],
                "" if index < 0 else layer,
                *_formatted(columns, direction),
            )
            shown = label
    return table


def _cells(records: Sequence[Record]) -> list[Cell]:
    values = _last_values([record.table_path for record in records])
    flat = [essence(record.description["config"]) for record in records]
    names = [_treatment(record) for record in records]
    # A variant is a norm, with a regularizer where there is one, and their options where those were
    # swept. What each has one value of, as a learning rate, belongs to it: it may be its own.
    of_name = [
        [config for config, other in zip(flat, names, strict=True) if other == name]
        for name in set(names)
    ]
    swept = {key for configs in of_name for key in _varying(configs)}
    variant_keys = {key for key in swept if key.startswith(TREATMENT)}
    variant_keys |= _varying(flat) & {f"{group}.{key}" for group, key in OF_EACH_NORM} - swept
    group_keys = (
        {key for key in _varying(flat) if not key.startswith(TREATMENT)} - variant_keys - {"seed"}
    )

    return [
        Cell(
            group=_describe(config, group_keys) or f"{config['trainer.max_epochs']} epochs",
            variant=f"{name} {_describe(config, variant_keys)}".strip(),
            diverged=record.status == "diverged",
            values=values[record.folder.name],
        )
        for record, config, name in zip(records, flat, names, strict=True)
    ]


def _treatment(record: Record) -> str:
    """The norm of a run, and what its training was regularized by."""
    norm = record.description["choices"]["norm"]
    regularizer = record.description["config"]["regularizer"]["name"]
    return str(norm) if regularizer == "none" else f"{norm} + {regularizer}"


def _varying(configs: Sequence[dict[str, Any]]) -> set[str]:
    """The keys that do not have the same value everywhere."""
    keys = {key for config in configs for key in config}
    return {key for key in keys if len({str(config.get(key)) for config in configs}) > 1}


def _describe(config: dict[str, Any], keys: set[str]) -> str:
    return " ".join(
        f"{key.rpartition('.')[2]}={config[key]}" for key in sorted(keys) if key in config
    )


def _last_values(tables: Sequence[Path]) -> dict[str, dict[Key, float]]:
    """By cell, the numbers of the last epoch; those of layers on the training split."""
    rows = duckdb.execute(
        """
        select filename, split, metric, layer_index,
               case when site is null or site = 'act' then layer else layer || '.' || site end,
               value
        from read_parquet($tables, filename = true)
        where layer_index < 0 or split = 'train'
        qualify epoch = max(epoch) over (partition by filename)
        order by layer_index
        """,
        {"tables": [str(path) for path in tables]},
    ).fetchall()
    values: dict[str, dict[Key, float]] = defaultdict(dict)
    for filename, *key, value in rows:
        values[Path(filename).parent.name][tuple(key)] = value
    return values


def _rows(cells: Sequence[Cell], directions: dict[str, str | None]) -> list[tuple[Key, str | None]]:
    """What the table has a row for, in order, with the metric's direction."""
    performance = [((*key, -1, WHOLE_MODEL), direction) for key, direction in PERFORMANCE.items()]
    measured = dict.fromkeys(key for cell in cells for key in cell.values if key[2] >= 0)
    names = [name for name in MAIN_METRICS if any(key[1] == name for key in measured)]
    layers = [
        (key, directions.get(name))
        for name in names or sorted({key[1] for key in measured})
        for key in sorted(measured, key=lambda key: (key[2], key[3]))
        if key[1] == name
    ]
    return [*performance, *layers]


def _count(cells: Sequence[Cell]) -> str:
    diverged = sum(cell.diverged for cell in cells)
    count = f"{len(cells)} seed{'s' if len(cells) != 1 else ''}"
    return f"{count}, {diverged} diverged" if diverged else count


def _formatted(columns: Sequence[Sequence[float]], direction: str | None) -> list[Text]:
    """Mean and standard deviation of each column, the better mean marked.

    Where a run has no value, as one that diverged, the rest of its column is not comparable: it
    says how many values it is of, and is never the better one.
    """
    known = [[value for value in column if math.isfinite(value)] for column in columns]
    means = [statistics.fmean(column) if column else math.nan for column in known]
    whole = [
        mean for mean, had, column in zip(means, known, columns, strict=True) if had == column != []
    ]
    best = None
    if direction and len(set(whole)) > 1:
        best = max(whole) if direction == "higher" else min(whole)
    texts = []
    for column, had, mean in zip(columns, known, means, strict=True):
        if not had:
            texts.append(Text("–  "))
            continue
        spread = f" ± {statistics.stdev(had):.3f}" if len(had) > 1 else ""
        some = f" ({len(had)} of {len(column)})" if len(had) < len(column) else ""
        better = not some and mean == best
        text = f"{mean:.3f}{spread}{some}{' *' if better else '  '}"
        texts.append(Text(text, "bold" if better else ""))
    return texts
