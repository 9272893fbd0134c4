"""Statements about differences at equal training, over depth, and about their uncertainty."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from bnstudy.headline import in_words
from bnstudy.study.analysis import Analysis
from bnstudy.study.depth_profile import TUNNEL_SHARE
from bnstudy.study.generalization import choose_family_metrics
from bnstudy.study.load.pairs import match_pairs
from bnstudy.study.present.labels import name_layer
from bnstudy.study.present.verdict.wording import (
    NOT_SIGNIFICANT,
    find_results,
    format_difference,
    format_place,
    join_words,
    key_of,
    select_known,
    select_layers,
    select_whole_model,
)
from bnstudy.terms import format_count

# Values at which the two runs of a pair are compared, by criterion.
COMMON_VALUES = {
    "loss": "larger of the two final training losses",
    "accuracy": "smaller of the two final training accuracies",
}


def describe_equal_training(analysis: Analysis, treatment: str) -> Iterator[str]:
    """Describe a treatment's differences at equal training loss and equal training accuracy.

    Args:
        analysis: Analysis of the study.
        treatment: Treatment that is compared with the baseline.
    """
    study, name = analysis.study, in_words(treatment)
    effects = select_known(analysis.overall_effects, treatment)
    for criterion, effects_at_equal in analysis.equal_training.items():
        table = select_known(effects_at_equal, treatment)
        if table.empty:
            matched = match_pairs(study, treatment, analysis.baseline)
            if len(matched.treatment) and _has_curve(analysis, f"probe_{criterion}"):
                has_diverged = study.results["status"].to_numpy() == "diverged"
                diverged = (has_diverged[matched.treatment] | has_diverged[matched.baseline]).sum()
                pairs = len(matched.treatment)
                none = "the pair is not" if pairs == 1 else f"none of {pairs} pairs is"
                left_out = _count_left_out(criterion, diverged, pairs - diverged)
                yield f"At equal training {criterion}, {none} compared: {left_out}."
            continue
        # The columns used, diverged and apart have the same value in all rows.
        first: Any = next(table.itertuples())
        left_out = _count_left_out(criterion, first.diverged, first.apart)
        without = f"; left out: {left_out}" if left_out else ""
        accuracy = "".join(
            " The difference in accuracy on the test split's probe set is "
            f"{format_difference(row)}."
            for row in select_whole_model(table, "test", "probe_accuracy")
        )
        if not accuracy and _has_curve(analysis, "probe_accuracy", "test"):
            accuracy = (
                " Test accuracy is not compared: in no pair was the probe set of the test split "
                "measured before and after these points in both runs."
            )
        coarse = ""
        if _max_measurements(analysis, treatment, f"probe_{criterion}") == 2:
            coarse = (
                f" These runs were measured only twice, so values at equal training {criterion} "
                "are interpolated over long stretches of training."
            )
        yield (
            f"At equal training {criterion} ({format_count(int(table['n'].max()), 'pair')}"
            f"{without}), each run is compared where it first reaches the "
            f"{COMMON_VALUES[criterion]} of its pair: runs with {name} after {first.used:.0%} of "
            f"their training on average, runs with {in_words(analysis.baseline)} after "
            f"{first.baseline_used:.0%}.{coarse}{accuracy}"
        )
        yield from _compare_results(
            criterion, name, effects, table, [*choose_family_metrics(study).values()]
        )


def _count_left_out(criterion: str, diverged: int, apart: int) -> str:
    reasons = {
        "with a diverged run": diverged,
        f"with a run that has reached the {COMMON_VALUES[criterion]} by its first measurement, or "
        f"has no training {criterion}": apart,
    }
    return " and ".join(f"{count} {reason}" for reason, count in reasons.items() if count)


def _max_measurements(analysis: Analysis, treatment: str, metric: str) -> int:
    """Find the largest number of training-split values of a metric in a run of the pairs."""
    study = analysis.study
    matched = match_pairs(study, treatment, analysis.baseline)
    paired = study.results.loc[[*matched.treatment, *matched.baseline]]
    measurements = study.query(
        "select cell, count(distinct step) as n from steps "
        "where metric = $metric and split = 'train' and isfinite(value) group by cell",
        metric=metric,
    ).set_index("cell")["n"]
    return int(measurements.reindex(paired["cell"]).max())


def _has_curve(analysis: Analysis, metric: str, split: str = "train") -> bool:
    """Check whether a metric was measured at several epochs; in pretrained networks it was not."""
    averages = analysis.averages_by_epoch
    chosen = (averages["metric"] == metric) & (averages["split"] == split)
    return averages.loc[chosen, "epoch"].nunique() > 1


def _compare_results(
    criterion: str,
    name: str,
    after_last_epoch: pd.DataFrame,
    at_equal: pd.DataFrame,
    metrics: Sequence[str],
) -> Iterator[str]:
    """Describe which tests have another result than after the last epoch.

    Args:
        criterion: `loss` or `accuracy`.
        name: Treatment in words.
        after_last_epoch: Effects of the treatment after the last epoch, from `select_known`.
        at_equal: Its effects at equal training, from `select_known`.
        metrics: Metrics of layers that are named; all are counted.
    """
    last_epoch, equal_training = find_results(after_last_epoch), find_results(at_equal)
    compared = last_epoch.keys() & equal_training.keys()
    described = select_whole_model(at_equal, "test", "probe_accuracy")
    for metric in metrics:
        described += select_layers(at_equal, "train", metric)
    described = [row for row in described if key_of(row) in compared]
    if not described:
        return
    unchanged = dict.fromkeys(_name_measured(row) for row in described)
    changed: dict[tuple[str, str], list[str]] = {}
    for row in described:
        results = last_epoch[key_of(row)], equal_training[key_of(row)]
        if results[0] != results[1]:
            unchanged.pop(_name_measured(row), None)
            place = f" {format_place(row)}" if row.place_index else ""
            changed.setdefault(results, []).append(f"{_name_measured(row)}{place}")
    sentences = [_describe_change(name, *results, names) for results, names in changed.items()]
    explanation = "(higher, lower or not significant)"
    if unchanged:
        noun, verb = ("outcome", "is") if len(unchanged) == 1 else ("outcomes", "are")
        sentences.insert(
            0,
            f"the {noun} {explanation} for {join_words([*unchanged])} {verb} the same as after the "
            "last epoch.",
        )
    layers = [key_of(row) for row in at_equal.itertuples() if row.place_index]
    layers = [key for key in layers if key in compared]
    yield (
        f"At equal training {criterion} and without adjustment for multiple tests, "
        f"{sentences[0]} {''.join(f'{text[:1].upper()}{text[1:]} ' for text in sentences[1:])}"
        "Over all metrics, layers and splits, "
        f"{sum(last_epoch[key] != equal_training[key] for key in layers)} of {len(layers)} "
        f"outcomes {'' if unchanged else f'{explanation} '}differ."
    )


def _name_measured(row: Any) -> str:
    """Name what a row is about: a metric, or the accuracy on the probe set of the test split."""
    return row.metric if row.place_index else "accuracy on the test split's probe set"


def _describe_change(name: str, last_epoch: str, equal_training: str, places: Sequence[str]) -> str:
    """Describe a change of result that some differences have in common.

    Args:
        name: Treatment in words.
        last_epoch: Result after the last epoch.
        equal_training: Result at equal training.
        places: Metric and place of each difference.
    """
    noun, verb = ("difference", "is") if len(places) == 1 else ("differences", "are")
    differences = f"the {noun} in {join_words(places)}"
    before = f"{last_epoch} with {name} after the last epoch"
    if equal_training == NOT_SIGNIFICANT:
        return f"{differences} ({before}) {verb} no longer significant."
    if last_epoch == NOT_SIGNIFICANT:
        now = f"{equal_training} with {name}"
        return f"{differences} ({now}) {verb} significant only at equal training."
    verb = "has" if len(places) == 1 else "have"
    return f"{differences} ({before}) {verb} the opposite sign."


def describe_two_sources(table: pd.DataFrame, treatment: str, baseline: str) -> Iterator[str]:
    """Describe how many intervals over pairs and samples exclude 0, and which source is larger.

    Args:
        table: `Analysis.two_source_intervals`.
        treatment: Treatment that is compared with the baseline.
        baseline: Treatment to compare with.
    """
    if table.empty:
        return
    table = table[table["treatment"] == treatment].dropna(subset="sample_share")
    if table.empty:
        return
    dominated = int((table["sample_share"] > 1 / 2).sum())
    excludes_0 = int(((table["low"] > 0) | (table["high"] < 0)).sum())
    yield (
        f"Two sources of uncertainty: {len(table)} differences between {in_words(treatment)} and "
        f"{in_words(baseline)} were also measured on parts of the probe sets. If the uncertainty "
        f"from the choice of probe samples is included, the intervals of {excludes_0} of these "
        f"exclude 0. The samples are the larger source of uncertainty for {dominated}, the runs "
        f"for {len(table) - dominated}."
    )


def describe_depth(table: pd.DataFrame, treatment: str, baseline: str) -> Iterator[str]:
    """Describe the separation law, the tunnel and the rank before training, on the training split.

    Args:
        table: `Analysis.profile_effects`.
        treatment: Treatment that is compared with the baseline.
        baseline: Treatment to compare with.
    """
    if table.empty:
        return
    name, other = in_words(treatment), in_words(baseline)
    table = table[(table["treatment"] == treatment) & (table["split"] == "train")]
    rows: dict[str, Any] = {
        str(row.metric): row for row in table[table["place_index"] == 0].itertuples() if row.n
    }
    if (slope := rows.get("separation_slope")) and (fit := rows.get("separation_r_squared")):
        yield (
            "Separation law: separation fuzziness is the within-class spread relative to the "
            "between-class spread. From layer to layer, it is multiplied by "
            f"{math.exp(slope.treatment_mean):.2f} with {name} (R² {fit.treatment_mean:.2f}) "
            f"and by {math.exp(slope.baseline_mean):.2f} with {other} "
            f"(R² {fit.baseline_mean:.2f}). The difference in the slope of its logarithm "
            f"is {format_difference(slope)}."
        )
    if tunnel := rows.get("tunnel_start"):
        yield (
            f"Tunnel: a linear probe first reaches {TUNNEL_SHARE:.0%} of the last layer's accuracy "
            f"at relative depth {tunnel.treatment_mean:.0%} with {name} and "
            f"{tunnel.baseline_mean:.0%} with {other}. The difference is "
            f"{format_difference(tunnel)}."
        )
    ranks = table[(table["metric"] == "initial_rank") & (table["n"] > 0)]
    if len(ranks):
        last: Any = next(ranks.sort_values("place_index", ascending=False).itertuples())
        yield (
            f"Before training, the soft rank of the last layer ({name_layer(last.place)}) is "
            f"{last.treatment_mean:.3g} with {name} and {last.baseline_mean:.3g} with {other}. The "
            f"difference is {format_difference(last)}."
        )
