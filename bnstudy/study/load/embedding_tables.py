"""Two-dimensional embeddings of samples, from the runs of a study that have them."""

from pathlib import Path

import pandas as pd

from bnstudy.errors import UserError
from bnstudy.runs.embedding_file import EMBEDDINGS_SCHEMA, read_embedding_file
from bnstudy.runs.paths import EMBEDDINGS
from bnstudy.study.load.database import select_layers
from bnstudy.study.load.study_runs import StudyRuns
from bnstudy.terminal import console
from bnstudy.terms import layer_label

# Limit on the embeddings that are read. Each is of one layer by one method, usually with 1,000
# samples.
MAX_EMBEDDINGS = 300

RUN_COLUMNS = ["cell", "treatment", "pair", "seed"]  # columns of `StudyRuns.runs`

NUMBERED_LAYERS = f"""
    select read.* exclude (layer_index, number), layers, position
    from read join ({select_layers("read")}) using (cell, site, layer)
    order by number, method, site, position, sample
"""


def find_runs_with_embeddings(study: StudyRuns) -> pd.DataFrame:
    """Find the runs that have ended and have embeddings.

    Args:
        study: Study whose runs are comparable.

    Returns:
        Columns cell, treatment, pair and seed of `StudyRuns.runs`, and file. Pairs in which more
        treatments have embeddings come first, then lower seeds.
    """
    runs = study.results[RUN_COLUMNS]
    runs = runs.assign(file=[study.folder / cell / EMBEDDINGS for cell in runs["cell"]])
    runs = runs[[file.is_file() for file in runs["file"]]]
    treatments = runs.groupby("pair")["treatment"].transform("nunique")
    ordered = runs.assign(fewer=-treatments).sort_values(["fewer", "seed", "pair", "cell"])
    return ordered.drop(columns="fewer").reset_index(drop=True)


def read_embeddings(study: StudyRuns) -> pd.DataFrame:
    """Read the embeddings of `python -m bnstudy.measure map`, for the first pairs of runs.

    Pairs are read as long as there are at most 300 embeddings; the first pair is read in any case.
    A file that cannot be read is reported and left out.

    Args:
        study: Study whose runs are comparable.

    Returns:
        One row per sample and embedding, in the order of `find_runs_with_embeddings`: cell,
        treatment, pair, seed, epoch, split, site, method (pca, umap), layer, layers and position
        (as in `StudyRuns.query`, among the layers that have embeddings), sample, label, class, x, y
        (NaN if the layer has no embedding), reason (why it has none), share (of the variance that
        the embedding explains; NaN for umap).
    """
    tables: list[pd.DataFrame] = []
    num_embeddings = 0
    for _, runs in find_runs_with_embeddings(study).groupby("pair", sort=False):
        embeddings_of_runs = [
            _read(run["file"]).assign(**{name: run[name] for name in RUN_COLUMNS})
            for run in runs.to_dict("records")
        ]
        num_embeddings += sum(
            len(embeddings.groupby(["layer", "method"])) for embeddings in embeddings_of_runs
        )
        if tables and num_embeddings > MAX_EMBEDDINGS:
            break
        tables += [embeddings for embeddings in embeddings_of_runs if len(embeddings)]
    if not tables:
        return pd.DataFrame(columns=[*RUN_COLUMNS, "site", "method", "layer"])
    table = pd.concat(
        [embeddings.assign(number=number) for number, embeddings in enumerate(tables)]
    )
    study.connection.register("read", table)
    numbered = study.query(NUMBERED_LAYERS)
    study.connection.unregister("read")
    return numbered


def _read(path: Path) -> pd.DataFrame:
    """Read a run's file, with layers named as in the long table; empty if it cannot be read."""
    try:
        table = read_embedding_file(path)
    except UserError as error:
        console.print(str(error), style="yellow")
        table = EMBEDDINGS_SCHEMA.empty_table()
    frame: pd.DataFrame = table.to_pandas()
    return frame.assign(layer=list(map(layer_label, frame["layer"], frame["site"])))
