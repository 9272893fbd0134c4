"""Values of a study as a matrix: one row per run, one column per metric and layer.

Networks with the same number of layers at a site are compared layer by layer, in order, regardless
of the layers' names. Networks with different numbers of layers are compared at relative depth:
values are interpolated linearly between the two nearest layers of each network.
"""

from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bnstudy.errors import UserError
from bnstudy.study.load.study_runs import StudyRuns
from bnstudy.terms import FUSED_NORMS, PROBE_PERFORMANCE, STANDARD_ERRORS, ZERO_METRICS

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.intp]
Mask = NDArray[np.bool_]

# The i-th of L layers at a site, counted from 1, has the relative depth (i - 1) / (L - 1). A single
# layer is used at all depths.
RELATIVE_DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)

KEYS = ["split", "metric", "layers", "place"]  # identify a column

# The columns can be repeated for each value of a coordinate. `TABLES` names the table of the
# database that has this coordinate as a column.
Coordinate = Literal["epoch", "step", "fold"]
TABLES: dict[Coordinate, str] = {"epoch": "rows", "step": "steps", "fold": "folds"}

MAX_LISTED_NAMES = 2  # if matched layers have more different names, they get a number instead


def load_shared_columns(study: StudyRuns) -> tuple[pd.DataFrame, FloatArray]:
    """Load the last epoch's values of all runs, in the columns in which all are comparable.

    Args:
        study: Study whose runs are comparable.

    Returns:
        Table and values of `load_columns`, restricted by `mark_shared_columns`.

    Raises:
        UserError: The runs are not comparable.
    """
    keys, values = load_columns(study)
    shared = mark_shared_columns(study, keys, np.arange(len(values)))
    return keys[shared].reset_index(drop=True), values[:, shared]


def load_columns(
    study: StudyRuns, every: Coordinate | None = None
) -> tuple[pd.DataFrame, FloatArray]:
    """Load the values of the runs that have ended: one row per run, a column per metric and layer.

    Args:
        study: Study whose runs are comparable.
        every: Repeat the columns for each epoch, for each step after which any run was measured
            (including those within epochs), or for each fold of the probe sets after the last
            epoch. Only metrics that at least one run has after its last epoch have columns. None:
            each run's last epoch.

    Returns:
        Table that describes the columns, and their values. Both are cached: do not change them.

        The table has one row per column: split, metric, site, layers, place, place_index; epoch,
        step or fold. It is sorted by epoch, step or fold, split (validation, train, test), metric,
        site (act first), number of layers and place_index.

        - Columns of layers: the column belongs to the networks with `layers` layers at the site;
          `place` is the layer's name, `place_index` its number, from 1.
        - Columns at `RELATIVE_DEPTHS`, if networks have different numbers of layers: `layers` is 0,
          `place` names the depth, `place_index` is its number, from 1. Values are interpolated.
        - Columns of the whole model: site "", `layers` 0 and `place_index` 0.

        Standard errors have no column. If `every` is None, loss and accuracy on the probe sets of
        splits that were evaluated as a whole have none either.

        The values are runs x columns, in the order of `study.results`; NaN if a run has no value.
        Counts of zeros (`ZERO_METRICS`) are NaN for networks whose norm contains another activation
        function than ReLU.

    Raises:
        UserError: The runs are not comparable.
    """
    if len(study.parts) > 1:
        raise UserError(
            f"{study.folder} holds runs that are not comparable: "
            + " | ".join(f"{len(part.results)} runs of {part.measured_on}" for part in study.parts)
            + "\nAnalyse `parts` one by one, or train them as different studies (study=NAME)"
        )
    return _load_matrix(study, every)


