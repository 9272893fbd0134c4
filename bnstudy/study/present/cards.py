"""Cards at the head of the page: one for each norm that is compared with the baseline."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bnstudy.headline import in_words
from bnstudy.study.analysis import Analysis
from bnstudy.study.generalization import choose_mediators
from bnstudy.study.present.labels import label_of, layer_in_words
from bnstudy.study.present.verdict.comparison import explain_missing_pairs
from bnstudy.study.present.verdict.wording import (
    SIGNIFICANCE_LEVEL,
    direction_of,
    find_largest,
    find_results,
    format_interval,
    format_signed,
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
    """A difference in one outcome.

    Attributes:
        outcome: Test accuracy, sparsity or clustering.
        arrow: Symbol of its direction.
        direction: Where it is higher or lower.
        size: Largest significant difference, or else the largest one that is significant before
            adjustment, or else the largest one, with its interval.
        detail: Metric and layer, or the two means.
        certainty: p-values, or why there are none, and the number of pairs.
    """

    outcome: str
    arrow: str
    direction: str
    size: str
    detail: str
    certainty: str


class Card(NamedTuple):
    """Comparison of a norm with the baseline.

    Attributes:
        title: Names of both.
        note: Why they are not compared; "" if they are.
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
    known = (
        select_known(analysis.overall_effects)
        if len(analysis.overall_effects)
        else analysis.overall_effects
    )
    cards = []
    for treatment in study.treatments_without(baseline):
        title = f"{in_words(treatment)} compared with {in_words(baseline)}"
        note = explain_missing_pairs(study, treatment, baseline)
        findings = []
        if not note:
            table = known[known["treatment"] == treatment]
            results = {
                criterion: find_results(equal[equal["treatment"] == treatment])
                for criterion, equal in analysis.equal_training.items()
                if len(equal)
            }
            rows = select_test_accuracy(table)
            findings = [_find("test accuracy", "accuracy", rows, results)]
            for family, metric in choose_mediators(study).items():
                rows = select_layers(table, "train", metric)
                findings.append(_find(family, metric, rows, results))
        cards.append(Card(title, note, findings))
    return cards


def _find(
    outcome: str,
    metric: str,
    rows: Sequence[Any],
    at_equal_training: Mapping[str, Mapping[tuple[str, str, str], str]],
) -> Finding:
    """Describe the differences in an outcome by one of them; see `Finding.size`.

    Args:
        outcome: Test accuracy, sparsity or clustering.
        metric: Name of the metric.
        rows: Effects on it, one per place.
        at_equal_training: Results of `find_results` by criterion.
    """
    if not rows:
        return Finding(outcome, "–", "not compared", "", "", "no pair has a value in both runs")
    before_adjustment = [row for row in rows if direction_of(row)]
    significant = [row for row in before_adjustment if is_significant(row)]
    row = find_largest(significant or before_adjustment or rows)
    directions = " ".join(sorted({direction_of(row) for row in rows} - {""}))
    if row.place_index:
        direction = summarize_directions(rows)
        if len(before_adjustment) > len(significant) > 0:
            direction += f", after adjustment in {len(significant)}"
        detail = f"{label_of(metric).words}, {layer_in_words(row.place)}"
    else:
        direction = directions or (
            "not tested" if math.isnan(row.p) else "no significant difference"
        )
        detail = f"{row.treatment_mean:.3f} against {row.baseline_mean:.3f}"
    size = format_signed(row.difference) + format_interval(row.low, row.high)
    size = size.replace("-", "−")
    certainty = _describe_certainty(row)
    for criterion, results in at_equal_training.items():
        result = results.get(key_of(row))
        if result and result != result_of(row):
            on_probe = "" if row.place_index else ", on the probe set"
            certainty += f"; {result} at equal training {criterion}{on_probe}"
    return Finding(outcome, ARROWS[directions], direction, size, detail, certainty)


def _describe_certainty(row: Any) -> str:
    diverged = f" ({row.diverged} with a diverged run)" if row.diverged else ""
    n = f"{format_count(row.n, 'pair')}{diverged}"
    if math.isnan(row.p):
        return n
    p = f"p = {row.p:.2g}"
    if not math.isnan(row.p_adjusted):
        p += f", adjusted p = {row.p_adjusted:.2g}"
    if row.p > SIGNIFICANCE_LEVEL:
        return f"not significant: {p}, {n}"
    before = "" if is_significant(row) else " before adjustment only"
    return f"significant{before}: {p}, {n}"
