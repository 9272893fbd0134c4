"""Where a run's samples lie in a plane, layer by layer. `python -m bnstudy.measure map --help`."""

import argparse
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse.linalg import eigsh

from bnstudy.measure import each_run, runs_below
from bnstudy.metrics import Undefined
from bnstudy.metrics.registry import check
from bnstudy.representations import Layer
from bnstudy.representations.sums import in_float32
from bnstudy.runs.lease import held
from bnstudy.runs.record import MAPS_SCHEMA, damage
from bnstudy.terminal import console
from bnstudy.terms import SITES, SPLITS, Split
from bnstudy.trained import Trained

HELP = """\
Where samples lie in a plane, for each layer of trained runs: by their first two principal
components, and by UMAP where it is installed (pip install -e '.[umap]').

  python -m bnstudy.measure map multirun/mnist5k_cnn
  python -m bnstudy.measure map multirun/mnist5k_cnn/CELL --samples 500 --epoch 0

Writes maps.parquet into each run's folder; bnstudy.report shows them. What is there already is not
made again.
"""

FEWEST = 4  # samples
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


def planes(run: Trained, split: Split, layer: Layer) -> Iterator[pa.Table]:
    """A layer's part of the file, a table for each method.

    Raises:
        Undefined: There are no distances between the samples, as where a layer is dead.
    """
    check({"distances"}, layer)
    tap = layer.tap
    assert tap is not None
    class_names = run.record.description["data"]["classes"]
    for method in methods():
        with in_float32(layer.labels.device):
            coordinates, share = (
                principal_components(layer) if method == "pca" else (umap(layer), None)
            )
        labels, count = layer.labels.tolist(), len(coordinates)
        columns = {
            "epoch": [run.epoch] * count,
            "split": [split] * count,
            "layer": [tap.layer] * count,
            "site": [tap.site] * count,
            "method": [method] * count,
            "sample": range(count),
            "label": labels,
            "class": [class_names[label] for label in labels],
            "x": coordinates[:, 0].astype(np.float32),
            "y": coordinates[:, 1].astype(np.float32),
            "share": [share] * count,
        }
        yield pa.table(columns, schema=MAPS_SCHEMA)


def make_maps(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        UserError: There is no such run.
    """
    parser = argparse.ArgumentParser(
        "bnstudy.measure map",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN_OR_STUDY_DIR")
    parser.add_argument("--epoch", type=int, metavar="N", help="whose weights; the last one's")
    parser.add_argument("--split", choices=SPLITS, default="test", help="whose samples; test")
    parser.add_argument("--samples", type=_enough, default=1000, metavar="N", help="how many; 1000")
    parser.add_argument("--sites", nargs="+", choices=SITES, default=["act"], help="act")
    options = parser.parse_args(arguments)
    cells = [cell for folder in options.folders for cell in runs_below(folder)]

    def map_one(cell: Path, say: Callable[[str], None]) -> None:
        _map_run(cell, options, say)

    each_run(cells, map_one, "mapped")


def _map_run(cell: Path, options: argparse.Namespace, say: Callable[[str], None]) -> None:
    with held(cell) as lease:
        run = Trained.of(cell, options.epoch)
        run.record.lease = lease
        facts = {
            "epoch": run.epoch,
            "split": options.split,
            "samples": options.samples,
            "sites": sorted(options.sites),
            "methods": methods(),
        }
        path = run.record.maps_path
        if facts_of(path) == facts:
            console.print(f"{path}: there already")
            return
        tables = [MAPS_SCHEMA.empty_table()]
        for layer in run.layers(options.split, options.samples, options.sites):
            say(f"layer {layer.name}")
            try:
                tables += planes(run, options.split, layer)
            except Undefined as reason:
                console.print(f"{cell}: {layer.name} has no map: {reason}", style="yellow")
            del layer  # before the next one is read
        table = pa.concat_tables(tables).replace_schema_metadata({FACTS: json.dumps(facts)})
        with run.record.replacing(path) as temporary:
            pq.write_table(table, temporary)
        console.print(f"{path}: {', '.join(facts['methods'])} of epoch {run.epoch}")


def facts_of(path: Path) -> dict[str, object] | None:
    """What the maps in a file are of; None where there is none, or it is damaged."""
    if damage(path, MAPS_SCHEMA):
        return None
    facts: dict[str, object] | None = json.loads(pq.read_schema(path).metadata[FACTS])
    return facts


def _enough(text: str) -> int:
    if not text.isdecimal() or int(text) < FEWEST:
        raise argparse.ArgumentTypeError(f"{text}: it takes an integer of at least {FEWEST}")
    return int(text)