def mark_shared_columns(study: StudyRuns, keys: pd.DataFrame, runs: IntArray) -> Mask:
    """Mark the columns in which the given runs can be compared.

    Args:
        study: Study whose runs are comparable.
        keys: Table of the columns, from `load_columns`.
        runs: Rows of `StudyRuns.results`.

    Returns:
        True for the whole model. At each site, True for the layers if all given runs that have
        layers there have the same number of them, otherwise for the relative depths.
    """
    shared = {"": 0}
    for site, counts in count_layers(study).iloc[runs].items():
        numbers_of_layers = set(counts) - {0}
        shared[str(site)] = numbers_of_layers.pop() if len(numbers_of_layers) == 1 else 0
    return (keys["layers"] == keys["site"].map(shared)).to_numpy(dtype=bool)


def mark_network_columns(study: StudyRuns, keys: pd.DataFrame) -> Mask:
    """Mark, for each run, the columns that apply to its network.

    Args:
        study: Study whose runs are comparable.
        keys: Table of the columns, from `load_columns`.

    Returns:
        Rows of `StudyRuns.results` x columns: True for the layers that the network has, for
        relative depths and for the whole model, but not for counts of zeros if it has no ReLU.
    """
    marked = mark_meaningful_columns(study, keys)
    counts = count_layers(study)
    for (site, count), columns in keys[keys["layers"] > 0].groupby(["site", "layers"]):
        marked[:, columns.index] = (counts[site] == count).to_numpy()[:, None]
    return marked


def mark_meaningful_columns(study: StudyRuns, keys: pd.DataFrame) -> Mask:
    """Mark all columns of each run, except counts of zeros if its network has no ReLU.

    Args:
        study: Study whose runs are comparable.
        keys: Table of the columns, from `load_columns`.

    Returns:
        Rows of `StudyRuns.results` x columns.
    """
    is_fused = study.results["norm"].isin(FUSED_NORMS).to_numpy()
    return ~np.outer(is_fused, keys["metric"].isin(ZERO_METRICS))


@lru_cache(maxsize=2)
def count_layers(study: StudyRuns) -> pd.DataFrame:
    """Count the layers at each site for each row of `study.results`."""
    counts = study.query("select cell, site, count(*) as layers from layers group by all")
    table = counts.pivot_table(index="cell", columns="site", values="layers", fill_value=0)
    return table.reindex(study.results["cell"], fill_value=0).astype(int)


def average_layers(study: StudyRuns, metric: str) -> FloatArray:
    """Average a metric of each run over its layers' activations, on the training split.

    Args:
        study: Study whose runs are comparable.
        metric: Name of the metric. If it was not measured on activations, the mean is over the
            other sites that all networks have.

    Returns:
        One value for each row of `StudyRuns.results`; NaN if a layer has none.
    """
    keys, values = load_columns(study)
    counts = count_layers(study)
    chosen = keys[(keys["split"] == "train") & (keys["metric"] == metric)]
    chosen = chosen[are_activations(chosen) & (chosen["layers"] > 0)]
    shared = [site for site in chosen["site"].unique() if (counts[site] > 0).all()]
    chosen = chosen[chosen["site"].isin(shared)]
    total, layers = np.zeros((2, len(values)))
    for (site, count), columns in chosen.groupby(["site", "layers"]):
        runs = np.flatnonzero(counts[site] == count)
        total[runs] += values[np.ix_(runs, columns.index.to_numpy(dtype=np.intp))].sum(axis=1)
        layers[runs] += len(columns)
    with np.errstate(invalid="ignore"):
        means: FloatArray = total / layers
    return means


def are_activations(table: pd.DataFrame) -> pd.Series:
    """Mark the rows at the site `act`; for a metric without such rows, all rows of layers.

    The verdict, the printed figures and the mediation analysis use these rows.

    Args:
        table: Table with the columns split, metric, place_index and site, and all rows of a metric,
            including those without a value.
    """
    layers = table["place_index"] > 0
    activations = layers & (table["site"] == "act")
    has_any = activations.groupby([table["split"], table["metric"]]).transform("any")
    return activations | (layers & ~has_any)


