"""Statements about what may explain differences in test accuracy."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from bnstudy.headline import FAMILIES, in_words
from bnstudy.study.generalization import MIN_RUNS, choose_family_metrics
from bnstudy.study.inference.mediation import min_pairs_to_mediate
from bnstudy.study.load.matrix import are_activations
from bnstudy.study.load.study_runs import StudyRuns
from bnstudy.study.present.labels import name_layer
from bnstudy.study.present.verdict.wording import (
    format_difference,
    format_interval,
    format_place,
    format_places,
    format_signed,
    join_words,
    select_known,
    select_whole_model,
)

MAX_LISTED_LAYERS = 6  # of more layers, only those with the strongest correlation are listed


def describe_relations(
    study: StudyRuns, relations: pd.DataFrame, mediation: pd.DataFrame
) -> Iterator[str]:
    """Describe rank correlations of metrics with test accuracy, and the mediation analysis.

    Args:
        study: Study whose runs are comparable.
        relations: `Analysis.relations`.
        mediation: `Analysis.mediation`.
    """
    if relations.empty:
        return
    accuracy = relations[(relations["target"] == "test accuracy") & (relations["split"] == "train")]
    accuracy = accuracy[are_activations(accuracy)]
    if len(accuracy) and accuracy["n"].max() < MIN_RUNS:
        yield (
            f"Rank correlations of metrics with test accuracy need at least {MIN_RUNS} runs that "
            "have values of a metric and of the accuracy on the whole test split. This study has "
            f"{accuracy['n'].max()}."
        )
    accuracy = accuracy.dropna(subset="granulated")
    is_norm_axis = len(study.treatments) - len(study.identical) > 1
    family_metrics = choose_family_metrics(study)
    for family, metric in family_metrics.items():
        rows: list[Any] = list(accuracy[accuracy["metric"] == metric].itertuples())
        if rows:
            association = describe_association(rows, is_norm_axis=is_norm_axis)
            yield f"{family.capitalize()} and test accuracy: {association}"
    if family_metrics:
        yield from _describe_mediation(mediation)
    else:
        yield (
            f"There is no mediation analysis, because no metric of {' or '.join(FAMILIES)} was "
            "measured in the layers of the training split."
        )


def describe_association(rows: Sequence[Any], *, is_norm_axis: bool) -> str:
    """Describe the correlation of a metric with test accuracy in each layer.

    Of more than six layers, those with the largest absolute granulated coefficient are described;
    layers whose coefficients are equal to two digits tie.

    Args:
        rows: Relations of the metric with test accuracy, one row per layer.
        is_norm_axis: Whether the norm is one of the axes along which runs are compared.
    """
    listed = list(rows)
    if len(rows) > MAX_LISTED_LAYERS:
        sizes = [f"{abs(row.granulated):.2f}" for row in rows]
        listed = [row for row, size in zip(rows, sizes, strict=True) if size == max(sizes)]
    others = [row for row in rows if row not in listed]
    # With as many runs as a coefficient with an interval has, there are enough seeds for one.
    enough_runs = {row.n for row in listed if math.isfinite(row.granulated_low)}
    coefficients = [
        f"{row.granulated:+z.2f}{_format_interval_over_seeds(row, row.n in enough_runs)}"
        for row in listed
    ]
    axis = " (between runs with different norms)" if is_norm_axis and rows[0].axes == 1 else ""
    text = (
        f"over {_format_range([row.n for row in listed])} runs, the granulated Kendall coefficient "
        f"of {rows[0].metric} with test accuracy{axis} is {_list_places(listed, coefficients)}"
    )
    if others:
        several = len(others) > 1
        places = format_places(others, "the other ") if several else format_place(others[0])
        text += f", and smaller in absolute value {places}"
    text += "."
    if any(row.n not in enough_runs for row in listed):
        text += (
            " A coefficient without a confidence interval is from too few seeds, or the same for "
            "every seed."
        )
    if correlated := [row for row in listed if math.isfinite(row.tau)]:
        taus = [f"{row.tau:+z.2f}" for row in correlated]
        text += f" Kendall's tau over all runs is {_list_places(correlated, taus)}."
    return text + _describe_information(listed)


def _format_interval_over_seeds(row: Any, has_enough_seeds: bool) -> str:
    """Format the interval of a coefficient.

    Student's t has none for equal coefficients, however many seeds there are.
    """
    low, high = row.granulated_low, row.granulated_high
    if has_enough_seeds and math.isnan(low):
        return " for every seed"
    return format_interval(low, high, "z.2f", without_width="for every seed")


def _describe_information(rows: Sequence[Any]) -> str:
    """Describe in which layers the conditional mutual information is above its random level."""
    rows = [row for row in rows if math.isfinite(row.cmi) and math.isfinite(row.cmi_null)]
    if not rows:
        return ""
    above = [row for row in rows if row.cmi > row.cmi_null]
    exceeds = "exceeds" if above else "does not exceed"
    percentile = "the 95th percentile of its values for randomly permuted runs"
    information = f"The conditional mutual information of {rows[0].metric} and test accuracy"
    if len(rows) == 1:
        return (
            f" {information} is {rows[0].cmi:.3f}, which {exceeds} {percentile} "
            f"({rows[0].cmi_null:.3f})."
        )
    values = ", ".join(
        f"{name_layer(row.place)}: {row.cmi:.3f} > {row.cmi_null:.3f}" for row in above
    )
    places = format_places(rows, f"{len(above)} of these " if above else "any of these ")
    return f" {information} {exceeds} {percentile} {places}{f' ({values})' * bool(above)}."


def _format_range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def _list_places(rows: Sequence[Any], values: Sequence[str]) -> str:
    """List values with their places; places with the same value are named together."""
    places: dict[str, list[str]] = {}
    for row, value in zip(rows, values, strict=True):
        places.setdefault(value, []).append(name_layer(row.place))
    preposition = "in" if rows[0].layers > 0 else "at"
    return ", ".join(
        f"{value} {preposition} {join_words(names)}" for value, names in places.items()
    )


def _describe_mediation(mediation: pd.DataFrame) -> Iterator[str]:
    if mediation.empty:
        yield (
            "There are too few pairs for a mediation analysis, which needs at least "
            f"{min_pairs_to_mediate()} pairs with values of the metric and of the test accuracy."
        )
        return
    shared = mediation.dropna(subset="share")
    shared = shared[shared["target"] == "test accuracy"]
    if shared.empty:
        yield (
            "Mediation: the share of an effect on test accuracy that is mediated by a metric is "
            "not estimated, because the interval of every total effect contains 0."
        )
    for treatment, table in shared.groupby("treatment"):
        single_mediators: list[Any] = list(table[table["mediator"] != "both"].itertuples())
        shares = " ".join(map(_describe_share, single_mediators))
        separately = " Each metric is analysed separately." if len(single_mediators) > 1 else ""
        yield (
            "Mediation: the following shares describe associations; they are causal only under the "
            f"assumptions of mediation analysis. With {in_words(str(treatment))}, test accuracy "
            f"changes by {table['total'].iloc[0]:+.4f}. {shares}{separately}"
        )


def _describe_share(row: Any) -> str:
    """Describe the share of an effect that a metric mediates, and whether it differs from 0."""
    estimate = f"{row.share:z.0%}{format_interval(row.share_low, row.share_high, 'z.0%')}"
    share = f"The share of this change that is mediated by {row.mediator} ({row.metric})"
    if row.share_low > 0 or row.share_high < 0:
        return f"{share} is estimated as {estimate}."
    return f"{share} cannot be distinguished from 0: {estimate}."


def describe_interventions(interventions: pd.DataFrame) -> Iterator[str]:
    """Describe the effects of regularizers.

    Args:
        interventions: `Analysis.interventions`.
    """
    if interventions.empty:
        return
    known = select_known(interventions)
    for (treatment, baseline), table in known.groupby(["treatment", "baseline"]):
        name, other = in_words(str(treatment)), in_words(str(baseline))
        layers = table[table["place_index"] > 0]
        places = "layers" if (layers["layers"] > 0).all() else "relative depths"
        reported = layers[layers["is_reported"] & (layers["split"] == "train")]
        changes = [
            f"{metric} by {format_signed(difference)}"
            for metric, difference in reported.groupby("metric", sort=False)["difference"]
            .mean()
            .items()
        ]
        effect = (
            f"compared with {other}, {name} changes {join_words(changes)} (mean over {places})"
            if changes
            else f"{name} shares no measured layer metric with {other}"
        )
        for row in select_whole_model(table, "test", "accuracy"):
            yield (
                f"Intervention: {effect}. The difference in test accuracy is "
                f"{format_difference(row)}."
            )
