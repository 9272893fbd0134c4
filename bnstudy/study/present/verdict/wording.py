"""Numbers and places of the verdict in words; the cards of the page use them too."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from bnstudy.study.inference.paired import CONFIDENCE, MIN_PAIRS_FOR_TEST, STUDENT_T
from bnstudy.study.load.matrix import are_activations
from bnstudy.study.present.labels import name_layer
from bnstudy.terms import PROBE_PERFORMANCE, format_count

SIGNIFICANCE_LEVEL = round(1 - CONFIDENCE, 9)  # largest p-value of a significant difference
NOT_SIGNIFICANT = "not significant"

# Families of the adjusted p; the page explains its method with the same sentences.
FAMILIES_OF_TESTS = (
    "A family contains the tests of all treatments. Accuracy and loss are one family. The metrics "
    "of layers are one family per split. The values that callbacks record in layers are another "
    "one per split. "
    "All other values of the whole network are one family. The comparisons at equal training loss, "
    "at equal training accuracy, of depth profiles (separation law, tunnel, rank before training) "
    "and of regularizers have families of their own."
)


def select_known(table: pd.DataFrame, treatment: str | None = None) -> pd.DataFrame:
    """Select the defined differences, and mark as `is_reported` those that sentences describe.

    Args:
        table: Effects of all treatments, as from `compute_effects`; it may be empty, without
            columns.
        treatment: Treatment whose differences are selected; None: all treatments.
    """
    if table.columns.empty:
        return table
    known = table.assign(is_reported=are_activations(table)).dropna(subset="difference")
    return known if treatment is None else known[known["treatment"] == treatment]


def select_whole_model(table: pd.DataFrame, split: str, metric: str) -> list[Any]:
    """Select the row of a metric of the whole model; an empty list if there is none."""
    table = table[table["place_index"] == 0]
    return _select_metric(table, split, metric)


def select_layers(table: pd.DataFrame, split: str, metric: str) -> list[Any]:
    """Select the rows of a metric in the layers that sentences describe, in order of depth."""
    table = table[table["is_reported"]].sort_values("place_index")
    return _select_metric(table, split, metric)


def _select_metric(table: pd.DataFrame, split: str, metric: str) -> list[Any]:
    chosen = (table["split"] == split) & (table["metric"] == metric)
    return list(table[chosen].itertuples(index=False))


def select_test_accuracy(table: pd.DataFrame) -> list[Any]:
    """Select the row of the test accuracy.

    It is that of the probe set if no network was evaluated on the whole test split.
    """
    for metric in ("accuracy", "probe_accuracy"):
        if rows := select_whole_model(table, "test", metric):
            return rows
    return []


def direction_of(row: Any) -> str:
    """Return higher or lower if the interval of a difference excludes 0; otherwise ""."""
    return "higher" if row.low > 0 else "lower" if row.high < 0 else ""


def is_significant(row: Any) -> bool:
    """Check whether a difference is significant after adjustment; it is not if it has no test."""
    return bool(row.p_adjusted <= SIGNIFICANCE_LEVEL)


def key_of(row: Any) -> tuple[str, str, str]:
    """Return split, metric and place of a row, to find it in another table.

    For probe_accuracy and probe_loss, the metric is accuracy or loss, because a table may have
    these for the whole split alone.
    """
    metric = row.metric.removeprefix("probe_") if row.metric in PROBE_PERFORMANCE else row.metric
    return row.split, metric, row.place


def result_of(row: Any) -> str:
    """Return the result of a test without adjustment: higher, lower or not significant."""
    return direction_of(row) or NOT_SIGNIFICANT


def find_results(table: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    """Find the result of each test without adjustment, by `key_of`; an empty table has none."""
    tested = table[table["p"].notna()] if len(table) else table
    return {key_of(row): result_of(row) for row in tested.itertuples()}


def join_words(words: Sequence[str], conjunction: str = "and") -> str:
    """Join words by commas, and the last one by a conjunction.

    Examples:
        >>> join_words(["norm"]), join_words(["a", "b", "c"], "or")
        ('norm', 'a, b or c')
    """
    *first, last = words
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def format_estimate(row: Any) -> str:
    """Format a difference with its interval, where defined."""
    interval = format_interval(row.low, row.high, without_width="in every pair")
    return f"{format_signed(row.difference)}{interval}"


def format_difference(row: Any) -> str:
    """Format a difference with its interval, number of pairs and p-values, where defined."""
    undefined = f" ({row.undefined} more without a value)" if row.undefined else ""
    text = format_estimate(row)
    n = format_count(row.n, "pair")
    if math.isnan(row.p):
        # Student's t divides by the standard deviation, which is 0 for equal differences.
        equal = " because all differences are equal" if row.n >= MIN_PAIRS_FOR_TEST else ""
        return f"{text}, {n}{undefined}, not tested{equal}"
    test = f", {STUDENT_T}" if row.test == STUDENT_T else ""
    adjusted = ""
    if not math.isnan(row.p_adjusted):
        adjusted = f", adjusted p = {format_p(row.p_adjusted)} ({format_count(row.family, 'test')})"
    return f"{text}, {n}{undefined}, p = {format_p(row.p)}{adjusted}{test}"


def format_p(p: float) -> str:
    """Format a p-value; a dash if there is none.

    Examples:
        >>> format_p(1 / 128), format_p(float("nan"))
        ('0.00781', '–')
    """
    return "–" if math.isnan(p) else f"{p:.3g}"


def format_interval(
    low: float, high: float, form: str = ".3g", *, without_width: str | None = None
) -> str:
    """Format an interval in brackets after a space; "" if it is not finite.

    Args:
        low: Lower end.
        high: Upper end.
        form: Format of the ends.
        without_width: Words for an interval whose ends are equal; None: the interval.

    Examples:
        >>> format_interval(-0.5, 1), format_interval(1, 1, without_width="in every pair")
        (' [-0.5, 1]', ' in every pair')
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    if low == high and without_width is not None:
        return f" {without_width}"
    return f" [{low:{form}}, {high:{form}}]"