@lru_cache(maxsize=4)
def _load_matrix(study: StudyRuns, every: Coordinate | None) -> tuple[pd.DataFrame, FloatArray]:
    """Load the table of the columns and the values of `load_columns`."""
    runs = _number_networks(study)
    study.connection.register("run_networks", runs)
    measured = _list_measured(study)
    measured = measured[~measured["metric"].isin(STANDARD_ERRORS)]
    if not every:  # loss and accuracy of a whole split replace those of its probe set
        known = set(zip(measured["split"], measured["metric"], strict=True))
        is_replaced = [
            metric in PROBE_PERFORMANCE and (split, metric.removeprefix("probe_")) in known
            for split, metric in zip(measured["split"], measured["metric"], strict=True)
        ]
        measured = measured[~np.array(is_replaced, dtype=bool)]
    measured = measured.assign(place=_name_layers(measured))
    keys = _make_keys(measured)
    columns = measured.merge(keys.reset_index(names="column_number"))
    coordinates, values = _read_values(study, every, columns, (len(runs), len(keys)))
    _interpolate(keys, values, count_layers(study))
    is_meaningful = mark_meaningful_columns(study, keys)[:, None]
    values[~np.broadcast_to(is_meaningful, values.shape)] = np.nan
    if every:
        keys = pd.concat(
            [keys.assign(**{every: coordinate}) for coordinate in coordinates], ignore_index=True
        )
    return keys, values.reshape(len(runs), -1)


def _list_measured(study: StudyRuns) -> pd.DataFrame:
    """List what was measured of each network: split, metric, layer, site, layers, place_index."""
    return study.query(
        """
        select distinct network, split, metric, layer, coalesce(site, '') as site,
               coalesce(layers, 0) as layers, coalesce(position, 0) as place_index
        from final join run_networks using (cell)
        """
    )


def _make_keys(measured: pd.DataFrame) -> pd.DataFrame:
    """Make the sorted table of the columns, including those at relative depths."""
    keys = measured.drop(columns=["network", "layer"]).drop_duplicates()
    keys = pd.concat([keys, _make_depth_keys(keys)], ignore_index=True)
    return keys.sort_values(
        ["split", "metric", "site", "layers", "place_index"],  # act comes first in the alphabet
        ascending=[False, True, True, True, True],
    ).reset_index(drop=True)


def _read_values(
    study: StudyRuns, every: Coordinate | None, columns: pd.DataFrame, shape: tuple[int, int]
) -> tuple[list[int], FloatArray]:
    """Read the values of layers and of the whole model from the study's database.

    Args:
        study: Study whose runs are comparable, with the view `run_networks`.
        every: As for `load_columns`.
        columns: Network, split, metric, layer and column_number.
        shape: Numbers of runs and of columns.

    Returns:
        Epochs, steps or folds that have values in these columns, and the values, runs x epochs
        (steps, folds) x columns.
    """
    connection = study.connection
    coordinates = [0]
    if every:
        coordinates = study.query(f"select distinct {every} from {TABLES[every]} order by all")[
            every
        ].tolist()
    connection.register(
        "coordinates",
        pd.DataFrame({"coordinate": coordinates}).reset_index(names="coordinate_index"),
    )
    connection.register(
        "columns", columns[["network", "split", "metric", "layer", "column_number"]]
    )
    values = np.full((shape[0], len(coordinates), shape[1]), np.nan)
    with_values: set[int] = set()  # indices of coordinates
    batches = connection.sql(
        f"""
        select (run * {len(coordinates)} + coordinate_index) * {shape[1]} + column_number
               as address, value, coordinate_index
        from {TABLES[every] if every else "last"} join coordinates on coordinate = {every or 0}
        join run_networks using (cell) join columns using (network, split, metric, layer)
        """
    ).to_arrow_reader(1_000_000)
    for batch in batches:
        values.ravel()[batch["address"].to_numpy()] = batch["value"].to_numpy()
        with_values.update(batch["coordinate_index"].unique().to_pylist())
    if len(with_values) < len(coordinates):
        coordinates = [coordinates[number] for number in sorted(with_values)]
        values = values[:, sorted(with_values)]
    return coordinates, values


