"""Similarity matrices between the layers of two finished runs."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bnstudy.errors import UserError
from bnstudy.files import replacing
from bnstudy.metrics import SIMILARITIES, Similarity
from bnstudy.representations import Layer
from bnstudy.study.present.heat_map import write_heat_map
from bnstudy.terminal import console, progress_bar
from bnstudy.trained.finished_run import FinishedRun
from bnstudy.trained.selection import Selection
from bnstudy.training.environment import describe_environment


def _read_layers(run: FinishedRun, selection: Selection) -> list[Layer]:
    """Read what similarities need of the layers of a run, in the order of computation."""
    layers = []
    for layer in run.read_layers(selection):
        layer.release_activations()
        layers.append(layer)
    return sorted(layers, key=lambda layer: layer.index)


def compute_matrix(
    similarity: Similarity,
    rows: Sequence[Layer],
    columns: Sequence[Layer],
    advance: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Compute a similarity for each pair of layers.

    Args:
        similarity: Similarity of two layers.
        rows: Layers of the matrix's rows.
        columns: Layers of the matrix's columns.
        advance: Function that is called after each pair.

    Returns:
        Similarities, float64, rows x columns; NaN where undefined.
    """
    values = np.empty((len(rows), len(columns)))
    for i, j in np.ndindex(values.shape):
        is_mirrored = similarity.is_symmetric and rows is columns and j < i
        values[i, j] = values[j, i] if is_mirrored else similarity(rows[i], columns[j])
        advance()
    return values


def compare_runs(
    run_a: Path,
    run_b: Path | None,
    selection: Selection,
    epoch: int | None = None,
    output: Path | None = None,
) -> None:
    """Write the similarities between the layers of two runs, or among those of one run.

    Args:
        run_a: Folder of a run.
        run_b: Folder of another run; None: `run_a` is compared with itself.
        selection: Samples and sites to compare.
        epoch: Epoch of the weights; None: the last epoch of each run.
        output: Folder for the files; None: STUDY/similarity/<cell A>~<cell B>, or for one run
            STUDY/similarity/<cell A>.

    Raises:
        UserError: A run cannot be compared.
    """
    runs = [FinishedRun.open(folder, epoch) for folder in (run_a, run_b) if folder is not None]
    if len({run.record.data.sha256 for run in runs}) > 1:
        raise UserError(
            f"{run_a} and {run_b} were trained on different images; similarities "
            "compare representations of the same samples"
        )
    if selection.split == "train" and len(set(map(_describe_training_split, runs))) > 1:
        raise UserError(
            f"{run_a} and {run_b} differ in data.validation or data.samples_per_class, and so in "
            "the samples of the training split; compare them with --split test"
        )
    output = output or run_a.resolve().parent / "similarity" / "~".join(run.name for run in runs)
    matrices, labels = _compute_matrices(runs, selection)
    first, last = (f"{run.name}, epoch {run.epoch}" for run in (runs[0], runs[-1]))
    for name, values in matrices.items():
        _write_csv(output / f"{name}.csv", values, *labels)
        low, high = SIMILARITIES[name].bounds
        write_heat_map(
            values,
            *labels,
            title=f"{name}, {selection.samples} samples of the {selection.split} split",
            axes=(first, last),
            bounds=(max(low, 0), high),  # a negative similarity has the colour of 0
            lower_is_brighter=SIMILARITIES[name].direction == "lower",  # similar layers are bright
            path=output / name,
        )
    facts = {
        "runs": [
            {
                "folder": str(run.record.folder),
                "id": run.record.description.id,
                "attempts": len(run.record.description.attempts),
                "epoch": run.epoch,
            }
            for run in runs
        ],
        "split": selection.split,
        "samples": selection.samples,
        "sites": list(selection.sites),
        "similarities": {
            name: {
                "direction": similarity.direction,
                "is_metric": similarity.is_metric,
                "is_symmetric": similarity.is_symmetric,
                "invariant_to": sorted(similarity.invariant_to),
            }
            for name, similarity in SIMILARITIES.items()
        },
        "environment": describe_environment(output).model_dump(),
    }
    with replacing(output / "similarity.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n")
    for label, ending in (("Tables", "csv"), ("Figures", "svg"), ("Figures", "png")):
        console.print(f"{label:<8} {output}/{{{','.join(matrices)}}}.{ending}")


def _describe_training_split(run: FinishedRun) -> tuple[Any, ...]:
    """Return the number of a run's training samples, and the options that selected them."""
    options = run.record.description.config["data"]
    validation, samples_per_class = options.get("validation"), options.get("samples_per_class")
    return run.record.data.train, validation or 0, samples_per_class


def _compute_matrices(
    runs: Sequence[FinishedRun], selection: Selection
) -> tuple[dict[str, np.ndarray], tuple[list[str], list[str]]]:
    """Compute the matrix of each similarity, and the labels of the rows and columns."""
    with progress_bar("pairs of layers") as bar:
        task = bar.add_task("reading representations", total=None)
        layers = [_read_layers(run, selection) for run in runs]
        rows, columns = layers[0], layers[-1]
        bar.update(task, total=len(SIMILARITIES) * len(rows) * len(columns))
        matrices = {}
        for name, similarity in SIMILARITIES.items():
            bar.update(task, description=name)
            matrices[name] = compute_matrix(similarity, rows, columns, lambda: bar.advance(task))
    return matrices, (_list_labels(rows), _list_labels(columns))


def _list_labels(layers: Sequence[Layer]) -> list[str]:
    return [layer.tap.label for layer in layers if layer.tap]


def _write_csv(path: Path, values: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["layer", *columns])
        for name, row in zip(rows, values.tolist(), strict=True):
            table.writerow([name, *row])
