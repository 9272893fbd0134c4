"""Two-dimensional embeddings of a run's samples, one for each layer."""

import json
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.sparse.linalg import eigsh

from bnstudy.errors import UserError
from bnstudy.metrics import Undefined
from bnstudy.metrics.registry import check_needs
from bnstudy.representations import Layer
from bnstudy.representations.precision import in_float32
from bnstudy.runs.embedding_file import EMBEDDINGS_SCHEMA, read_embedding_file
from bnstudy.runs.parquet_file import write_table
from bnstudy.runs.record import Record
from bnstudy.terminal import console
from bnstudy.terms import Split
from bnstudy.trained.finished_run import FinishedRun
from bnstudy.trained.selection import Selection

UMAP_NEIGHBOURS = 15  # UMAP's default
FACTS_KEY = b"bnstudy"  # key in the Parquet file's metadata: epoch, selection and methods as JSON


def compute_principal_components(layer: Layer) -> tuple[np.ndarray, float]:
    """Project the samples onto their first two principal components, using the Gram matrix.

    The sign of a principal component is arbitrary. Here the sum of the cubed coordinates is not
    negative.

    Args:
        layer: Layer with at least 4 samples.

    Returns:
        Coordinates, float64, N x 2; and the share of the variance that they explain, from 0 to 1.
    """
    gram = layer.gram.double().cpu().numpy()
    # By default, eigsh starts from a random vector.
    start = np.random.default_rng(0).normal(size=len(gram))
    values, vectors = eigsh(gram, k=2, v0=start)
    values = values[::-1].clip(min=0)
    coordinates = vectors[:, ::-1] * np.sqrt(values)
    coordinates *= np.where((coordinates**3).sum(axis=0) < 0, -1, 1)
    return coordinates, float(values.sum() / gram.trace())


def compute_umap(layer: Layer) -> np.ndarray:
    """Embed the samples by UMAP (McInnes et al. 2018, arXiv 1802.03426) with default options.

    Args:
        layer: Layer whose distances between samples are embedded.

    Returns:
        Coordinates, float32, N x 2.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # UMAP warns that distances allow no inverse_transform
        from umap import UMAP  # not at the top, because the import takes seconds

        embedding: np.ndarray = UMAP(
            n_neighbors=min(UMAP_NEIGHBOURS, layer.num_samples - 1),
            metric="precomputed",
            random_state=0,
            n_jobs=1,
        ).fit_transform(layer.distances.cpu().numpy())
    return embedding


def list_methods() -> list[str]:
    """List the available embedding methods: PCA, and UMAP if it is installed."""
    return ["pca", "umap"] if find_spec("umap") else ["pca"]


def embed_layer(run: FinishedRun, split: Split, layer: Layer) -> Iterator[pa.Table]:
    """Embed a layer by each method, and yield one table of `EMBEDDINGS_SCHEMA` per method.

    If the distances between the samples are undefined, for example in a dead layer, the coordinates
    are null and the column `reason` says why.

    Args:
        run: Finished run, whose epoch and class names the tables contain.
        split: Split that the samples are from.
        layer: Layer to embed.
    """
    tap = layer.tap
    assert tap is not None
    class_names = run.record.data.classes
    labels = layer.labels.tolist()
    for method in list_methods():
        coordinates, share, reason = _compute_coordinates(layer, method)
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
        yield pa.table(columns, schema=EMBEDDINGS_SCHEMA)


def _compute_coordinates(layer: Layer, method: str) -> tuple[np.ndarray, float | None, str | None]:
    """Compute coordinates, explained share of variance, and the reason if they are undefined."""
    try:
        check_needs({"distances"}, layer)
    except Undefined as undefined:
        return np.full((layer.num_samples, 2), np.nan), None, str(undefined)
    with in_float32(layer.labels.device):
        if method == "umap":
            return compute_umap(layer), None, None
        return *compute_principal_components(layer), None


def embed_run(
    cell: Path, selection: Selection, epoch: int | None, progress: Callable[[str], None]
) -> None:
    """Write a run's embeddings into its folder, unless they exist already for this selection.

    Args:
        cell: Folder of the run.
        selection: Samples and sites to embed.
        epoch: Epoch of the weights; None: the last epoch.
        progress: Function that is called with a description of the next step.

    Raises:
        UserError: The run cannot be read, or another process is working on it.
    """
    with Record.open(cell) as record:
        run = FinishedRun.from_record(record, epoch)
        facts = {
            "epoch": run.epoch,
            "split": selection.split,
            "samples": selection.samples,
            "sites": sorted(set(selection.sites)),
        }
        path = record.paths.embeddings
        if _has_embeddings(path, facts):
            console.print(f"{path}: exists already")
            return
        tables: list[pa.Table] = []
        for layer in run.read_layers(selection):
            assert layer.tap is not None
            progress(f"layer {layer.tap.label}")
            tables += embed_layer(run, selection.split, layer)
            if reason := tables[-1]["reason"][0].as_py():
                console.print(
                    f"{cell}: {layer.tap.label} has no embedding: {reason}", style="yellow"
                )
            del layer  # frees its memory before the next layer is read
        metadata = {FACTS_KEY: json.dumps(facts | {"methods": list_methods()}).encode()}
        with record.replacing(path) as temporary:
            write_table(pa.concat_tables(tables), temporary, metadata)
        console.print(f"{path}: {', '.join(list_methods())} of epoch {run.epoch}")


def _has_embeddings(path: Path, facts: dict[str, Any]) -> bool:
    """Check whether a file holds the embeddings of a selection by every available method."""
    try:
        metadata = read_embedding_file(path).schema.metadata
        recorded = json.loads(metadata[FACTS_KEY])
        return set(list_methods()) <= set(recorded.pop("methods")) and recorded == facts
    except (FileNotFoundError, UserError, AttributeError, KeyError, TypeError, ValueError):
        return False  # no file, a damaged one, or metadata of something else
