"""Values that the page's figures draw, in the form that page.js reads.

Values are arrays of float32 (little endian, base64), NaN where there is no value.
"""

import base64
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bnstudy.headline import in_words
from bnstudy.runs.long_table import WHOLE_MODEL
from bnstudy.study.analysis import Analysis
from bnstudy.study.inference import mean, spread
from bnstudy.study.inference.columns import FloatArray
from bnstudy.study.inference.paired import MIN_PAIRS_FOR_TEST, MIN_PAIRS_TO_FLIP
from bnstudy.study.load.embedding_tables import find_runs_with_embeddings
from bnstudy.study.load.matrix import KEYS, RELATIVE_DEPTHS, count_layers, load_columns
from bnstudy.study.load.study_runs import StudyRuns
from bnstudy.study.present.labels import label_of
from bnstudy.terms import format_count, natural_key

MAX_NUMBERS = 1_200_000  # values of runs: 6 MB of base64
MAX_SAMPLES = 150_000  # samples of embeddings: 2 MB of base64
MAX_SAMPLES_OF_EMBEDDING = 500
MIN_EPOCHS = 5  # epochs per run; if fewer fit, seeds are averaged

EMBEDDING_FACTS = [
    *("cell", "pair", "method", "site", "layer", "layers", "position"),
    *("epoch", "split", "share", "reason"),
]
EFFECTS = (
    *("n", "undefined", "difference", "low", "high", "p", "p_adjusted"),
    *("cohens_d", "rank_biserial"),
)
CURVES = ("n", "undefined", "difference", "low", "high")


def embed_numbers(analysis: Analysis) -> dict[str, Any]:
    """Collect the values that page.js draws.

    Args:
        analysis: Analysis of the study.

    Returns:
        - baseline and treatments (in words, the baseline first), model (place of the whole model's
          values), directions (by metric);
        - min_pairs, min_pairs_to_flip: minimum pairs of a test, and of a sign-flip test;
        - axes: name, label and values of each axis, as text;
        - keys: split, metric, site, layers, place and place_index of each column, as in
          `load_columns`; depths: relative depths;
        - labels: words, and smallest and largest possible value (null if unbounded), by metric;
        - metrics: metrics of layers; epochs: epochs in `values`; all_epochs: number of measured
          epochs;
        - groups: runs or, in large studies, the seeds of a treatment at a point of the grid: index,
          cell, treatment (its number), pair and seed (null for several runs), point (value of each
          axis), n, diverged (number of diverged runs), last_epoch, layers (number by site);
        - values: mean, and for groups of several runs sd and n: groups x epochs x keys;
        - effects: points, each with a value or null (all) per axis; fields, each treatments without
          the baseline x points x keys;
        - curves: fields, each treatments without the baseline x epochs x keys;
        - steps: null, or steps (at least 1), fields of averages: treatments x steps x keys, and
          curves: fields of differences, each treatments without the baseline x steps x keys;
        - initial: rows of `Analysis.initial_layers`;
        - embeddings: see `_collect_embeddings`;
        - similarities: see `_read_similarities`.
    """
    study = analysis.study
    keys, values = load_columns(study, every="epoch")
    all_epochs = keys["epoch"].unique()
    keys = keys[keys["epoch"] == all_epochs[0]].drop(columns="epoch").reset_index(drop=True)
    values = values.reshape(len(values), len(all_epochs), len(keys))
    treatments = [analysis.baseline, *study.treatments_without(analysis.baseline)]
    axes = [_describe_axis(study, name) for name in analysis.axes]

    groups = _describe_groups(study, treatments, [axis["name"] for axis in axes])
    last_epochs = sorted(set(groups["last_epoch"]))
    max_epochs = MAX_NUMBERS // values[:, 0].size
    is_averaged = max_epochs < min(MIN_EPOCHS, len(all_epochs))
    if is_averaged:
        num_points = groups.groupby(["treatment", "point"]).ngroups
        max_epochs = MAX_NUMBERS // (3 * num_points * len(keys))  # 3: mean, sd and n
    chosen = _choose_epochs(list(all_epochs), last_epochs, max_epochs)
    epochs = [int(all_epochs[index]) for index in chosen]
    values = values[:, chosen]
    arrays = {"mean": values}
    if is_averaged:
        groups, arrays = _average_seeds(groups, values)
    groups["index"] = range(len(groups))
    return {
        "baseline": in_words(analysis.baseline),
        "model": WHOLE_MODEL,
        "treatments": [in_words(treatment) for treatment in treatments],
        "min_pairs": MIN_PAIRS_FOR_TEST,
        "min_pairs_to_flip": MIN_PAIRS_TO_FLIP,
        "directions": study.directions,
        "axes": axes,
        "keys": json.loads(keys.to_json(orient="records")),
        "depths": RELATIVE_DEPTHS,
        "metrics": list(dict.fromkeys(keys.loc[keys["place_index"] > 0, "metric"])),
        "labels": {metric: _describe_label(metric) for metric in keys["metric"].unique()},
        "epochs": epochs,
        "all_epochs": len(all_epochs),
        "groups": json.loads(groups.to_json(orient="records")),
        "values": {name: _encode(array) for name, array in arrays.items()},
        "effects": _collect_effects(analysis, keys, treatments),
        "curves": _collect_curves(analysis, keys, treatments, epochs),
        "steps": _collect_steps(analysis, keys, treatments),
        "initial": json.loads(analysis.initial_layers.to_json(orient="records")),
        "embeddings": _collect_embeddings(analysis, treatments, [axis["name"] for axis in axes]),
        "similarities": _read_similarities(study),
    }


