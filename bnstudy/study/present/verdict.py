"""Verdict of a study: a few sentences that claim no more than its pairs allow."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from bnstudy.headline import in_words
from bnstudy.study.analysis import Analysis
from bnstudy.study.confounders import describe_confounders
from bnstudy.study.generalization import MIN_RUNS, choose_mediators
from bnstudy.study.inference.paired import CONFIDENCE, MIN_PAIRS, MIN_PAIRS_TO_FLIP, STUDENT_T
from bnstudy.study.inference.planning import MAX_PAIRS, POWER
from bnstudy.study.load.matrix import are_activations
from bnstudy.study.load.pairs import match_pairs
from bnstudy.study.load.study_runs import StudyRuns
from bnstudy.terms import format_count

LEVEL = round(1 - CONFIDENCE, 9)  # largest p-value of a significant difference
MAX_LISTED = 3  # repeated runs that are listed

NO_VALUES = "no pair has a value in both of its runs"


def compose_verdict(analysis: Analysis) -> list[str]:
    """Compose the statements of the verdict.

    They describe the runs, the differences between treatments with their uncertainty, and what may
    explain differences in test accuracy.

    Args:
        analysis: Analysis of the study.
    """
    study, baseline = analysis.study, analysis.baseline
    sentences = [f"{study.counts()}.", *_left_out(study)]
    if len(study.treatments) < 2:
        return [
            *sentences,
            "There is nothing to compare, because all runs have the same norm and regularizer.",
        ]
    known = _known(analysis.overall_effects)
    if known["low"].notna().any():
        sentences.append(
            f"Differences are means over pairs, with {CONFIDENCE:.0%} confidence intervals in "
            "brackets."
        )
    for treatment in study.treatments_without(baseline):
        table = known[known["treatment"] == treatment]
        sentences += _treatment(study, treatment, baseline, table)
        sentences += describe_equal_training(analysis, treatment)
        sentences += _two_sources(analysis.two_sources, treatment)
        sentences += _depth(analysis.depth, treatment, baseline)
    return [
        *sentences,
        *_explained(study, analysis.relations, analysis.mediation),
        *_intervened(analysis.interventions),
    ]


def _left_out(study: StudyRuns) -> Iterator[str]:
    results = study.results
    for treatment, runs in results.groupby("treatment"):
        name = in_words(str(treatment))
        if diverged := int((runs["status"] == "diverged").sum()):
            yield (
                f"{diverged} of {len(runs)} runs of {name} diverged. Diverged runs are "
                "included wherever they have a value."
            )
        if stuck := int((runs["at_chance"] & (runs["status"] == "completed")).sum()):
            yield (
                f"{stuck} of {len(runs)} runs of {name} {_is(stuck)} at chance level: the "
                "training accuracy is not above that of guessing. They are included."
            )
    duplicates = study.runs[study.runs["duplicate_of"].notna()]
    if len(duplicates):
        listed = [
            f"{cell} (repeats {other})"
            for cell, other in duplicates[["cell", "duplicate_of"]][:MAX_LISTED].to_numpy()
        ]
        more = len(duplicates) - len(listed)
        verb = "repeats another run" if len(duplicates) == 1 else "repeat others"
        yield (
            f"{len(duplicates)} of {len(study.runs)} runs {verb} and {_is(len(duplicates))} not "
            f"counted again: {', '.join(listed)}{f' and {more} more' * bool(more)}."
        )
    if missing := len(study.runs) - len(results) - len(duplicates):
        has = "has" if missing == 1 else "have"
        total = format_count(len(study.runs), "run")
        yield f"{missing} of {total} {has} no results and {_is(missing)} left out."


def _treatment(
    study: StudyRuns, treatment: str, baseline: str, table: pd.DataFrame
) -> Iterator[str]:
    ours, theirs = in_words(treatment), in_words(baseline)
    matched = match_pairs(study, treatment, baseline)
    n = len(matched.treatment)
    norms = study.results.groupby("treatment")["norm"].first()
    changed = "norm" if norms[treatment] != norms[baseline] else "regularizer"
    if matched.identical:
        yield (
            f"{ours} and {theirs} are not compared, because the two runs of every pair "
            f"({format_count(matched.identical, 'pair')}) have identical values. The network "
            f"probably ignores the {changed}."
        )
        return
    if n == 0:
        yield (
            f"{ours} and {theirs} are not compared, because they have no pair of runs. The "
            "two runs of a pair share all settings except norm and regularizer."
        )
        return
    rows = study.results.loc[matched.treatment]
    seeds, points = rows["seed"].nunique(), rows["grid"].nunique()
    where = f" at {format_count(points, 'point')} of the grid" if points > 1 else ""
    unpaired = f"; {format_count(matched.unpaired, 'run')} without a partner" * bool(
        matched.unpaired
    )
    others = describe_confounders(study, treatment, baseline)
    alike = f"The two runs of a pair differ only in the {changed}"
    yield (
        f"{ours} is compared with {theirs} in {format_count(n, 'pair')} of runs "
        f"({format_count(seeds, 'seed')}{where}{unpaired}). "
        f"{f'Besides the {changed}, the runs of a pair differ in {others}' if others else alike}."
    )
    if few := describe_few_pairs(n, points):
        yield few
    elif (table["test"] == STUDENT_T).any():  # other pairs have no value
        yield (
            f"Where fewer than {MIN_PAIRS_TO_FLIP} pairs have a value, intervals and p-values come "
            "from Student's t-test, which assumes normally distributed differences. An exact test "
            f"needs at least {MIN_PAIRS_TO_FLIP} pairs with a value."
        )
    accuracy = list(_rows(table, split="test", metric="accuracy", place_index=0))
    for row in accuracy:
        yield (
            f"Test accuracy is {row.treatment_mean:.3f} with {ours} and "
            f"{row.baseline_mean:.3f} with {theirs}. The difference is {_difference(row)}."
            f"{_chances(row, ours, theirs)}{_next_study(row, points)}"
        )
    if not accuracy:
        yield f"Test accuracy cannot be compared: {NO_VALUES}."
    for metric in choose_mediators(study).values():
        rows_of_metric = list(_rows(table, split="train", metric=metric))
        yield from _metric(ours, metric, rows_of_metric, points)
    layers = table[(table["place_index"] > 0) & table["p_adjusted"].notna()]
    for split, tests in layers.groupby("split", sort=False):
        if (family := int(tests["family"].max())) > 1:
            found = int((tests["p_adjusted"] <= LEVEL).sum())
            yield (
                f"Over all metrics and layers of the {split} split, {found} of {len(tests)} "
                f"differences between {ours} and {theirs} {'has' if found == 1 else 'have'} an "
                f"adjusted p ≤ {LEVEL:.2g} (adjusted for {family} tests)."
            )


def describe_equal_training(analysis: Analysis, treatment: str) -> Iterator[str]:
    """Describe a treatment's differences at equal training loss and equal training accuracy.

    Args:
        analysis: Analysis of the study.
        treatment: Treatment that is compared with the baseline.
    """
    study, name = analysis.study, in_words(treatment)
    metrics = list(choose_mediators(study).values())
    last = _directions(_known(analysis.overall_effects), treatment, metrics)
    for criterion, table in analysis.equal_training.items():
        table = _known(table) if len(table) else table
        table = table[table["treatment"] == treatment] if len(table) else table
        if table.empty:
            pairs = len(match_pairs(study, treatment, analysis.baseline).treatment)
            if pairs and f"probe_{criterion}" in set(analysis.averages_by_epoch["metric"]):
                yield (
                    f"At equal training {criterion}, no pair can be compared: in all "
                    f"{format_count(pairs, 'pair')}, a run diverged or the training {criterion} "
                    "does not overlap."
                )
            continue
        first: Any = next(table.itertuples())
        left_out = [
            f"{count} {what}"
            for count, what in (
                (first.diverged, "with a diverged run"),
                (first.apart, f"whose training {criterion} does not overlap"),
            )
            if count
        ]
        without = f"; left out: {' and '.join(left_out)}" if left_out else ""
        accuracy = "".join(
            f" The difference in test accuracy on the probe set is {_difference(row)}."
            for row in _rows(table, split="test", metric="probe_accuracy", place_index=0)
        )
        yield (
            f"At equal training {criterion} ({format_count(int(table['n'].max()), 'pair')}"
            f"{without}), {first.used:.0%} of the training with {name} and "
            f"{first.baseline_used:.0%} of that with {in_words(analysis.baseline)} are used."
            f"{accuracy}"
        )
        now = _directions(table, treatment, metrics)
        changed = [
            f"{metric} {_place_of(place, layers)} ({before or 'unclear'}, now {after or 'unclear'})"
            for (metric, place, layers), before in last.items()
            if (after := now.get((metric, place, layers), before)) != before
        ]
        if now:
            yield (
                f"At equal training {criterion}, significant differences are those after the last "
                f"epoch{' except for ' + ', '.join(changed) if changed else ''}."
            )


def _directions(
    table: pd.DataFrame, treatment: str, metrics: Sequence[str]
) -> dict[tuple[str, str, int], str]:
    """Find in which direction metrics differ at each place; "" where that is not clear."""
    table = table[(table["treatment"] == treatment) & table["p"].notna()]
    return {
        (metric, row.place, row.layers): "higher"
        if row.low > 0
        else "lower"
        if row.high < 0
        else ""
        for metric in metrics
        for row in _rows(table, split="train", metric=metric)
    }


def _place_of(place: str, layers: int) -> str:
    return f"{'in' if layers > 0 else 'at'} {place}"


def _two_sources(table: pd.DataFrame, treatment: str) -> Iterator[str]:
    """Describe which source of uncertainty dominates."""
    if table.empty:
        return
    of_treatment = table[table["treatment"] == treatment].dropna(subset="sample_share")
    if of_treatment.empty:
        return
    dominated = int((of_treatment["sample_share"] > 1 / 2).sum())
    includes = int(((of_treatment["low"] > 0) | (of_treatment["high"] < 0)).sum())
    yield (
        "Two sources of uncertainty: over seeds and over the samples that are probed, "
        f"{includes} of {len(of_treatment)} differences between {in_words(treatment)} and the "
        "baseline have an interval without 0. The choice of the samples is the larger source for "
        f"{dominated} of them, the runs for {len(of_treatment) - dominated}."
    )


def _depth(table: pd.DataFrame, treatment: str, baseline: str) -> Iterator[str]:
    """Describe the separation law and the start of the tunnel, on the training split."""
    if table.empty:
        return
    ours, theirs = in_words(treatment), in_words(baseline)
    table = table[(table["treatment"] == treatment) & (table["split"] == "train")]
    rows: dict[str, Any] = {
        str(row.metric): row for row in table[table["place_index"] == 0].itertuples() if row.n
    }
    if (slope := rows.get("separation_slope")) and (fit := rows.get("separation_r_squared")):
        yield (
            f"Separation law: from layer to layer, the separation fuzziness is multiplied by "
            f"{math.exp(slope.treatment_mean):.2f} with {ours} (R² {fit.treatment_mean:.2f}) "
            f"and by {math.exp(slope.baseline_mean):.2f} with {theirs} "
            f"(R² {fit.baseline_mean:.2f}). The difference in log slope is {_difference(slope)}."
        )
    if tunnel := rows.get("tunnel_start"):
        yield (
            f"Tunnel: linear probes are within 5 % of the last layer's from relative depth "
            f"{tunnel.treatment_mean:.0%} on with {ours} and {tunnel.baseline_mean:.0%} with "
            f"{theirs}. The difference is {_difference(tunnel)}."
        )


def describe_few_pairs(n: int, points: int = 1) -> str:
    """Describe the consequences of few pairs, and how many seeds to add.

    Args:
        n: Number of pairs.
        points: Points of the grid, at each of which a seed adds a pair.

    Returns:
        Sentences; empty if there are enough pairs for an exact test.
    """
    if n >= MIN_PAIRS_TO_FLIP:
        return ""
    more = math.ceil((MIN_PAIRS_TO_FLIP - n) / max(1, points))
    exact = (
        f"An exact test needs at least {MIN_PAIRS_TO_FLIP} pairs: add "
        f"{format_count(more, 'seed')} for each norm."
    )
    if n < MIN_PAIRS:
        return f"With only {format_count(n, 'pair')}, values are shown but not tested. {exact}"
    return (
        f"With only {format_count(n, 'pair')}, intervals and p-values come from Student's t-test, "
        f"which assumes normally distributed differences. {exact}"
    )


def _metric(treatment: str, metric: str, rows: Sequence[Any], points: int) -> Iterator[str]:
    """Describe in which layers, or at which relative depths, a metric differs."""
    if not rows:
        yield f"{metric} cannot be compared: {NO_VALUES}."
        return
    tested = [row for row in rows if not math.isnan(row.p)]
    largest = max(tested or rows, key=lambda row: (abs(row.difference), row.place_index))
    if not tested:
        low, high = (_number(end(row.difference for row in rows)) for end in (min, max))
        ends = f"is {low}" if low == high else f"ranges from {low} to {high}"
        yield (
            f"The difference in {metric} {ends} {_places(rows)} "
            f"({format_count(largest.n, 'pair')}, not tested)."
        )
        return
    clear = [row for row in tested if row.low > 0 or row.high < 0]
    if not clear:
        yield (
            f"{metric} does not differ significantly {_places(rows, 'any of the ')}. The largest "
            f"difference is {_place(largest)}: {_difference(largest)}."
            f"{_next_study(largest, points)}"
        )
        widest = max(tested, key=_compatible)
        if math.isfinite(_compatible(widest)):
            yield (
                f"Differences in {metric} of up to ±{_compatible(widest):.3g} ({_place(widest)}) "
                f"are still compatible with these pairs, at {CONFIDENCE:.0%} confidence."
            )
        return
    for way, some in (
        ("higher", [row for row in clear if row.low > 0]),
        ("lower", [row for row in clear if row.high < 0]),
    ):
        if some:
            largest = max(some, key=lambda row: abs(row.difference))
            yield (
                f"With {treatment}, {metric} is {way} {_places(rows, f'{len(some)} of ')} "
                f"({', '.join(row.place for row in some)}). The largest difference is "
                f"{_place(largest)}: {_difference(largest)}.{_remaining(some)}"
            )


def _compatible(row: Any) -> float:
    """Return the largest size of a difference in the confidence interval; -inf without one."""
    size = max(abs(row.low), abs(row.high))
    return size if math.isfinite(size) else -math.inf


def _chances(row: Any, treatment: str, baseline: str) -> str:
    if math.isnan(row.probability) or row.n < MIN_PAIRS:
        return ""
    return (
        f" A run with {treatment} is better than one with {baseline} with probability "
        f"{row.probability:.2f}{_interval(row.probability_low, row.probability_high, '.2f')}."
    )


def _next_study(row: Any, points: int) -> str:
    """Describe how many seeds would show a difference that is not significant."""
    if not row.p > LEVEL or math.isnan(row.pairs_needed):
        return ""
    if math.isinf(row.pairs_needed):
        return f" To show a difference of this size, more than {MAX_PAIRS:,} pairs would be needed."
    seeds = math.ceil(row.pairs_needed / max(1, points))
    return (
        f" To show a difference of this size with probability {POWER:.0%}, about "
        f"{format_count(seeds, 'seed')} would be needed."
    )


def _remaining(rows: Sequence[Any]) -> str:
    """Describe how many of some significant differences are significant after adjustment."""
    if rows[0].family < 2:
        return ""
    remaining = sum(row.p_adjusted <= LEVEL for row in rows)
    if len(rows) == 1:
        what = f"This difference {'remains' if remaining else 'is not'}"
    elif remaining in (0, len(rows)):
        what = f"{'All' if remaining else 'None'} of these differences remain"
    else:
        what = f"{remaining} of these differences remain{'s' * (remaining == 1)}"
    return f" {what} significant after adjustment for {rows[0].family} tests."


def _noun(row: Any) -> str:
    """Name the kind of place of a row: networks of different depth share only relative depths."""
    return "layer" if row.layers > 0 else "relative depth"


def _place(row: Any) -> str:
    return _place_of(row.place, row.layers)


def _places(rows: Sequence[Any], some: str = "") -> str:
    preposition = "in" if rows[0].layers > 0 else "at"
    return f"{preposition} {some}{format_count(len(rows), _noun(rows[0]))}"


def _explained(study: StudyRuns, relations: pd.DataFrame, mediation: pd.DataFrame) -> Iterator[str]:
    if relations.empty:
        return
    accuracy = relations[(relations["target"] == "test accuracy") & (relations["split"] == "train")]
    accuracy = accuracy[are_activations(accuracy)]
    if len(accuracy) and accuracy["n"].max() < MIN_RUNS:
        yield (
            f"Rank correlations of metrics with test accuracy need at least {MIN_RUNS} runs that "
            f"have both values. This study has {accuracy['n'].max()}."
        )
    accuracy = accuracy.dropna(subset="granulated")
    has_norms = len(study.treatments) - len(study.identical) > 1  # as an axis
    for name, metric in choose_mediators(study).items():
        table = accuracy[accuracy["metric"] == metric]
        if not table.empty:
            row: Any = table.iloc[int(table["granulated"].abs().argmax())]
            yield (
                f"{name.capitalize()} and test accuracy: among "
                f"{format_count(len(table), _noun(row))}, the rank correlation of {metric} with "
                f"test accuracy is strongest {_place(row)} ({row['n']} runs). "
                f"{_association(row, has_norms)}"
            )
    if mediation.empty:
        yield "There are too few pairs for a mediation analysis."
        return
    shared = mediation.dropna(subset="share")
    shared = shared[shared["target"] == "test accuracy"]
    if shared.empty:
        yield (
            "Mediation: the share of an effect on test accuracy that goes through a metric is not "
            "estimated, because the interval of every total effect contains 0."
        )
    for treatment, table in shared.groupby("treatment"):
        singly: list[Any] = list(table[table["mediator"] != "both"].itertuples())
        parts = " and ".join(
            f"{row.share:z.0%}{_interval(row.share_low, row.share_high, 'z.0%')} goes through "
            f"{row.mediator} ({row.metric})"
            for row in singly
        )
        unclear = all(row.share_low <= 0 <= row.share_high for row in singly)
        alone = " Each metric is analysed separately." if len(singly) > 1 else ""
        yield (
            f"Mediation: with {in_words(str(treatment))}, test accuracy changes by "
            f"{table['total'].iloc[0]:+.4f}. Of this change, an estimated {parts}.{alone}"
            f"{' Every interval contains 0.' if unclear else ''} These shares describe "
            "associations; they are causal only under the assumptions of mediation analysis."
        )


def _association(row: Any, has_norms: bool) -> str:
    """Describe the defined coefficients of a metric with test accuracy."""
    ends = _interval(row["granulated_low"], row["granulated_high"], ".2f") or " (no interval)"
    alone = " (only the norm varies)" if has_norms and row["axes"] == 1 else ""
    text = f"Granulated Kendall coefficient{alone}: {row['granulated']:+.2f}{ends}"
    if math.isfinite(row["tau"]):
        text += f"; Kendall's tau: {row['tau']:+.2f}"
    if math.isfinite(row["cmi"]) and math.isfinite(row["cmi_null"]):
        chance = "above" if row["cmi"] > row["cmi_null"] else "not above"
        text += (
            f"; conditional mutual information: {row['cmi']:.3f}, {chance} the 95th percentile of "
            f"random orders ({row['cmi_null']:.3f})"
        )
    return f"{text}."


def _intervened(interventions: pd.DataFrame) -> Iterator[str]:
    if interventions.empty:
        return
    known = _known(interventions)
    for (treatment, baseline), table in known.groupby(["treatment", "baseline"]):
        ours, theirs = in_words(str(treatment)), in_words(str(baseline))
        changes = []
        of_layers = table[table["place_index"] > 0]
        points = "layers" if (of_layers["layers"] > 0).all() else "relative depths"
        for metric in dict.fromkeys(of_layers["metric"]):
            rows = list(_rows(table, split="train", metric=metric))
            if rows:
                average = _number(sum(row.difference for row in rows) / len(rows))
                changes.append(f"{metric} by {average}")
        for row in _rows(table, split="test", metric="accuracy", place_index=0):
            changed = (
                f" changes {' and '.join(changes)} (mean over {points})"
                if changes
                else " cannot be compared in any metric of layers"
            )
            yield (
                f"Intervention: compared with {theirs}, {ours}{changed}. The "
                f"difference in test accuracy is {_difference(row)}."
            )


def _known(table: pd.DataFrame) -> pd.DataFrame:
    """Select the defined differences, and mark as `is_reported` those that sentences describe."""
    return table.assign(is_reported=are_activations(table)).dropna(subset="difference")


def _rows(table: pd.DataFrame, **values: object) -> Iterator[Any]:
    """Yield the rows with given values; without a `place_index`, the reported layers in order."""
    for column, value in values.items():
        table = table[table[column] == value]
    if "place_index" not in values:
        table = table[table["is_reported"]].sort_values("place_index")
    return table.itertuples(index=False)


def _difference(row: Any) -> str:
    """Format a difference with its interval, number of pairs and p-values, where defined."""
    undefined = f" ({row.undefined} more without a value)" if row.undefined else ""
    text = f"{_number(row.difference)}{_interval(row.low, row.high, '.3g')}"
    n = format_count(row.n, "pair")
    if math.isnan(row.p):
        # Equal differences have no spread that a test could use.
        equal = " because all differences are equal" if row.n >= MIN_PAIRS else ""
        return f"{text}, {n}{undefined}, not tested{equal}"
    test = f", {STUDENT_T}" if row.test == STUDENT_T else ""
    adjusted = "" if math.isnan(row.p_adjusted) else f", adjusted p = {row.p_adjusted:.3g}"
    return f"{text}, {n}{undefined}, p = {row.p:.3g}{adjusted}{test}"


def _interval(low: float, high: float, form: str) -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f" [{low:{form}}, {high:{form}}]"


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _number(difference: float) -> str:
    return f"{difference:+.3g}" if difference else "0"
