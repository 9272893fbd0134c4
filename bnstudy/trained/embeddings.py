"""Embeddings of a run's samples in a plane, layer by layer."""

import json
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse.linalg import eigsh

from bnstudy.errors import UserError
from bnstudy.metrics import Undefined
from bnstudy.metrics.registry import check
from bnstudy.representations import Layer
from bnstudy.representations.sums import in_float32
from bnstudy.runs.embedding_file import MAPS_SCHEMA, read_maps
from bnstudy.runs.record import Record
from bnstudy.terminal import console
from bnstudy.terms import Split
from bnstudy.trained.finished_run import FinishedRun
from bnstudy.trained.selection import Selection

NEIGHBOURS = 15  # of UMAP, its default
FACTS = b"bnstudy"  # the key of the file's metadata that holds what was asked for


def principal_components(layer: Layer) -> tuple[np.ndarray, float]:
    """The samples' coordinates along the two directions of most variance, from their Gram matrix.

    The sign of a direction means nothing: it is such that the sum of the cubes is positive.

    Args:
        layer: Of at least 4 samples.

    Returns:
        Coordinates, float64, N x 2; and the share of the variance that they hold, from 0 to 1.
    """
    gram = layer.gram.double().cpu().numpy()
    start = np.random.default_rng(0).normal(size=len(gram))  # otherwise it is another at each call
    values, vectors = eigsh(gram, k=2, v0=start)
    values = values[::-1].clip(min=0)
    coordinates = vectors[:, ::-1] * np.sqrt(values)
    coordinates *= np.where((coordinates**3).sum(axis=0) < 0, -1, 1)
    return coordinates, float(values.sum() / gram.trace())


def umap(layer: Layer) -> np.ndarray:
    """The samples' coordinates by UMAP (McInnes et al. 2018, arXiv 1802.03426), of its defaults.

    Args:
        layer: Whose distances it reads.

    Returns:
        Coordinates, float32, N x 2.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what cannot be done with distances alone
        from umap import UMAP  # it takes seconds

        found: np.ndarray = UMAP(
            n_neighbors=min(NEIGHBOURS, layer.num_samples - 1),
            metric="precomputed",
            random_state=0,
            n_jobs=1,
        ).fit_transform(layer.distances.cpu().numpy())
    return found


def methods() -> list[str]:
    """Those that can be had."""
    return ["pca", "umap"] if find_spec("umap") else ["pca"]


def planes(run: FinishedRun, split: Split, layer: Layer) -> Iterator[pa.Table]:
    """A layer's part of the file, a table for each method.

    A layer without distances between the samples, as where it is dead, has no places: null, with
    the reason.
    """
    tap = layer.tap
    assert tap is not None
    class_names = run.record.data.classes
    labels = layer.labels.tolist()
    for method in methods():
        coordinates, share, reason = _located(layer, method)
        facts = {
            "epoch": run.epoch,
            "split": split,
            "layer_index": tap.layer_index,
            "layer": tap.layer,
            "site": tap.site,
            "method": method,
            "share": share,
            "reason": reason,
        }
        columns = {
            "sample": range(len(labels)),
            "label": labels,
            "class": [class_names[label] for label in labels],
            "x": pa.array(coordinates[:, 0], pa.float32(), from_pandas=True),  # NaN is null
            "y": pa.array(coordinates[:, 1], pa.float32(), from_pandas=True),
        }
        columns |= {name: [fact] * len(labels) for name, fact in facts.items()}
        yield pa.table(columns, schema=MAPS_SCHEMA)


def _located(layer: Layer, method: str) -> tuple[np.ndarray, float | None, str | None]:
    """The samples' coordinates; of the variance, the share; and why all are NaN, if they are."""
    try:
        check({"distances"}, layer)
    except Undefined as undefined:
        return np.full((layer.num_samples, 2), np.nan), None, str(undefined)
    with in_float32(layer.labels.device):
        if method == "umap":
            return umap(layer), None, None
        return *principal_components(layer), None


def embed_run(
    cell: Path, selection: Selection, epoch: int | None, progress: Callable[[str], None]
) -> None:
    """Write a run's embeddings into its folder, unless they are there already.

    Args:
        cell: Folder of the run.
        selection: Part of the representations that is embedded.
        epoch: Epoch of the weights; None: the last one.
        progress: Called with what is done next.

    Raises:
        UserError: The run cannot be read, or works in another process.
    """
    with Record.held(cell) as record:
        run = FinishedRun.of(record, epoch)
        facts = {
            "epoch": run.epoch,
            "split": selection.split,
            "samples": selection.samples,
            "sites": sorted(set(selection.sites)),
        }
        path = record.paths.embeddings
        if _has_maps(path, facts):
            console.print(f"{path}: there already")
            return
        tables: list[pa.Table] = []
        for layer in run.layers(selection):
            assert layer.tap is not None
            progress(f"layer {layer.tap.label}")
            tables += planes(run, selection.split, layer)
            if reason := tables[-1]["reason"][0].as_py():
                console.print(f"{cell}: {layer.tap.label} has no map: {reason}", style="yellow")
            del layer  # before the next one is read
        about = {FACTS: json.dumps(facts | {"methods": methods()})}
        with record.replacing(path) as temporary:
            pq.write_table(pa.concat_tables(tables).replace_schema_metadata(about), temporary)
        console.print(f"{path}: {', '.join(methods())} of epoch {run.epoch}")


def _has_maps(path: Path, facts: dict[str, Any]) -> bool:
    """Whether a file has the maps that are asked for, by all methods that can be had."""
    try:
        metadata = read_maps(path).schema.metadata or {}
    except (FileNotFoundError, UserError):
        return False
    found = json.loads(metadata.get(FACTS, "{}"))
    return set(methods()) <= set(found.pop("methods", ())) and found == facts
