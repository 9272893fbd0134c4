"""How alike the layers of two runs are. `python -m bnstudy.measure similarity --help`."""

import argparse
import csv
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bnstudy.errors import UserError
from bnstudy.files import replacing
from bnstudy.measure import progress_bar
from bnstudy.metrics import SIMILARITIES, Similarity
from bnstudy.representations import Layer
from bnstudy.runs.environment import environment
from bnstudy.study.heat_map import draw
from bnstudy.terminal import console
from bnstudy.trained import Trained, add_options

HELP = """\
How alike the layers of two runs are, or those of one run to each other: linear CKA, debiased CKA
and the Procrustes shape distance (in radians), as matrices, layers of RUN_A x layers of RUN_B.

  python -m bnstudy.measure similarity multirun/STUDY/CELL_A multirun/STUDY/CELL_B
  python -m bnstudy.measure similarity multirun/STUDY/CELL_A

Writes <metric>.csv, <metric>.svg, <metric>.png and similarity.json.
"""


def _layers(run: Trained, options: argparse.Namespace) -> list[Layer]:
    """A run's layers in the order of computation: their inner products, without activations."""
    layers = []
    for layer in run.layers(options.split, options.samples, options.sites, options.memory_budget):
        layer.let_go_of_activations()
        layers.append(layer)
    return sorted(layers, key=lambda layer: layer.index)


def matrix(
    similarity: Similarity,
    rows: Sequence[Layer],
    columns: Sequence[Layer],
    advance: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """A similarity of some layers to others: float64, rows x columns; NaN where undefined."""
    values = np.empty((len(rows), len(columns)))
    for i, j in itertools.product(range(len(rows)), range(len(columns))):
        known = rows is columns and j < i  # similarities are symmetric
        values[i, j] = values[j, i] if known else similarity(rows[i], columns[j])
        advance()
    return values


def compare(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        UserError: A run cannot be compared.
    """
    parser = argparse.ArgumentParser(
        "bnstudy.measure similarity",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="the folder of a run")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", nargs="?", help="another; else RUN_A")
    add_options(parser)
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="STUDY/similarity/<cell A>~<cell B>"
    )
    options = parser.parse_args(arguments)
    sides = [Trained.of(options.run_a, options.epoch)]
    if options.run_b is not None:
        sides.append(Trained.of(options.run_b, options.epoch))
    if len({side.record.description["data"]["sha256"] for side in sides}) > 1:
        raise UserError(
            f"{options.run_a} and {options.run_b} were trained on different images; similarities "
            "compare representations of the same samples"
        )
    # Where as many of the same images are left to train on, they are the same ones.
    trained_on = {side.record.description["data"]["train"] for side in sides}
    if options.split == "train" and len(trained_on) > 1:
        raise UserError(
            f"{options.run_a} and {options.run_b} differ in data.validation, and so in the samples "
            "of the training split; compare them with --split test"
        )
    output: Path = options.output or (
        options.run_a.resolve().parent / "similarity" / "~".join(side.name for side in sides)
    )
    matrices, labels = _matrices(sides, options)
    axes = (
        f"{sides[0].name}, epoch {sides[0].epoch}",
        f"{sides[-1].name}, epoch {sides[-1].epoch}",
    )
    for name, values in matrices.items():
        _write_table(output / f"{name}.csv", values, *labels)
        low, high = SIMILARITIES[name].bounds
        draw(
            values,
            *labels,
            title=f"{name}, {options.samples} samples of the {options.split} split",
            axes=axes,
            bounds=(max(low, 0), high),
            lower_is_brighter=SIMILARITIES[name].direction == "lower",  # alike is bright
            path=output / name,
        )
    facts = {
        "runs": [
            {
                "folder": str(side.record.folder),
                "id": side.record.description["id"],
                "attempts": len(side.record.description["attempts"]),
                "epoch": side.epoch,
            }
            for side in sides
        ],
        "split": options.split,
        "samples": options.samples,
        "sites": options.sites,
        "environment": environment(),
    }
    with replacing(output / "similarity.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n")
    for what, ending in (("Tables", "csv"), ("Figures", "svg"), ("Figures", "png")):
        console.print(f"{what:<8} {output}/{{{','.join(matrices)}}}.{ending}")


def _matrices(
    sides: Sequence[Trained], options: argparse.Namespace
) -> tuple[dict[str, np.ndarray], tuple[list[str], list[str]]]:
    """By similarity, its matrix; and the names of the rows and columns."""
    with progress_bar("pairs of layers") as bar:
        task = bar.add_task("reading representations", total=None)
        of_sides = [_layers(side, options) for side in sides]
        rows, columns = of_sides[0], of_sides[-1]
        bar.update(task, total=len(SIMILARITIES) * len(rows) * len(columns))
        matrices = {}
        for name, similarity in SIMILARITIES.items():
            bar.update(task, description=name)
            matrices[name] = matrix(similarity, rows, columns, lambda: bar.advance(task))
    return matrices, (_labels(rows), _labels(columns))


def _labels(layers: Sequence[Layer]) -> list[str]:
    return [layer.tap.label for layer in layers if layer.tap]


def _write_table(
    path: Path, values: np.ndarray, rows: Sequence[str], columns: Sequence[str]
) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["layer", *columns])
        for name, row in zip(rows, values.tolist(), strict=True):
            table.writerow([name, *row])