def format_signed(difference: float) -> str:
    """Format a difference with its sign."""
    return f"{difference:+.3g}" if difference else "0"


def find_largest(rows: Sequence[Any]) -> Any:
    """Find the row with the largest absolute difference; if several have it, the deepest layer."""
    return max(rows, key=lambda row: (abs(row.difference), row.place_index))


def format_place(row: Any) -> str:
    """Format the place of a row: in a layer, or at a relative depth."""
    return f"{'in' if row.layers > 0 else 'at'} {name_layer(row.place)}"


def format_places(rows: Sequence[Any], prefix: str = "") -> str:
    """Format the number of places of rows, such as in 2 of 4 layers."""
    preposition = "in" if rows[0].layers > 0 else "at"
    return f"{preposition} {prefix}{count_places(rows)}"


def count_places(rows: Sequence[Any]) -> str:
    """Count layers; networks of different depth share only relative depths."""
    return format_count(len(rows), "layer" if rows[0].layers > 0 else "relative depth")


def summarize_directions(rows: Sequence[Any]) -> str:
    """Summarize in how many places a metric is higher or lower, such as lower in 2 of 4 layers.

    Args:
        rows: Differences of a metric, one per place.
    """
    if all(math.isnan(row.p) for row in rows):
        return f"not tested {format_places(rows)}"
    directions = Counter(map(direction_of, rows))
    at = "in" if rows[0].layers > 0 else "at"
    phrases = [
        f"{name} {at} {directions[name]}" for name in ("higher", "lower") if directions[name]
    ]
    if not phrases:
        return f"no significant difference {format_places(rows)}"
    return f"{' and '.join(phrases)} of {count_places(rows)}"