def _describe_label(metric: str) -> tuple[str, float | None, float | None]:
    words, *ends = label_of(metric)
    low, high = (end if math.isfinite(end) else None for end in ends)
    return words, low, high


def _encode(array: FloatArray) -> str:
    with np.errstate(over="ignore"):  # values beyond float32 become infinite
        return base64.b64encode(np.asarray(array, dtype="<f4").tobytes()).decode()


def _describe_axis(study: StudyRuns, name: str) -> dict[str, Any]:
    values = study.results[name].unique()
    is_text = isinstance(values[0], str)
    return {
        "name": name,
        "label": name.rpartition(".")[2],
        "values": [
            _format_axis_value(value)
            for value in sorted(values, key=natural_key if is_text else None)
        ],
    }


def _format_axis_value(value: Any) -> str:
    """Format a value of an axis: 4, not 4.0."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _describe_groups(study: StudyRuns, treatments: list[str], axes: list[str]) -> pd.DataFrame:
    results = study.results
    return pd.DataFrame(
        {
            "cell": results["cell"],
            "treatment": results["treatment"].map(treatments.index),
            "pair": results["pair"].map(int),
            "seed": results["seed"].map(int),
            "point": [
                tuple(map(_format_axis_value, run)) for run in results[axes].itertuples(index=False)
            ],
            "n": 1,
            "diverged": (results["status"] == "diverged").map(int),
            "last_epoch": results["last_epoch"].map(int),
            "layers": count_layers(study).to_dict("records"),
        }
    )


def _choose_epochs(epochs: list[int], last: list[int], max_epochs: int) -> list[int]:
    """Choose indices of epochs: all, or evenly spaced ones and the last epoch of each run."""
    indices = {round(index) for index in np.linspace(0, len(epochs) - 1, max(2, max_epochs))}
    return sorted(indices | {epochs.index(epoch) for epoch in last if epoch in epochs})


def _average_seeds(
    groups: pd.DataFrame, values: FloatArray
) -> tuple[pd.DataFrame, dict[str, FloatArray]]:
    """Average the seeds of each treatment at each point."""
    described, arrays = [], defaultdict(list)
    by = ["treatment", "point", "last_epoch", groups["layers"].map(str)]
    for rows in groups.groupby(by, sort=False).indices.values():
        sample = values[rows].reshape(len(rows), -1)
        arrays["mean"].append(mean(sample))
        arrays["sd"].append(spread(sample))
        arrays["n"].append(np.isfinite(sample).sum(axis=0))
        first = groups.iloc[rows[0]]
        cell = f"{first['cell'].partition('-seed')[0]}, {format_count(len(rows), 'seed')}"
        diverged = int(groups["diverged"].iloc[rows].sum())
        seeds = {"cell": cell, "pair": None, "seed": None, "n": len(rows), "diverged": diverged}
        described.append(first.to_dict() | seeds)
    return pd.DataFrame(described), {name: np.array(parts) for name, parts in arrays.items()}


def _encode_columns(
    table: pd.DataFrame,
    fields: tuple[str, ...],
    shape: tuple[int, ...],
    *indices: pd.Series,
) -> dict[str, str]:
    """Encode columns of a table as arrays of a shape; `indices` locate each row, one per axis."""
    arrays = {}
    for field in fields:
        array = np.full(shape, np.nan)
        array[tuple(np.asarray(index, dtype=int) for index in indices)] = table[field]
        arrays[field] = _encode(array)
    return arrays


def _find_key_numbers(table: pd.DataFrame, keys: pd.DataFrame) -> pd.Series:
    """Find the number of each row's key."""
    index = pd.MultiIndex.from_frame(keys[KEYS])
    return pd.Series(index.get_indexer(pd.MultiIndex.from_frame(table[KEYS])), table.index)


