"""Table in the terminal that compares the treatments of a study."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from bnstudy.headline import HEADLINE_METRICS, choose_measured
from bnstudy.runs.long_table import WHOLE_MODEL
from bnstudy.runs.paths import RECORD, TABLE, WANDB
from bnstudy.study.inference.resolution import RESOLUTION
from bnstudy.study.load.records import UNREADABLE
from bnstudy.study.load.study_runs import StudyRuns
from bnstudy.terms import FUSED_NORMS, ZERO_METRICS, format_count, natural_key

# Split and metric of the rows about the whole model, with the direction of better values.
PERFORMANCE_ROWS: dict[tuple[str, str], Literal["higher", "lower"]] = {
    ("test", "accuracy"): "higher",
    ("validation", "accuracy"): "higher",
    ("train", "accuracy"): "higher",
    ("test", "loss"): "lower",
    ("validation", "loss"): "lower",
    ("train", "loss"): "lower",
}
ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}

Key = tuple[str, str, str]  # split, metric, layer

# Values after the last epoch: of the whole model on all splits, of layers on the training split.
# Activations come before other sites, because act is the first site by name.
TABLE_NUMBERS = """
    select grid, treatment, norm, split, metric, layer, value
    from final join runs using (cell)
    where layer_index < 0 or split = 'train'
    order by site, position, layer, cell
"""


def print_table(folder: Path, console: Console) -> None:
    """Print the comparison of a study's runs, and the paths of its files."""
    study = StudyRuns.read(folder)
    runs = study.runs
    for remark in runs.loc[runs["status"] == UNREADABLE, "remark"]:
        console.print(remark, style="red")
    if len(study.results):
        for part in study.parts:
            if len(study.parts) > 1:
                size = format_count(len(part.results), "run")
                heading = f"{size} of {part.measured_on}, not comparable with the others:"
                console.print(heading, style="yellow", soft_wrap=True, highlight=False)
            table = _build_table(part)
            # The table keeps its full width in a narrow terminal, or without one.
            width = Measurement.get(console, console.options.update(max_width=1000), table).maximum
            Console(file=console.file, width=max(console.width, width)).print(table)
        if duplicates := study.runs["duplicate_of"].notna().sum():
            console.print(f"Not counted again: {format_count(duplicates, 'repeated run')}.")
        console.print(
            "Layers: values of the training split's probe set. "
            "* marks the better mean; it is not a test of significance.",
            style="dim",
        )
        fused = sorted({*study.results["norm"]} & {*FUSED_NORMS})
        if fused and study.directions.keys() & {*ZERO_METRICS}:
            console.print(
                f"Counts of zeros are left out for norms without a ReLU ({', '.join(fused)}).",
                style="dim",
            )
    for label, where in (
        ("Study", f"{folder}/ ({study.counts()})"),
        ("Records", f"{folder}/*/{RECORD}"),
        ("Tables", f"{folder}/*/{TABLE}"),
        ("W&B", f"{folder}/*/{WANDB}/" if next(folder.glob(f"*/{WANDB}"), None) else None),
    ):
        if where:
            console.print(f"{label:<8} {where}", soft_wrap=True, highlight=False)


def _build_table(study: StudyRuns) -> Table:
    results = study.results
    runs = Counter(zip(results["grid"], results["treatment"], strict=True))
    with_divergence = results[results["status"] == "diverged"]
    diverged = Counter(zip(with_divergence["grid"], with_divergence["treatment"], strict=True))
    values: dict[tuple[str, str, Key], list[float]] = defaultdict(list)
    for grid, treatment, norm, split, metric, layer, value in study.connection.execute(
        TABLE_NUMBERS
    ).fetchall():
        if not (norm in FUSED_NORMS and metric in ZERO_METRICS):
            values[grid, treatment, (split, metric, layer)].append(value)
    treatments = list(dict.fromkeys(results["treatment"]))
    settings = dict(zip(results["treatment"], results["own"], strict=True))

    table = Table(box=box.SIMPLE_HEAD, title=f"{study.name}: mean ± standard deviation over seeds")
    table.add_column("metric", no_wrap=True)
    table.add_column("layer", no_wrap=True)
    for treatment in treatments:
        heading = f"{treatment} {settings[treatment]}".strip()
        table.add_column(heading, justify="right", no_wrap=True)
    for grid in sorted(set(results["grid"]), key=natural_key):
        table.add_section()
        cells = [(grid, treatment) for treatment in treatments]
        where = Text(grid or format_count(int(results["last_epoch"].max()), "epoch"), "bold")
        table.add_row(where, "", *(_format_seeds(runs[cell], diverged[cell]) for cell in cells))
        shown = None
        for key, direction in _list_rows(
            dict.fromkeys(key for *_, key in values), study.directions
        ):
            split, metric, layer = key
            is_of_model = layer == WHOLE_MODEL
            label = f"{split} {metric}" if is_of_model else metric
            columns = [values.get((*cell, key), []) for cell in cells]
            if not any(math.isfinite(value) for column in columns for value in column):
                continue
            table.add_row(
                "" if label == shown else label + ARROWS[direction],
                "" if is_of_model else layer,
                *_format_means(columns, [runs[cell] for cell in cells], direction),
            )
            shown = label
    return table


def _list_rows(
    keys: Iterable[Key], directions: dict[str, str | None]
) -> list[tuple[Key, str | None]]:
    """List the rows of the table in order, with the metrics' directions."""
    performance = [((*key, WHOLE_MODEL), direction) for key, direction in PERFORMANCE_ROWS.items()]
    measured = [key for key in keys if key[2] != WHOLE_MODEL]
    names = choose_measured(HEADLINE_METRICS, {key[1] for key in measured})
    layers = [
        (key, directions.get(name))
        for name in names or sorted({key[1] for key in measured})
        for key in measured
        if key[1] == name
    ]
    return [*performance, *layers]


def _format_seeds(runs: int, diverged: int) -> str:
    count = format_count(runs, "seed")
    return f"{count}, {diverged} diverged" if diverged else count


def _format_means(
    columns: Sequence[Sequence[float]], runs: Sequence[int], direction: str | None
) -> list[Text]:
    """Format mean and standard deviation of each column, and mark the better mean.

    A column in which runs have no value, for example because they diverged, is not comparable. It
    shows the number of its values and is never marked.

    Args:
        columns: Values of each column.
        runs: Number of runs of each column.
        direction: Better values: higher, lower or None.
    """
    known = [[value for value in column if math.isfinite(value)] for column in columns]
    means = [statistics.fmean(column) if column else math.nan for column in known]
    comparable = [
        mean for mean, finite, n in zip(means, known, runs, strict=True) if len(finite) == n > 0
    ]
    best = None
    if comparable and direction:
        low, high = min(comparable), max(comparable)
        if not math.isclose(low, high, rel_tol=RESOLUTION):
            best = high if direction == "higher" else low
    texts = []
    for n, finite, mean in zip(runs, known, means, strict=True):
        if not finite:
            texts.append(Text("–  "))
            continue
        spread = f" ± {statistics.stdev(finite):.3f}" if len(finite) > 1 else ""
        counted = f" ({len(finite)} of {n})" if len(finite) < n else ""
        better = not counted and best is not None and math.isclose(mean, best, rel_tol=RESOLUTION)
        text = f"{mean:.3f}{spread}{counted}{' *' if better else '  '}"
        texts.append(Text(text, "bold" if better else ""))
    return texts
