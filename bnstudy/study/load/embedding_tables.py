"""Embeddings of samples in a plane, of the runs of a study that kept them."""

from pathlib import Path

import pandas as pd

from bnstudy.errors import UserError
from bnstudy.runs.embedding_file import MAPS_SCHEMA, read_maps
from bnstudy.runs.paths import EMBEDDINGS
from bnstudy.study.load.database import select_layers
from bnstudy.study.load.study_runs import StudyRuns
from bnstudy.terminal import console
from bnstudy.terms import layer_label

MAX_PICTURES = 300  # of a layer by a method, in each 1,000 samples unless others were asked for

RUN_COLUMNS = ["cell", "treatment", "pair", "seed"]  # columns of the runs

NUMBERED_LAYERS = f"""
    select read.* exclude (layer_index, number), layers, position
    from read join ({select_layers("read")}) using (cell, site, layer)
    order by number, method, site, position, sample
"""


def find_runs_with_maps(study: StudyRuns) -> pd.DataFrame:
    """Find the runs that have ended and kept maps, those first that are to be shown first.

    Runs of a pair stand together: pairs in which the most treatments have maps, then first seeds.

    Returns:
        Of `StudyRuns.runs` the columns cell, treatment, pair and seed; and file.
    """
    runs = study.results[RUN_COLUMNS]
    runs = runs.assign(file=[study.folder / cell / EMBEDDINGS for cell in runs["cell"]])
    runs = runs[[file.is_file() for file in runs["file"]]]
    treatments = runs.groupby("pair")["treatment"].transform("nunique")
    order = runs.assign(fewer=-treatments).sort_values(["fewer", "seed", "pair", "cell"])
    return order.drop(columns="fewer").reset_index(drop=True)


def read_embeddings(study: StudyRuns) -> pd.DataFrame:
    """Read the maps that `python -m bnstudy.measure map` made, of the first pairs of runs.

    Of as many pairs as have 300 pictures; a file that cannot be read is told and left out.

    Args:
        study: Its runs that have ended are looked at.

    Returns:
        One row a sample of a map, in the order of `find_runs_with_maps`: cell, treatment, pair,
        seed, epoch, split, site, method (pca, umap), layer, layers and position (as in
        `StudyRuns.query`, of the layers that have maps), sample, label, class, x, y (NaN where
        there is no map, and reason says why), share (of the variance that the plane
        holds; NaN of umap).
    """
    found: list[pd.DataFrame] = []
    pictures = 0
    for _, runs in find_runs_with_maps(study).groupby("pair", sort=False):
        of_pair = [
            _read(run["file"]).assign(**{name: run[name] for name in RUN_COLUMNS})
            for run in runs.to_dict("records")
        ]
        pictures += sum(len(one.groupby(["layer", "method"])) for one in of_pair)
        if found and pictures > MAX_PICTURES:
            break
        found += [one for one in of_pair if len(one)]
    if not found:
        return pd.DataFrame(columns=[*RUN_COLUMNS, "site", "method", "layer"])
    table = pd.concat([one.assign(number=number) for number, one in enumerate(found)])
    study.connection.register("read", table)
    numbered = study.query(NUMBERED_LAYERS)
    study.connection.unregister("read")
    return numbered


def _read(path: Path) -> pd.DataFrame:
    """A run's file; a layer is named as in the long table. Nothing where it cannot be read."""
    try:
        table = read_maps(path)
    except UserError as error:
        console.print(str(error), style="yellow")
        table = MAPS_SCHEMA.empty_table()
    frame: pd.DataFrame = table.to_pandas()
    return frame.assign(layer=list(map(layer_label, frame["layer"], frame["site"])))
