"""Statements about differences at equal training, over depth, and about their uncertainty."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from bnstudy.headline import in_words
from bnstudy.study.analysis import Analysis
from bnstudy.study.generalization import choose_mediators
from bnstudy.study.load.pairs import match_pairs
from bnstudy.study.present.verdict.wording import (
    find_results,
    format_difference,
    format_place,
    join_words,
    key_of,
    select_known,
    select_rows,
)
from bnstudy.terms import format_count


def describe_equal_training(analysis: Analysis, treatment: str) -> Iterator[str]:
    """Describe a treatment's differences at equal training loss and equal training accuracy.

    Args:
        analysis: Analysis of the study.
        treatment: Treatment that is compared with the baseline.
    """
    study, name = analysis.study, in_words(treatment)
    effects = analysis.overall_effects
    effects = effects[effects["treatment"] == treatment] if len(effects) else effects
    for criterion, table in analysis.equal_training.items():
        table = select_known(table) if len(table) else table
        table = table[table["treatment"] == treatment] if len(table) else table
        if table.empty:
            pairs = len(match_pairs(study, treatment, analysis.baseline).treatment)
            if pairs and _has_curve(analysis, f"probe_{criterion}"):
                yield (
                    f"At equal training {criterion}, "
                    f"{'the pair cannot' if pairs == 1 else f'none of {pairs} pairs can'} be "
                    f"compared: a run diverged, or the two runs have no training {criterion} in "
                    "common."
                )
            continue
        first: Any = next(table.itertuples())
        left_out = [
            f"{count} {reason}"
            for count, reason in (
                (first.diverged, "with a diverged run"),
                (first.apart, f"without a common training {criterion}"),
            )
            if count
        ]
        without = f"; left out: {' and '.join(left_out)}" if left_out else ""
        accuracy = "".join(
            f" The difference in test accuracy on the probe set is {format_difference(row)}."
            for row in select_rows(table, split="test", metric="probe_accuracy", place_index=0)
        )
        yield (
            f"At equal training {criterion} ({format_count(int(table['n'].max()), 'pair')}"
            f"{without}), the runs are compared after {first.used:.0%} of the training with {name} "
            f"and {first.baseline_used:.0%} of that with {in_words(analysis.baseline)}.{accuracy}"
        )
        yield from _compare_results(criterion, effects, table, [*choose_mediators(study).values()])


def _has_curve(analysis: Analysis, metric: str) -> bool:
    """Check whether a metric was measured at several epochs, not of trained networks alone."""
    averages = analysis.averages_by_epoch
    return averages.loc[averages["metric"] == metric, "epoch"].nunique() > 1


def _compare_results(
    criterion: str, after_last_epoch: pd.DataFrame, at_equal: pd.DataFrame, metrics: Sequence[str]
) -> Iterator[str]:
    """Describe which single tests have another result than after the last epoch."""
    before, now = find_results(after_last_epoch), find_results(at_equal)
    described = [*select_rows(at_equal, split="test", metric="probe_accuracy", place_index=0)]
    for metric in metrics:
        described += select_rows(at_equal, split="train", metric=metric)
    described = [row for row in described if key_of(row) in before.keys() & now.keys()]
    if not described:
        return
    changed = []
    for row in described:
        before_row, now_row = before[key_of(row)], now[key_of(row)]
        if before_row != now_row:
            on_probe = "" if row.place_index else " on the probe set"
            changed.append(f"{_name(row)} ({before_row}, now {now_row}{on_probe})")
    tested = dict.fromkeys(row.metric if row.place_index else _name(row) for row in described)
    layers = [key_of(row) for row in at_equal.itertuples() if row.place_index]
    layers = [key for key in layers if key in before.keys() & now.keys()]
    yield (
        f"At equal training {criterion}, single tests of {join_words([*tested])} have the same "
        "results as after the last epoch"
        f"{f', except for {join_words(changed)}' if changed else ''}. Over all metrics and layers, "
        f"the results of {sum(before[key] != now[key] for key in layers)} of {len(layers)} single "
        "tests change."
    )


def _name(row: Any) -> str:
    return f"{row.metric} {format_place(row)}" if row.place_index else "test accuracy"


def describe_two_sources(table: pd.DataFrame, treatment: str) -> Iterator[str]:
    """Describe which source of uncertainty dominates.

    Args:
        table: `Analysis.two_sources`.
        treatment: Treatment that is compared with the baseline.
    """
    if table.empty:
        return
    table = table[table["treatment"] == treatment].dropna(subset="sample_share")
    if table.empty:
        return
    dominated = int((table["sample_share"] > 1 / 2).sum())
    excludes_0 = int(((table["low"] > 0) | (table["high"] < 0)).sum())
    yield (
        "Two sources of uncertainty: with both the seeds and the probed samples counted, the "
        f"intervals of {excludes_0} of {len(table)} differences between {in_words(treatment)} and "
        f"the baseline exclude 0. The samples are the larger source for {dominated} of these "
        f"{len(table)} differences, the seeds for {len(table) - dominated}."
    )


def describe_depth(table: pd.DataFrame, treatment: str, baseline: str) -> Iterator[str]:
    """Describe the separation law and the start of the tunnel, on the training split.

    Args:
        table: `Analysis.depth`.
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
            f"Separation law: from layer to layer, the separation fuzziness is multiplied by "
            f"{math.exp(slope.treatment_mean):.2f} with {name} (R² {fit.treatment_mean:.2f}) "
            f"and by {math.exp(slope.baseline_mean):.2f} with {other} "
            f"(R² {fit.baseline_mean:.2f}). The difference in log slope is "
            f"{format_difference(slope)}."
        )
    if tunnel := rows.get("tunnel_start"):
        yield (
            f"Tunnel: a linear probe first comes within 5 % of the last layer's at relative depth "
            f"{tunnel.treatment_mean:.0%} with {name} and {tunnel.baseline_mean:.0%} with "
            f"{other}. The difference is {format_difference(tunnel)}."
        )
