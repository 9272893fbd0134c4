"""Cards at the head of the page: one for each treatment that is compared with the baseline."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bnstudy.headline import in_words
from bnstudy.study.analysis import Analysis
from bnstudy.study.generalization import choose_family_metrics
from bnstudy.study.present.labels import label_of, layer_in_words
from bnstudy.study.present.verdict.comparison import explain_missing_pairs
from bnstudy.study.present.verdict.wording import (
    NOT_SIGNIFICANT,
    SIGNIFICANCE_LEVEL,
    direction_of,
    find_largest,
    find_results,
    format_estimate,
    format_p,
    is_significant,
    key_of,
    result_of,
    select_known,
    select_layers,
    select_test_accuracy,
    summarize_directions,
)
from bnstudy.terms import format_count

ARROWS = {"": "○", "higher": "▲", "lower": "▼", "higher lower": "◆"}


class Finding(NamedTuple):
    """Difference in one outcome as a card shows it, with the number of layers that differ.

    Attributes:
        outcome: Test accuracy, sparsity or clustering.
        arrow: Symbol of the directions of all differences that are significant before adjustment.
        direction: Directions in words, with the number of layers.
        size: Difference with its interval: the largest that is significant after adjustment; if
            there is none, the largest that is significant before it; otherwise the largest.
        detail: Metric and layer of this difference, or the two means.
        certainty: Significance of this difference, p-values where it was tested, number of pairs,
            and results at equal training if they differ.
    """

    outcome: str
    arrow: str
    direction: str
    size: str
    detail: str
    certainty: str


class Card(NamedTuple):
    """Comparison of a treatment with the baseline.

    Attributes:
        title: Names of both treatments.
        note: Reason why they are not compared; "" if they are.
        findings: Differences in accuracy, sparsity and clustering, as far as they were measured.
    """

    title: str
    note: str
    findings: list[Finding]


def compose_cards(analysis: Analysis) -> list[Card]:
    """Compose the cards of all treatments, about the metrics that the verdict describes.

    Args:
        analysis: Analysis of the study.
    """
    study, baseline = analysis.study, analysis.baseline
    cards = []
    for treatment in study.treatments_without(baseline):
        title = f"{in_words(treatment)} compared with {in_words(baseline)}"
        note = explain_missing_pairs(study, treatment, baseline)
        findings = []
        if not note:
            table = select_known(analysis.overall_effects, treatment)
            results = {
                criterion: find_results(select_known(effects, treatment))
                for criterion, effects in analysis.equal_training.items()
            }
            rows = select_test_accuracy(table)
            findings = [_describe_finding("test accuracy", "accuracy", rows, results)]
            for family, metric in choose_family_metrics(study).items():
                rows = select_layers(table, "train", metric)
                findings.append(_describe_finding(family, metric, rows, results))
        cards.append(Card(title, note, findings))
    return cards


def _describe_finding(
    outcome: str,
    metric: str,
    rows: Sequence[Any],
    at_equal_training: Mapping[str, Mapping[tuple[str, str, str], str]],
) -> Finding:
    """Describe the differences in an outcome, and one of them in detail: see `Finding.size`.

    Args:
        outcome: Test accuracy, sparsity or clustering.
        metric: Name of the metric.
        rows: Effects on it: one for the whole model, or one per layer or relative depth.
        at_equal_training: Results of `find_results` by criterion.
    """
    if not rows:
        return Finding(outcome, "–", "not compared", "", "", "no pair has a value in both runs")
    significant_before = [row for row in rows if direction_of(row)]
    significant = [row for row in significant_before if is_significant(row)]
    row = find_largest(significant or significant_before or rows)
    directions = " ".join(sorted({direction_of(row) for row in rows} - {""}))
    if row.place_index:  # 0 for the whole model
        direction = summarize_directions(rows)
        if len(significant_before) > len(significant):
            direction += f"; after adjustment, significant in {len(significant) or 'none'}"
        detail = f"{label_of(metric).words}, {layer_in_words(row.place)}"
    else:
        direction = directions or (
            "not tested" if math.isnan(row.p) else "no significant difference"
        )
        detail = f"{row.treatment_mean:.3f} against {row.baseline_mean:.3f}"
        if row.metric == "probe_accuracy":
            detail += " on the probe set"
    size = format_estimate(row).replace("-", "−")
    certainty = _describe_certainty(row)
    for criterion, results in at_equal_training.items():
        result = results.get(key_of(row))
        if result and result != result_of(row):
            on_probe = "" if row.place_index else ", on the probe set"
            unadjusted = "" if result == NOT_SIGNIFICANT else " before adjustment"
            certainty += f"; at equal training {criterion}{on_probe}: {result}{unadjusted}"
    return Finding(outcome, ARROWS[directions], direction, size, detail, certainty)


def _describe_certainty(row: Any) -> str:
    diverged = f" ({row.diverged} with a diverged run)" if row.diverged else ""
    n = f"{format_count(row.n, 'pair')}{diverged}"
    if math.isnan(row.p):
        return n
    p = f"p = {format_p(row.p)}, adjusted p = {format_p(row.p_adjusted)}"
    if row.p > SIGNIFICANCE_LEVEL:
        return f"not significant: {p}, {n}"
    before = "" if is_significant(row) else " before adjustment only"
    return f"significant{before}: {p}, {n}"
