"""Statements about what may explain differences in test accuracy."""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from bnstudy.headline import in_words
from bnstudy.study.generalization import MIN_RUNS, choose_mediators
from bnstudy.study.load.matrix import are_activations
from bnstudy.study.load.study_runs import StudyRuns
from bnstudy.study.present.verdict.wording import (
    count_places,
    format_difference,
    format_interval,
    format_place,
    format_signed,
    select_known,
    select_rows,
)


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
            f"have both values. This study has {accuracy['n'].max()}."
        )
    accuracy = accuracy.dropna(subset="granulated")
    has_norms = len(study.treatments) - len(study.identical) > 1  # as an axis
    for family, metric in choose_mediators(study).items():
        rows: list[Any] = list(accuracy[accuracy["metric"] == metric].itertuples())
        if rows:
            row = max(rows, key=lambda row: abs(row.granulated))
            yield (
                f"{family.capitalize()} and test accuracy: among {count_places(rows)}, the rank "
                f"correlation of {metric} with test accuracy is strongest "
                f"{format_place(row)} ({row.n} runs). "
                f"{_describe_association(row, has_norms)}"
            )
    yield from _describe_mediation(mediation)


def _describe_association(row: Any, has_norms: bool) -> str:
    """Describe the defined coefficients of a metric with test accuracy."""
    ends = format_interval(row.granulated_low, row.granulated_high, ".2f") or " (no interval)"
    alone = " (only the norm varies)" if has_norms and row.axes == 1 else ""
    text = f"Granulated Kendall coefficient{alone}: {row.granulated:+.2f}{ends}"
    if math.isfinite(row.tau):
        text += f"; Kendall's tau: {row.tau:+.2f}"
    if math.isfinite(row.cmi) and math.isfinite(row.cmi_null):
        chance = "above" if row.cmi > row.cmi_null else "not above"
        text += (
            f"; conditional mutual information: {row.cmi:.3f}, {chance} the 95th percentile of "
            f"random orders ({row.cmi_null:.3f})"
        )
    return f"{text}."


def _describe_mediation(mediation: pd.DataFrame) -> Iterator[str]:
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
            f"{row.share:z.0%}{format_interval(row.share_low, row.share_high, 'z.0%')} goes "
            f"through {row.mediator} ({row.metric})"
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
        means = layers[layers["is_reported"] & (layers["split"] == "train")]
        changes = [
            f"{metric} by {format_signed(difference)}"
            for metric, difference in means.groupby("metric", sort=False)["difference"]
            .mean()
            .items()
        ]
        changed = (
            f" changes {' and '.join(changes)} (mean over {places})"
            if changes
            else " cannot be compared in any metric of layers"
        )
        for row in select_rows(table, split="test", metric="accuracy", place_index=0):
            yield (
                f"Intervention: compared with {other}, {name}{changed}. The difference in test "
                f"accuracy is {format_difference(row)}."
            )