def _collect_effects(
    analysis: Analysis, keys: pd.DataFrame, treatments: list[str]
) -> dict[str, Any]:
    table = analysis.effects
    if table.empty:
        return {"points": [], "fields": {}}
    point_of_row = [
        tuple(None if pd.isna(value) else _format_axis_value(value) for value in row)
        for row in table[list(analysis.axes)].itertuples(index=False)
    ]
    numbers = {point: number for number, point in enumerate(dict.fromkeys(point_of_row))}
    shape = (len(treatments) - 1, len(numbers), len(keys))
    treatment = table["treatment"].map(treatments.index) - 1
    point = pd.Series(point_of_row, table.index).map(numbers)
    fields = _encode_columns(
        table, EFFECTS, shape, treatment, point, _find_key_numbers(table, keys)
    )
    return {"points": list(numbers), "fields": fields}


def _collect_curves(
    analysis: Analysis, keys: pd.DataFrame, treatments: list[str], epochs: list[int]
) -> dict[str, str]:
    table = analysis.effects_by_epoch
    if table.empty:
        return {}
    table = table[table["epoch"].isin(epochs)]
    return _encode_columns(
        table,
        CURVES,
        (len(treatments) - 1, len(epochs), len(keys)),
        table["treatment"].map(treatments.index) - 1,
        table["epoch"].map(epochs.index),
        _find_key_numbers(table, keys),
    )


def _collect_steps(
    analysis: Analysis, keys: pd.DataFrame, treatments: list[str]
) -> dict[str, Any] | None:
    if analysis.averages_by_step.empty:
        return None
    means, curves = (
        table[table["step"] > 0] if len(table) else table  # 0 is not on a logarithmic axis
        for table in (analysis.averages_by_step, analysis.effects_by_step)
    )
    steps = sorted(means["step"].unique().tolist())

    def encode_table(table: pd.DataFrame, fields: tuple[str, ...], first: int) -> dict[str, str]:
        """Encode fields of the treatments from the number `first` on."""
        if table.empty:
            return {}
        shape = (len(treatments) - first, len(steps), len(keys))
        treatment = table["treatment"].map(treatments.index) - first
        step_index = table["step"].map(steps.index)
        return _encode_columns(
            table, fields, shape, treatment, step_index, _find_key_numbers(table, keys)
        )

    return {
        "steps": steps,
        "fields": encode_table(means, ("n", "undefined", "mean", "sd"), 0),
        "curves": encode_table(curves, CURVES, 1),
    }