def _number_networks(study: StudyRuns) -> pd.DataFrame:
    """Number the networks; runs whose layers have the same names have the same network.

    Networks are numbered in the order of the treatments, then of the runs, so that `_name_layers`
    lists the names of earlier treatments first.

    Returns:
        Columns run (row of `study.results`), cell and network.
    """
    listed = "select cell, list([site, layer] order by site, position) from layers group by cell"
    layers = {
        cell: tuple(map(tuple, network))
        for cell, network in study.connection.execute(listed).fetchall()
    }
    runs = study.results[["cell", "treatment"]].reset_index(names="run")
    order = runs["treatment"].map(study.treatments.index).to_numpy().argsort(kind="stable")
    numbers: dict[Any, int] = {}
    networks = np.zeros(len(runs), dtype=np.intp)
    for run, cell in zip(order, runs["cell"].iloc[order], strict=True):
        networks[run] = numbers.setdefault(layers.get(cell, ()), len(numbers))
    return runs.drop(columns="treatment").assign(network=networks)


def _name_layers(measured: pd.DataFrame) -> pd.Series:
    """Name matched layers: by their common name, by two names with a slash, or by a number."""
    names = measured["layer"].copy()
    layers = measured[measured["layers"] > 0].sort_values("network", kind="stable")
    for (site, _, number), matched in layers.groupby(["site", "layers", "place_index"]):
        different_names = matched["layer"].unique()
        if len(different_names) > MAX_LISTED_NAMES:
            names[matched.index] = f"layer {number}{_format_suffix(str(site))}"
        elif len(different_names) > 1:
            names[matched.index] = " / ".join(different_names)
    return names


def _make_depth_keys(keys: pd.DataFrame) -> pd.DataFrame:
    """Make the columns at relative depths, for sites with different numbers of layers."""
    layers = keys[keys["layers"] > 0]
    is_mixed = layers.groupby("site")["layers"].transform("nunique") > 1
    mixed = layers.loc[is_mixed, ["split", "metric", "site"]].drop_duplicates()
    suffixes = list(map(_format_suffix, mixed["site"]))
    columns = [
        mixed.assign(
            layers=0,
            place_index=number,
            place=[f"depth {100 * depth:.0f} %{suffix}" for suffix in suffixes],
        )
        for number, depth in enumerate(RELATIVE_DEPTHS, start=1)
    ]
    return pd.concat(columns)


def _format_suffix(site: str) -> str:
    """Format the site at the end of a layer's name; activations have none."""
    return "" if site == "act" else f" {site}"


def _interpolate(keys: pd.DataFrame, values: FloatArray, counts: pd.DataFrame) -> None:
    """Fill the columns at relative depths from those of layers.

    Args:
        keys: Table of the columns.
        values: Runs x epochs (steps, folds) x columns; changed in place.
        counts: Result of `count_layers`.
    """
    for (_, _, site), columns in keys.groupby(["split", "metric", "site"]):
        depth_columns = columns.index[(columns["layers"] == 0) & (columns["place_index"] > 0)]
        if depth_columns.empty:
            continue
        for count in sorted(set(columns["layers"].tolist()) - {0}):
            runs = np.flatnonzero(counts[site] == count)
            layers = columns[columns["layers"] == count]
            column_of_layer = dict(zip(layers["place_index"], layers.index, strict=True))
            for depth_column, depth in zip(depth_columns, RELATIVE_DEPTHS, strict=True):
                lower, weight = divmod(1 + depth * (count - 1), 1)
                weights = {lower: 1 - weight, lower + 1: weight} if weight else {lower: 1.0}
                if column_of_layer.keys() >= weights.keys():
                    values[runs, :, depth_column] = sum(
                        share * values[runs, :, column_of_layer[layer]]
                        for layer, share in weights.items()
                    )
