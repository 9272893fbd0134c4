"""Statements about the differences between a treatment and the baseline."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from bnstudy.headline import in_words
from bnstudy.study.confounders import describe_confounders
from bnstudy.study.generalization import choose_family_metrics
from bnstudy.study.inference.paired import (
    CONFIDENCE,
    MIN_PAIRS_FOR_TEST,
    MIN_PAIRS_TO_FLIP,
    STUDENT_T,
)
from bnstudy.study.inference.planning import MAX_PAIRS, POWER
from bnstudy.study.load.pairs import match_pairs
from bnstudy.study.load.study_runs import StudyRuns
from bnstudy.study.present.labels import name_layer
from bnstudy.study.present.verdict.wording import (
    SIGNIFICANCE_LEVEL,
    direction_of,
    find_largest,
    format_difference,
    format_interval,
    format_p,
    format_place,
    format_places,
    format_signed,
    is_significant,
    join_words,
    select_layers,
    select_test_accuracy,
)
from bnstudy.terms import format_count

NO_VALUES = "no pair has a value in both of its runs"


def describe_comparison(
    study: StudyRuns, treatment: str, baseline: str, table: pd.DataFrame
) -> Iterator[str]:
    """Describe the pairs of a treatment, and its differences in accuracy and headline metrics.

    Args:
        study: Study whose runs are comparable.
        treatment: Treatment that is compared with the baseline.
        baseline: Treatment to compare with.
        table: Effects of the treatment, from `select_known`.
    """
    if reason := explain_missing_pairs(study, treatment, baseline):
        yield reason
        return
    name, other = in_words(treatment), in_words(baseline)
    matched = match_pairs(study, treatment, baseline)
    n = len(matched.treatment)
    rows = study.results.loc[matched.treatment]
    points = rows["grid"].nunique()
    where = f" at {format_count(points, 'point')} of the grid" if points > 1 else ""
    unpaired = format_count(matched.unpaired, "run")
    without = f"; {unpaired} without a partner" if matched.unpaired else ""
    changed = _name_change(study, treatment, baseline)
    others = describe_confounders(study, treatment, baseline)
    difference_in_pairs = (
        f"Besides the {changed}, the runs of a pair differ in {others}"
        if others
        else f"The two runs of a pair differ only in the {changed}"
    )
    yield (
        f"{name} is compared with {other} in {format_count(n, 'pair')} of runs "
        f"({format_count(rows['seed'].nunique(), 'seed')}{where}{without}). "
        f"{difference_in_pairs}."
    )
    if few := _describe_few_pairs(n, points):
        yield few
    elif (table["test"] == STUDENT_T).any():  # some comparisons have fewer pairs with a value
        yield (
            f"Where fewer than {MIN_PAIRS_TO_FLIP} pairs have a value, intervals and p-values come "
            "from Student's t-test, which assumes normally distributed differences. An exact test "
            f"needs at least {MIN_PAIRS_TO_FLIP} pairs with a value."
        )
    accuracy = select_test_accuracy(table)
    for row in accuracy:
        on_probe = " on the probe set" if row.metric == "probe_accuracy" else ""
        yield (
            f"Test accuracy{on_probe} is {row.treatment_mean:.3f} with {name} and "
            f"{row.baseline_mean:.3f} with {other}. The difference is {format_difference(row)}."
            f"{_describe_probability(row, name, other, points)}"
            f"{_describe_pairs_needed(row, points)}"
        )
    if not accuracy:
        yield f"Test accuracy cannot be compared: {NO_VALUES}."
    for metric in choose_family_metrics(study).values():
        layers = select_layers(table, "train", metric)
        yield from _describe_metric(name, metric, layers, points)
    yield from _describe_significant_tests(
        table[table["metric"].isin([*study.directions])], name, other
    )


def explain_missing_pairs(study: StudyRuns, treatment: str, baseline: str) -> str:
    """Explain why a treatment is not compared with the baseline; "" if it is."""
    matched = match_pairs(study, treatment, baseline)
    treatments = f"{in_words(treatment)} and {in_words(baseline)}"
    if matched.identical:
        return (
            f"{treatments} are not compared, because the two runs of every pair "
            f"({format_count(matched.identical, 'pair')}) have identical values. The network "
            f"probably ignores the {_name_change(study, treatment, baseline)}."
        )
    if not len(matched.treatment):
        return (
            f"{treatments} are not compared, because they have no pair of runs. The two runs of a "
            "pair share the seed and all settings except the norm, the regularizer and options set "
            "per norm."
        )
    return ""


def _name_change(study: StudyRuns, treatment: str, baseline: str) -> str:
    """Name what distinguishes two treatments: norm, regularizer, or only options of these."""
    groups = ["norm", "regularizer"]
    names = study.results.groupby("treatment")[groups].first()
    if changed := [name for name in groups if names[name][treatment] != names[name][baseline]]:
        return join_words(changed)
    has_regularizer = names["regularizer"][treatment] != "none"
    return f"options of the {'norm or regularizer' if has_regularizer else 'norm'}"


def _describe_few_pairs(n: int, points: int) -> str:
    """Describe the consequences of few pairs, and how many seeds to add; "" for enough pairs."""
    if n >= MIN_PAIRS_TO_FLIP:
        return ""
    pairs, more = format_count(n, "pair"), math.ceil((MIN_PAIRS_TO_FLIP - n) / points)
    exact = (
        f"An exact test needs at least {MIN_PAIRS_TO_FLIP} pairs: add "
        f"{format_count(more, 'seed')} for each treatment."
    )
    if n < MIN_PAIRS_FOR_TEST:
        return f"With only {pairs}, values are shown but not tested. {exact}"
    return (
        f"With only {pairs}, intervals and p-values come from Student's t-test, which assumes "
        f"normally distributed differences. {exact}"
    )


def _describe_significant_tests(table: pd.DataFrame, name: str, other: str) -> Iterator[str]:
    layers = table[(table["place_index"] > 0) & table["p_adjusted"].notna()]
    for split, tests in layers.groupby("split", sort=False):
        if (family := int(tests["family"].max())) > 1:
            significant = sum(map(is_significant, tests.itertuples()))
            treatments = "treatments, " if family > len(tests) else ""
            yield (
                f"After adjustment for {family} tests (all {treatments}metrics and layers of the "
                f"{split} split), {significant} of the {format_count(len(tests), 'difference')} "
                f"between {name} and {other} {'is' if significant == 1 else 'are'} significant."
            )


def _describe_metric(name: str, metric: str, rows: Sequence[Any], points: int) -> Iterator[str]:
    """Describe in which layers, or at which relative depths, a metric differs.

    Args:
        name: Treatment in words.
        metric: Name of the metric.
        rows: Effects on it, one per layer or relative depth.
        points: Number of points of the grid.
    """
    if not rows:
        yield f"{metric} cannot be compared: {NO_VALUES}."
        return
    tested = [row for row in rows if not math.isnan(row.p)]
    if not tested:
        low, high = (format_signed(end(row.difference for row in rows)) for end in (min, max))
        ends = f"is {low}" if low == high else f"ranges from {low} to {high}"
        n = max(row.n for row in rows)
        yield (
            f"The difference in {metric} {ends} {format_places(rows)} "
            f"({format_count(n, 'pair')}, not tested)."
        )
        return
    for direction in ("higher", "lower"):
        if significant := [row for row in tested if direction_of(row) == direction]:
            largest = find_largest(significant)
            yield (
                f"Without adjustment for multiple tests, {metric} is {direction} with {name} "
                f"{format_places(rows, f'{len(significant)} of ')} "
                f"({', '.join(name_layer(row.place) for row in significant)}). The largest "
                f"difference is {format_place(largest)}: {format_difference(largest)}."
                f"{describe_adjustment(significant)}"
            )
    if not any(map(direction_of, tested)):
        largest = find_largest(tested)
        places = format_places(rows, "any of the ") if len(rows) > 1 else format_place(rows[0])
        yield (
            f"{metric} does not differ significantly {places}. The largest difference is "
            f"{format_place(largest)}: {format_difference(largest)}."
            f"{_describe_pairs_needed(largest, points)}"
        )
        bounded = [row for row in tested if math.isfinite(row.low) and math.isfinite(row.high)]
        if bounded:
            farthest = max(bounded, key=lambda row: abs(_far_end(row)))
            yield (
                f"At {CONFIDENCE:.0%} confidence, these pairs do not exclude a difference in "
                f"{metric} as large as {format_signed(_far_end(farthest))} "
                f"({format_place(farthest)})."
            )


def _far_end(row: Any) -> float:
    """Return the end of the confidence interval that is farther from 0."""
    return float(max(row.low, row.high, key=abs))


def _describe_probability(row: Any, name: str, other: str, points: int) -> str:
    """Describe how often a run of the treatment has a higher test accuracy than the baseline's.

    Args:
        row: Effect on test accuracy.
        name: Treatment in words.
        other: Baseline in words.
        points: Number of points of the grid.
    """
    if math.isnan(row.probability) or row.n < MIN_PAIRS_FOR_TEST:
        return ""
    at_point = " at the same point of the grid" if points > 1 else ""
    if row.probability in (0, 1) and not row.undefined:
        direction = "higher" if row.probability else "lower"
        return (
            f" In these pairs, every run with {name} has a {direction} test accuracy than every "
            f"run with {other}{at_point}."
        )
    return (
        f" Estimated probability that a run with {name} has a higher test accuracy than one "
        f"with {other}{at_point}: {row.probability:.2f}"
        f"{format_interval(row.probability_low, row.probability_high, '.2f')}."
    )


def _describe_pairs_needed(row: Any, points: int) -> str:
    """Describe how many seeds are needed to detect a difference that is not significant."""
    if not row.p > SIGNIFICANCE_LEVEL or math.isnan(row.pairs_needed):
        return ""
    if math.isinf(row.pairs_needed):
        return f" To detect a difference of this size, more than {MAX_PAIRS:,} pairs are needed."
    seeds = math.ceil(row.pairs_needed / points)
    return (
        f" To detect a difference of this size with probability {POWER:.0%}, about "
        f"{format_count(seeds, 'seed')} {'is' if seeds == 1 else 'are'} needed."
    )


def describe_adjustment(rows: Sequence[Any]) -> str:
    """Describe which of some significant differences remain significant after adjustment."""
    if rows[0].family < 2:
        return ""
    remaining = [row for row in rows if is_significant(row)]
    if len(rows) == 1:
        sentence = f"this difference {'remains' if remaining else 'is not'} significant"
    elif not remaining:
        sentence = "none of these differences is significant"
    elif len(remaining) == len(rows):
        sentence = "all of these differences remain significant"
    else:
        largest = "" if len(remaining) == 1 else "largest "
        sentence = (
            f"only {join_words([name_layer(row.place) for row in remaining])} "
            f"remain{'s' * (len(remaining) == 1)} significant "
            f"({largest}adjusted p = {format_p(max(row.p_adjusted for row in remaining))})"
        )
    return f" After adjustment for {rows[0].family} tests, {sentence}."