def _collect_embeddings(
    analysis: Analysis, treatments: list[str], axes: list[str]
) -> dict[str, Any]:
    """Collect the embeddings of samples.

    Returns:
        - classes: names by label;
        - pictures: cell, treatment and pair (their numbers), seed, point (value of each axis),
          epoch, split, site, layer, layers and position (as in `StudyRuns.query`), method, share
          (of the variance; null for umap), reason (why there is no embedding, or null), and
          the range of its samples (first, count);
        - x, y, labels: values of all samples;
        - shown: number of runs with pictures; runs: number of runs with embeddings.
    """
    table = analysis.embeddings
    if table.empty:
        return {"pictures": []}
    described = _describe_groups(analysis.study, treatments, axes).set_index("cell")
    by_picture = table.groupby(["cell", "method", "layer"], sort=False)
    max_samples = min(MAX_SAMPLES_OF_EMBEDDING, max(1, MAX_SAMPLES // len(by_picture)))
    pictures: list[dict[str, Any]] = []
    parts: list[pd.DataFrame] = []
    for _, samples in by_picture:
        drawable = samples[samples["x"].notna()]
        # A random choice, because the file can be sorted by class.
        drawn = drawable.sample(min(max_samples, len(drawable)), random_state=0)
        parts.append(drawn.sort_index())
        first = pictures[-1]["first"] + pictures[-1]["count"] if pictures else 0
        facts = json.loads(samples[EMBEDDING_FACTS].iloc[:1].to_json(orient="records"))[0]
        run = described.loc[facts["cell"]]
        facts |= {name: int(run[name]) for name in ("treatment", "seed")}
        facts |= {"point": run["point"], "first": first, "count": len(drawn)}
        pictures.append(facts)
    shown = pd.concat(parts)
    classes = table.drop_duplicates("label").sort_values("label")
    return {
        "classes": dict(zip(map(str, classes["label"]), classes["class"], strict=True)),
        "pictures": pictures,
        "x": _encode(shown["x"].to_numpy()),
        "y": _encode(shown["y"].to_numpy()),
        "labels": _encode(shown["label"].to_numpy()),
        "shown": table["cell"].nunique(),
        "runs": len(find_runs_with_embeddings(analysis.study)),
    }


def _read_similarities(study: StudyRuns) -> list[dict[str, Any]]:
    """Read the files of `bnstudy.measure similarity`.

    Files of runs that were removed from the study or trained again are left out.

    Returns:
        Pairs of runs, each with names (of both runs, which can be the same), split, samples (their
        number), and matrices by similarity: rows and columns (names of layers of the first and of
        the second run), values, and direction (higher or lower if layers with such values are more
        similar; null if unknown).
    """
    attempts = study.runs.set_index("cell")["attempts"].to_dict()
    similarities = []
    for facts_path in sorted(study.folder.glob("similarity/*/similarity.json")):
        facts = json.loads(facts_path.read_text())
        folders = [(Path(run["folder"]), run) for run in facts["runs"]]
        runs_here = [(path.name, run) for path, run in folders if path.parent.name == study.name]
        if not all(
            cell in attempts and run.get("attempts", attempts[cell]) == attempts[cell]
            for cell, run in runs_here
        ):
            continue
        declared = facts.get("similarities", {})  # by the version that wrote the file
        matrices = {}
        for path in sorted(facts_path.parent.glob("*.csv")):
            matrix = pd.read_csv(path, index_col=0)
            matrices[path.stem] = {
                "rows": [str(name) for name in matrix.index],
                "columns": [str(name) for name in matrix.columns],
                "values": json.loads(matrix.to_json(orient="values")),
                "direction": declared.get(path.stem, {}).get("direction"),
            }
        names = [f"{Path(run['folder']).name}, epoch {run['epoch']}" for run in facts["runs"]]
        similarities.append(
            {
                "names": [names[0], names[-1]],
                "split": facts["split"],
                "samples": facts["samples"],
                "matrices": matrices,
            }
        )
    return similarities
