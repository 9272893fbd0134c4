"""Verdict of a study in a few plain sentences, no surer than its pairs allow."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from bnstudy.study.analysis import Analysis
from bnstudy.study.fairness import describe_other_differences
from bnstudy.study.generalization import MIN_RUNS, choose_mediators
from bnstudy.study.inference.paired import CONFIDENCE, MIN_PAIRS, MIN_PAIRS_TO_FLIP, STUDENT_T
from bnstudy.study.load.matrix import are_activations
from bnstudy.study.load.pairs import match_pairs
from bnstudy.study.load.study_runs import StudyRuns

LEVEL = round(1 - CONFIDENCE, 9)  # p up to which a difference is called significant
MAX_LISTED = 3  # runs that are counted once

NO_VALUES = "no pair has a value in both of its runs"


def compose_verdict(analysis: Analysis) -> list[str]:
    """Compose the sentences: what was run, what differs, where, how sure, what may explain it.

    Args:
        analysis: Analysis of the study.
    """
    study, baseline = analysis.study, analysis.baseline
    sentences = [f"{study.counts()}.", *_left_out(study)]
    if len(study.treatments) < 2:
        return [*sentences, "There is nothing to compare: all runs have the same treatment."]
    known = _known(analysis.whole)
    for treatment in study.treatments:
        if treatment != baseline:
            table = known[known["treatment"] == treatment]
            sentences += _treatment(study, treatment, baseline, table)
    return [
        *sentences,
        *_explained(study, analysis.relations, analysis.mediation),
        *_intervened(analysis.interventions),
    ]


def _left_out(study: StudyRuns) -> Iterator[str]:
    results = study.results
    for treatment, runs in results.groupby("treatment"):
        if diverged := int((runs["status"] == "diverged").sum()):
            yield (
                f"{diverged} of {len(runs)} runs of {treatment} diverged: they count, with what "
                "could be measured in them."
            )
    duplicates = study.runs[study.runs["duplicate_of"].notna()]
    if len(duplicates):
        listed = [
            f"{cell} (as {other})"
            for cell, other in duplicates[["cell", "duplicate_of"]][:MAX_LISTED].to_numpy()
        ]
        more = len(duplicates) - len(listed)
        yield (
            f"{len(duplicates)} of {len(study.runs)} runs repeat others and are not counted again: "
            f"{', '.join(listed)}{f' and {more} more' * bool(more)}."
        )
    if missing := len(study.runs) - len(results) - len(duplicates):
        yield f"Not in what follows: {missing} of {len(study.runs)} runs, without results."


def _treatment(
    study: StudyRuns, treatment: str, baseline: str, table: pd.DataFrame
) -> Iterator[str]:
    matched = match_pairs(study, treatment, baseline)
    n = len(matched.treatment)
    if matched.identical:
        norms = study.results.groupby("treatment")["norm"].first()
        ignored = "norm" if norms[treatment] != norms[baseline] else "the regularizer"
        yield (
            f"The runs of {treatment} and {baseline} are identical, digit for digit, in all "
            f"{_count(matched.identical, 'pair')}: the network seems to ignore {ignored}. They are "
            "not compared."
        )
        return
    if n == 0:
        yield (
            f"No run of {treatment} is paired with one of {baseline}, so nothing is compared: "
            "runs of a pair share everything but norm and regularizer."
        )
        return
    rows = study.results.loc[matched.treatment]
    seeds, points = rows["seed"].nunique(), rows["grid"].nunique()
    where = f" at {_count(points, 'point')} of the grid" if points > 1 else ""
    unpaired = f" ({_count(matched.unpaired, 'run')} without a partner)" * bool(matched.unpaired)
    others = describe_other_differences(study, treatment, baseline)
    only = f"also differ in {others}; " if others else "differ in nothing else: "
    yield (
        f"{treatment} is compared with {baseline} over {_count(n, 'pair')} of runs that {only}"
        f"{_count(seeds, 'seed')}{where}{unpaired}."
    )
    if few := describe_few_pairs(n, points):
        yield few
    elif (table["test"] == STUDENT_T).any():  # other pairs have no value
        yield (
            f"Where fewer than {MIN_PAIRS_TO_FLIP} pairs have a value, intervals and p are those "
            "of Student's t-test, which assumes normally distributed differences; an exact test "
            f"needs at least {MIN_PAIRS_TO_FLIP} pairs with a value."
        )
    accuracy = list(_rows(table, split="test", metric="accuracy", place_index=0))
    for row in accuracy:
        yield (
            f"Test accuracy with {treatment} is {row.treatment_mean:.3f}, with {baseline} "
            f"{row.baseline_mean:.3f}: {_difference(row)}."
        )
    if not accuracy:
        yield f"Test accuracy cannot be compared: {NO_VALUES}."
    for metric in choose_mediators(study).values():
        yield from _metric(treatment, metric, list(_rows(table, split="train", metric=metric)))
    layers = table[(table["place_index"] > 0) & table["p_adjusted"].notna()]
    for split, tests in layers.groupby("split", sort=False):
        if (family := int(tests["family"].max())) > 1:
            found = int((tests["p_adjusted"] <= LEVEL).sum())
            yield (
                f"After adjustment for all {family} tests on the {split} split, {found} of the "
                f"{len(tests)} differences in layers with {treatment} "
                f"{'is' if found == 1 else 'are'} significant (p at most {LEVEL:.2g})."
            )


def describe_few_pairs(n: int, points: int = 1) -> str:
    """Describe what so few pairs allow, and how many seeds to add; empty where they are enough.

    Args:
        n: Number of pairs.
        points: Points of the grid, at each of which a seed adds a pair.
    """
    if n >= MIN_PAIRS_TO_FLIP:
        return ""
    more = math.ceil((MIN_PAIRS_TO_FLIP - n) / max(1, points))
    exact = (
        f"an exact test needs at least {MIN_PAIRS_TO_FLIP} pairs: add {_count(more, 'seed')} of "
        "each norm."
    )
    if n < MIN_PAIRS:
        return f"With {_count(n, 'pair')} nothing is tested, only values are shown; {exact}"
    return (
        f"With {_count(n, 'pair')} intervals and p are those of Student's t-test, which assumes "
        f"normally distributed differences; {exact}"
    )


def _metric(treatment: str, metric: str, rows: Sequence[Any]) -> Iterator[str]:
    """Describe where in depth a metric differs."""
    if not rows:
        yield f"{metric} cannot be compared: {NO_VALUES}."
        return
    tested = [row for row in rows if not math.isnan(row.p)]
    largest = max(tested or rows, key=lambda row: (abs(row.difference), row.place_index))
    if not tested:
        low, high = (_number(end(row.difference for row in rows)) for end in (min, max))
        ends = f"is {low}" if low == high else f"ranges from {low} to {high}"
        yield (
            f"{metric}: the difference {ends} {_places(rows)}, "
            f"{_count(largest.n, 'pair')}, not tested."
        )
        return
    clear = [row for row in tested if row.low > 0 or row.high < 0]
    if not clear:
        yield (
            f"{metric} does not differ significantly {_places(rows, 'any of ')}. The largest "
            f"difference is {_place(largest)}: {_difference(largest)}."
        )
        return
    for way, some in (
        ("higher", [row for row in clear if row.low > 0]),
        ("lower", [row for row in clear if row.high < 0]),
    ):
        if some:
            largest = max(some, key=lambda row: abs(row.difference))
            sure = sum(row.p_adjusted <= LEVEL for row in some)
            yield (
                f"{metric} is {way} with {treatment} {_places(rows, f'{len(some)} of ')} "
                f"({', '.join(row.place for row in some)}) by single tests, in {sure or 'none'} "
                f"after adjustment for {_count(largest.family, 'test')}. The largest difference is "
                f"{_place(largest)}: {_difference(largest)}."
            )


def _noun(row: Any) -> str:
    """Name the kind of place of a row: networks of different depth share relative depths alone."""
    return "layer" if row.layers > 0 else "relative depth"


def _place(row: Any) -> str:
    return f"{'in' if row.layers > 0 else 'at'} {row.place}"


def _places(rows: Sequence[Any], some: str = "") -> str:
    preposition = "in" if rows[0].layers > 0 else "at"
    return f"{preposition} {some}{_count(len(rows), _noun(rows[0]))}"


def _explained(study: StudyRuns, relations: pd.DataFrame, mediation: pd.DataFrame) -> Iterator[str]:
    if relations.empty:
        return
    accuracy = relations[(relations["target"] == "test accuracy") & (relations["split"] == "train")]
    accuracy = accuracy[are_activations(accuracy)]
    if len(accuracy) and accuracy["n"].max() < MIN_RUNS:
        yield (
            f"Whether a metric goes with test accuracy needs at least {MIN_RUNS} runs that have "
            f"both; there {'is' if accuracy['n'].max() == 1 else 'are'} {accuracy['n'].max()}."
        )
    accuracy = accuracy.dropna(subset="granulated")
    has_norms = len(study.treatments) - len(study.identical) > 1  # as an axis
    for name, metric in choose_mediators(study).items():
        table = accuracy[accuracy["metric"] == metric]
        if not table.empty:
            row: Any = table.iloc[int(table["granulated"].abs().argmax())]
            yield (
                f"Does {name} go with generalization? Over {row['n']} runs, {metric} goes with "
                f"test accuracy most {_place(row)}, the strongest of "
                f"{_count(len(table), _noun(row))}: {_association(row, has_norms)}."
            )
    if mediation.empty:
        yield "There are too few pairs to ask how much of an effect goes through a metric."
        return
    shared = mediation.dropna(subset="share")
    shared = shared[shared["target"] == "test accuracy"]
    if shared.empty:
        yield (
            "How much of an effect on test accuracy goes through a metric cannot be said: the "
            "interval of every total effect holds 0, and of nothing there are no shares."
        )
    for treatment, table in shared.groupby("treatment"):
        singly: list[Any] = list(table[table["mediator"] != "both"].itertuples())
        parts = " and ".join(
            f"{row.share:.0%}{_interval(row.share_low, row.share_high, '.0%')} through "
            f"{row.mediator} ({row.metric})"
            for row in singly
        )
        unclear = all(row.share_low <= 0 <= row.share_high for row in singly)
        doubt = "; every interval holds 0" if unclear else ""
        yield (
            f"Of the {table['total'].iloc[0]:+.4f} that {treatment} changes test accuracy by, "
            f"{parts} would go, each looked at alone{doubt}: this is association, and causal only "
            "under the assumptions of mediation."
        )


def _association(row: Any, has_norms: bool) -> str:
    """Coefficients of a metric with test accuracy, those that are defined."""
    ends = _interval(row["granulated_low"], row["granulated_high"], ".2f") or " (no interval)"
    alone = ", of norms alone" if has_norms and row["axes"] == 1 else ""
    parts = [f"granulated Kendall {row['granulated']:+.2f}{ends}{alone}"]
    if math.isfinite(row["tau"]):
        parts.append(f"tau {row['tau']:+.2f}")
    text = ", ".join(parts)
    if math.isfinite(row["cmi"]) and math.isfinite(row["cmi_null"]):
        chance = "above" if row["cmi"] > row["cmi_null"] else "not above"
        text += (
            f"; its conditional mutual information, {row['cmi']:.3f}, is {chance} what 95 of 100 "
            f"random orders stay below ({row['cmi_null']:.3f})"
        )
    return text


def _intervened(interventions: pd.DataFrame) -> Iterator[str]:
    if interventions.empty:
        return
    known = _known(interventions)
    for (treatment, baseline), table in known.groupby(["treatment", "baseline"]):
        told = []
        of_layers = table[table["place_index"] > 0]
        points = "layers" if (of_layers["layers"] > 0).all() else "relative depths"
        for metric in dict.fromkeys(of_layers["metric"]):
            rows = list(_rows(table, split="train", metric=metric))
            if rows:
                told.append(f"{metric} by {_number(sum(r.difference for r in rows) / len(rows))}")
        for row in _rows(table, split="test", metric="accuracy", place_index=0):
            yield (
                f"Intervention: {treatment} instead of {baseline} changed "
                f"{' and '.join(told) or 'representations'} (mean over {points}), and test "
                f"accuracy: {_difference(row)}."
            )


def _known(table: pd.DataFrame) -> pd.DataFrame:
    """Differences that there are; and as `is_told` whether sentences about a metric are of them."""
    return table.assign(is_told=are_activations(table)).dropna(subset="difference")


def _rows(table: pd.DataFrame, **values: object) -> Iterator[Any]:
    """The rows with these values; of layers' activations in order, unless a place is asked for."""
    for column, value in values.items():
        table = table[table[column] == value]
    if "place_index" not in values:
        table = table[table["is_told"]].sort_values("place_index")
    return table.itertuples(index=False)


def _difference(row: Any) -> str:
    """Difference with interval, p-values and number of pairs, those that are defined."""
    undefined = f", {row.undefined} undefined" if row.undefined else ""
    text = f"{_number(row.difference)}{_interval(row.low, row.high, '.3g')}"
    n = _count(row.n, "pair")
    if math.isnan(row.p):
        equal = ", all equal" if row.n >= MIN_PAIRS else ""  # of which no spread can be estimated
        return f"{text}, {n}{undefined}{equal}, not tested"
    test = f", {STUDENT_T}" if row.test == STUDENT_T else ""
    adjusted = "" if math.isnan(row.p_adjusted) else f", adjusted {row.p_adjusted:.3g}"
    return f"{text}, {n}{undefined}, p = {row.p:.3g}{adjusted}{test}"


def _interval(low: float, high: float, form: str) -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f" [{low:{form}}, {high:{form}}]"


def _number(difference: float) -> str:
    return f"{difference:+.3g}" if difference else "0"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"
