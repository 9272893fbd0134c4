"""Paired comparison of treatments with a baseline: differences, intervals and p-values.

Two runs that differ only in the treatment, and in options that are set per norm, are a pair. The
pairs are the sample: n is their number,
and all have the same weight. `bnstudy.study.inference` computes the statistics.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bnstudy.study.inference import (
    analysis_of_variance,
    cohens_d,
    estimate_noise,
    holm,
    max_t_adjusted,
    mean,
    measured_differences,
    paired_test,
    pairs_needed,
    probability_of_improvement,
    rank_biserial,
    spread,
)
from bnstudy.study.inference.columns import FloatArray, IntArray, Mask
from bnstudy.study.inference.paired import MIN_PAIRS_FOR_TEST, MIN_PAIRS_TO_FLIP
from bnstudy.study.load.matrix import (
    load_columns,
    load_shared_columns,
    mark_meaningful_columns,
    mark_network_columns,
    mark_shared_columns,
)
from bnstudy.study.load.pairs import match_pairs
from bnstudy.study.load.study_runs import StudyRuns
from bnstudy.terms import PERFORMANCE

# The intervals at all epochs are many; with these limits they take seconds.
MAX_PAIRS_EXACT_OVER_EPOCHS = 12
NUM_FLIPS_OVER_EPOCHS = 2_048

PROBABILITY_COLUMNS = ["probability", "probability_low", "probability_high"]


def compute_averages(
    study: StudyRuns, every: Literal["epoch", "step"] | None = None, *, by: Sequence[str] = ()
) -> pd.DataFrame:
    """Compute mean and standard deviation over runs of each treatment.

    Args:
        study: Study whose runs are comparable.
        every: Compute averages at each epoch, or at each measured step, including those within
            epochs; None: after the last epoch of each run.
        by: Columns of `study.runs`, such as depth; averages are computed at each point of the grid
            that they form.

    Returns:
        One row per average, with the columns `by`, treatment, split, metric, layers, place,
        place_index, site (and epoch or step), and

        - n: number of runs with a finite value; undefined: number of runs without one; diverged:
          number of diverged runs, with or without a value;
        - mean; sd: standard deviation with n - 1 degrees of freedom.

        The layers are those that all runs at the point share (see `mark_shared_columns`). A metric
        in a layer has no row if no run at the point has a value of it. `load_columns` describes
        layers, place and place_index.
    """
    keys, values = load_columns(study, every)
    is_diverged = study.results["status"].to_numpy() == "diverged"
    is_known = np.isfinite(values)
    is_meaningful = mark_meaningful_columns(study, keys)
    tables = []
    for at_point, shared in _group_points(study, keys, by):
        shared = shared & is_known[at_point].any(axis=0)
        for point, rows in _iterate_points(study.results[[*by, "treatment"]].iloc[at_point]):
            columns = shared & is_meaningful[rows[0]]
            sample = values[np.ix_(rows, columns)]
            n = np.isfinite(sample).sum(axis=0)
            table = keys[columns].assign(
                **point,
                n=n,
                undefined=len(rows) - n,
                diverged=is_diverged[rows].sum(),
                mean=mean(sample),
                sd=spread(sample),
            )
            tables.append(table)
    averages: pd.DataFrame = pd.concat(tables, ignore_index=True)
    return averages


def compute_effects(
    study: StudyRuns, baseline: str | None = None, *, by: Sequence[str] = ()
) -> pd.DataFrame:
    """Compute paired differences to a baseline after the last epoch, with their uncertainty.

    Args:
        study: Study whose runs are comparable.
        baseline: Treatment to compare with; None: `StudyRuns.baseline`'s choice.
        by: Columns of `study.runs`, such as depth; the pairs are compared separately at each point
            of the grid that they form.

    Returns:
        One row per metric and layer of each comparison of a treatment with the baseline, with the
        columns `by`, treatment, baseline, split, metric, layers, place, place_index and site, and

        - n: number of pairs; undefined: number of pairs left out because a run has no value;
          diverged: number of pairs with a diverged run;
        - baseline_mean, treatment_mean; difference: mean difference within pairs;
        - low, high, p, smallest_p, test: results of `paired_test`;
        - p_adjusted: p adjusted for all tests of a family, never smaller than p: by max-T, or by
          Holm's method if no comparison has enough pairs for sign flips;
        - family: number of tests in the family;
        - cohens_d, rank_biserial: effect sizes; NaN with fewer than 3 pairs;
        - pairs_needed: number of pairs needed to detect a difference of this size;
        - probability, probability_low, probability_high: probability that a run of the treatment
          has the larger value, and its interval; NaN in layers.

        Each of the following is one family, over all treatments and points:

        - all metrics in the layers of one split;
        - loss and accuracy of the whole model;
        - numbers of callbacks in the layers of one split;
        - other numbers of the whole model.

        The layers are those that all runs at the point share (see `mark_shared_columns`).
    """
    keys, values = load_columns(study)
    return compare_pairs(study, keys, partial(read_pairs, study, values), baseline, by)


class PairedValues(NamedTuple):
    """Values of the pairs of one comparison.

    Attributes:
        treatment: Values of the treatment, pairs x rows of the table of keys.
        baseline: Values of the baseline, in the same shape.
        pair_ids: Identifier of each pair: the row of the baseline's run.
        facts: Further columns of the result, each with one value for all metrics and layers.
    """

    treatment: FloatArray
    baseline: FloatArray
    pair_ids: IntArray
    facts: dict[str, Any]


def read_pairs(
    study: StudyRuns, values: FloatArray, treatment_rows: IntArray, baseline_rows: IntArray
) -> PairedValues:
    """Read the values of both runs of each pair from a table of all runs, for `compare_pairs`.

    Args:
        study: Study whose runs are comparable.
        values: Values, from `load_columns`: rows of `StudyRuns.results` x rows of the keys.
        treatment_rows: Row of the treatment's run, for each pair.
        baseline_rows: Row of the baseline's run, for each pair.
    """
    is_diverged = study.results["status"].to_numpy() == "diverged"
    has_diverged_run = is_diverged[treatment_rows] | is_diverged[baseline_rows]
    facts = {"diverged": has_diverged_run.sum()}
    return PairedValues(values[treatment_rows], values[baseline_rows], baseline_rows, facts)


def compare_pairs(
    study: StudyRuns,
    keys: pd.DataFrame,
    read: Callable[[IntArray, IntArray], PairedValues],
    baseline: str | None = None,
    by: Sequence[str] = (),
) -> pd.DataFrame:
    """Compute paired differences to a baseline, with their uncertainty.

    Args:
        study: Study whose runs are comparable.
        keys: Table with one row for each column of the values, from `load_columns`.
        read: Function that reads the values of pairs, from the rows of the treatment's runs and
            the rows of the baseline's runs.
        baseline: Treatment to compare with; None: `StudyRuns.baseline`'s choice.
        by: Columns of `study.runs`; the pairs are compared separately at each point of the grid
            that they form.

    Returns:
        Table as returned by `compute_effects`, with `PairedValues.facts` as further columns.
    """
    baseline = study.baseline(baseline)
    tables, samples = [], []
    for comparison_labels, treatment_rows, baseline_rows, shared in iterate_comparisons(
        study, keys, baseline, by
    ):
        paired = read(treatment_rows, baseline_rows)
        if not len(paired.pair_ids):
            shared = np.zeros_like(shared)  # nothing to compare
        treated, untreated = paired.treatment[:, shared], paired.baseline[:, shared]
        differences = measured_differences(treated, untreated)
        comparison = _compare(treated, untreated, differences).assign(**paired.facts)
        is_whole = (keys["place_index"] == 0).to_numpy()[shared]
        if is_whole.any():
            points = study.results["grid"].to_numpy(dtype=str)[paired.pair_ids]
            estimates = probability_of_improvement(
                treated[:, is_whole], untreated[:, is_whole], points
            )
            comparison.loc[is_whole, PROBABILITY_COLUMNS] = np.stack(estimates, axis=1)
        labelled = keys[shared].reset_index(drop=True).assign(**comparison_labels)
        tables.append(labelled.join(comparison))
        samples.append((differences, paired.pair_ids))
    if not tables:
        return pd.DataFrame()
    _adjust(tables, samples, list(study.directions))
    table = pd.concat(tables, ignore_index=True)
    return table[table["n"] + table["undefined"] > 0].reset_index(drop=True)


def iterate_comparisons(
    study: StudyRuns, keys: pd.DataFrame, baseline: str, by: Sequence[str] = ()
) -> Iterator[tuple[dict[str, Any], IntArray, IntArray, Mask]]:
    """Yield the comparisons of all treatments with a baseline.

    Args:
        study: Study whose runs are comparable.
        keys: Table of the columns, from `load_columns`.
        baseline: Treatment to compare with.
        by: Columns of `study.runs`; the pairs are compared separately at each point of the grid
            that they form.

    Yields:
        Labels of the comparison (point, treatment and baseline), rows of the treatment's and the
        baseline's runs, and a mask of the columns that all runs at the point share and that are
        meaningful for both treatments; all False without pairs.
    """
    shared_by_row: dict[int, Mask] = {}
    for rows, columns in _group_points(study, keys, by):
        shared_by_row |= dict.fromkeys(rows.tolist(), columns)
    is_meaningful = mark_meaningful_columns(study, keys)
    no_columns = np.zeros(len(keys), dtype=bool)
    for treatment in study.treatments_without(baseline):
        matched = match_pairs(study, treatment, baseline)
        points = study.results.loc[matched.treatment, list(by)].reset_index(drop=True)
        for point, rows in _iterate_points(points):
            comparison_labels = point | {"treatment": treatment, "baseline": baseline}
            treatment_rows, baseline_rows = matched.treatment[rows], matched.baseline[rows]
            columns = no_columns
            if len(rows):
                # The masks are the same for all runs of a treatment at a point.
                row, baseline_row = treatment_rows[0], baseline_rows[0]
                columns = shared_by_row[row] & is_meaningful[row] & is_meaningful[baseline_row]
            yield comparison_labels, treatment_rows, baseline_rows, columns


def _group_points(
    study: StudyRuns, keys: pd.DataFrame, by: Sequence[str]
) -> Iterator[tuple[IntArray, Mask]]:
    """Yield the rows of the results at each point, and a mask of the columns that they share."""
    for _, rows in _iterate_points(study.results[list(by)]):
        yield rows, mark_shared_columns(study, keys, rows)


def _iterate_points(points: pd.DataFrame) -> Iterator[tuple[dict[str, Any], IntArray]]:
    """Yield each point of a grid, and its rows."""
    if points.columns.empty:
        yield {}, np.arange(len(points))
        return
    for value, rows in points.groupby(list(points.columns), dropna=False):
        yield dict(zip(points.columns, value, strict=True)), rows.index.to_numpy()


def _compare(treated: FloatArray, untreated: FloatArray, differences: FloatArray) -> pd.DataFrame:
    is_measured = ~(np.isnan(treated) & np.isnan(untreated)).all(axis=0)
    known = np.isfinite(differences)
    tests = paired_test(differences, noise=estimate_noise(treated, untreated))
    is_enough = tests.n >= MIN_PAIRS_FOR_TEST
    return pd.DataFrame(
        {
            "n": tests.n,
            "undefined": np.where(is_measured, len(known) - tests.n, 0),
            "baseline_mean": mean(np.where(known, untreated, np.nan)),
            "treatment_mean": mean(np.where(known, treated, np.nan)),
            "difference": tests.difference,
            "low": tests.low,
            "high": tests.high,
            "p": tests.p,
            "smallest_p": tests.smallest_p,
            "test": tests.test,
            "cohens_d": np.where(is_enough, cohens_d(differences), np.nan),
            "rank_biserial": np.where(is_enough, rank_biserial(differences), np.nan),
            "pairs_needed": pairs_needed(differences),
            **dict.fromkeys(PROBABILITY_COLUMNS, np.nan),
        }
    )


def _adjust(
    tables: Sequence[pd.DataFrame],
    samples: Sequence[tuple[FloatArray, IntArray]],
    metrics: Sequence[str],
) -> None:
    """Add the columns p_adjusted and family to the tables of comparisons.

    Args:
        tables: Comparisons of each treatment at each point; they are changed in place.
        samples: For each table, its differences, pairs x rows of the table, and the identifiers of
            the pairs.
        metrics: Metrics of representations.
    """
    families = [_name_families(table, metrics) for table in tables]
    for table in tables:
        table["p_adjusted"] = np.nan
        table["family"] = 0
    for family in dict.fromkeys(np.concatenate(families)):
        members = [
            np.flatnonzero((table_families == family) & table["p"].notna())
            for table_families, table in zip(families, tables, strict=True)
        ]
        tests = [table.iloc[rows] for table, rows in zip(tables, members, strict=True)]
        raw = [table["p"].to_numpy() for table in tests]
        num_pairs = np.concatenate([table["n"].to_numpy() for table in tests])
        if num_pairs.max(initial=0) >= MIN_PAIRS_TO_FLIP:
            adjusted = max_t_adjusted(
                [sample[:, rows] for (sample, _), rows in zip(samples, members, strict=True)],
                [pair_ids for _, pair_ids in samples],
            )
        else:
            ends = np.cumsum([len(p) for p in raw])[:-1]
            adjusted = np.split(holm(np.concatenate(raw)), ends)
        family_size = sum(map(len, members))
        for table, rows, table_p_adjusted, p in zip(tables, members, adjusted, raw, strict=True):
            # With few pairs, p comes from a t-test and can be above the adjusted p of sign flips.
            table.loc[rows, "p_adjusted"] = np.maximum(table_p_adjusted, p)
            table.loc[rows, "family"] = family_size


def _name_families(table: pd.DataFrame, metrics: Sequence[str]) -> NDArray[np.object_]:
    """Name the family of each row.

    The numbers that callbacks record have families of their own, so that they do not enlarge the
    families of metrics and performance.
    """
    is_layer = table["place_index"] > 0
    names = table["split"].where(is_layer, "whole model")
    is_main = table["metric"].isin(metrics).where(is_layer, table["metric"].isin(PERFORMANCE))
    return names.where(is_main, names + ", callbacks").to_numpy()


def compute_effects_over_time(
    study: StudyRuns, baseline: str | None = None, *, every: Literal["epoch", "step"] = "epoch"
) -> pd.DataFrame:
    """Compute paired differences to a baseline over time, with intervals but without tests.

    Args:
        study: Study whose runs are comparable.
        baseline: Treatment to compare with; None: `StudyRuns.baseline`'s choice.
        every: Compute them at each epoch, or at each measured step, including those within epochs.

    Returns:
        One row per metric and layer of each comparison with at least one pair, also for layers that
        only some runs have. The columns are treatment, baseline, split, metric, layers, place,
        place_index, site and epoch (or step); n, undefined, diverged, difference, low and high.

        They are defined as in `compute_effects`, with two exceptions: undefined and diverged count
        only pairs in which at least one network has the layer (for counts of zeros: with a ReLU),
        and with more than 12 pairs, 2,048 random flips are used. Each interval holds for a single
        epoch or step, not for the whole curve.
    """
    baseline = study.baseline(baseline)
    keys, values = load_columns(study, every)
    is_diverged = study.results["status"].to_numpy() == "diverged"
    is_expected = mark_network_columns(study, keys)
    tables = []
    for treatment in study.treatments_without(baseline):
        matched = match_pairs(study, treatment, baseline)
        treated, untreated = values[matched.treatment], values[matched.baseline]
        differences = measured_differences(treated, untreated)
        tests = paired_test(
            differences,
            noise=estimate_noise(treated, untreated),
            max_pairs_exact=MAX_PAIRS_EXACT_OVER_EPOCHS,
            num_flips=NUM_FLIPS_OVER_EPOCHS,
        )
        has_diverged_run = is_diverged[matched.treatment] | is_diverged[matched.baseline]
        is_in_pair = is_expected[matched.treatment] | is_expected[matched.baseline]
        tables.append(
            keys.assign(
                treatment=treatment,
                baseline=baseline,
                n=tests.n,
                undefined=is_in_pair.sum(axis=0) - tests.n,
                diverged=(is_in_pair & has_diverged_run[:, None]).sum(axis=0),
                difference=tests.difference,
                low=tests.low,
                high=tests.high,
            )
        )
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables, ignore_index=True)
    return table[table["n"] > 0].reset_index(drop=True)


def compute_factors(study: StudyRuns, baseline: str | None = None) -> pd.DataFrame:
    """Test whether the treatment's effect depends on depth and width.

    The treatment varies within pairs; depth and width vary between pairs. The interaction of
    treatment and depth is therefore a main effect of depth on the differences within pairs, and the
    interaction of all three is an interaction of depth and width in these differences. These are
    the tests of a mixed model with one intercept per pair; see
    `bnstudy.study.inference.analysis_of_variance`.

    Args:
        study: Study whose runs are comparable.
        baseline: Treatment to compare with; None: `StudyRuns.baseline`'s choice.

    Returns:
        One row per term: treatment, baseline, split, metric, layers, place, place_index, site, term
        (such as "treatment x depth"), n (pairs), f, df, df_residual, eta_squared (partial), p
        (from up to 999 permutations), and p_adjusted, by Holm's method over all tests of the same
        term and split.
        A factor that does not vary has no rows. Comparisons without residual degrees of freedom,
        such as those with one seed, have none either.
    """
    baseline = study.baseline(baseline)
    keys, values = load_shared_columns(study)
    results = study.results
    varying = [name for name in ("depth", "width") if results[name].nunique() > 1]
    tables = []
    for treatment in study.treatments_without(baseline) if varying else []:
        matched = match_pairs(study, treatment, baseline)
        differences = measured_differences(values[matched.treatment], values[matched.baseline])
        levels = results.loc[matched.treatment, varying].astype(str).to_numpy()
        for test in analysis_of_variance(differences, levels):
            names = sorted(varying[factor] for factor in test.term)
            tables.append(
                keys.loc[test.columns].assign(
                    treatment=treatment,
                    baseline=baseline,
                    term=" x ".join(["treatment", *names]),
                    n=test.n,
                    f=test.f,
                    df=test.df,
                    df_residual=test.df_residual,
                    eta_squared=test.eta_squared,
                    p=test.p,
                )
            )
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables, ignore_index=True).dropna(subset="f", ignore_index=True)
    table["p_adjusted"] = np.nan
    for _, family in table.groupby(["term", "split"]):
        table.loc[family.index, "p_adjusted"] = holm(family["p"].to_numpy())
    return table
