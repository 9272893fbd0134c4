"""What a study says, in a few plain sentences, no surer than its pairs allow."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from bnstudy.study.fairness import other_differences
from bnstudy.study.generalization import mediators
from bnstudy.study.layers import of_activations
from bnstudy.study.load import Study
from bnstudy.study.statistics import CONFIDENCE, pairs

LEVEL = 1 - CONFIDENCE  # below which p is called small
MAX_LISTED = 3  # runs that are counted once


def verdict(
    study: Study,
    effects: pd.DataFrame,
    relations: pd.DataFrame,
    mediation: pd.DataFrame,
    interventions: pd.DataFrame,
    baseline: str | None = None,
) -> list[str]:
    """The sentences: what was run, what differs, where, how sure, and what may explain it.

    Args:
        study: Whose runs are comparable.
        effects: Of `bnstudy.study.statistics.effects`, of all pairs together.
        relations: Of `bnstudy.study.generalization.relations`.
        mediation: Of `bnstudy.study.generalization.mediation`.
        interventions: Of `bnstudy.study.generalization.interventions`.
        baseline: The treatment that `effects` compares with; None: `Study.baseline`'s choice.
    """
    sentences = [f"{study.counts()}.", *_left_out(study)]
    if len(study.treatments) < 2:
        return [*sentences, "There is nothing to compare: all runs have the same treatment."]
    baseline = study.baseline(baseline)
    known = _known(effects)
    for treatment in study.treatments:
        if treatment != baseline:
            table = known[known["treatment"] == treatment]
            sentences += _treatment(study, treatment, baseline, table)
    return [*sentences, *_explained(study, relations, mediation), *_intervened(interventions)]


def _left_out(study: Study) -> Iterator[str]:
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


def _treatment(study: Study, treatment: str, baseline: str, table: pd.DataFrame) -> Iterator[str]:
    matched = pairs(study, treatment, baseline)
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
            f"No run of {treatment} is paired with one of {baseline}: they differ in more than "
            "that, so that nothing is compared."
        )
        return
    rows = study.results.loc[matched.treatment]
    seeds, points = rows["seed"].nunique(), rows["grid"].nunique()
    where = f" at {_count(points, 'point')} of the grid" if points > 1 else ""
    unpaired = f" ({_count(matched.unpaired, 'run')} without a partner)" * bool(matched.unpaired)
    others = other_differences(study, treatment, baseline)
    only = f"also differ in {others}; " if others else "differ in nothing else: "
    yield (
        f"{treatment} is compared with {baseline} over {_count(n, 'pair')} of runs that {only}"
        f"{_count(seeds, 'seed')}{where}{unpaired}."
    )
    smallest = table.loc[table["n"] == n, "smallest_p"].min()
    if smallest >= LEVEL:
        yield (
            f"With {_count(n, 'pair')} the smallest two-sided p there can be is {smallest:.3g}: "
            "this study cannot establish any single difference, only suggest its size."
        )
    for row in _rows(table, split="test", metric="accuracy", place_index=0):
        yield (
            f"Test accuracy with {treatment} is {row.treatment_mean:.3f}, with {baseline} "
            f"{row.baseline_mean:.3f}: {_difference(row)}."
        )
    for metric in mediators(study).values():
        yield from _metric(treatment, metric, list(_rows(table, split="train", metric=metric)))
    layers = table[table["place_index"] > 0]
    for split, tests in layers.groupby("split", sort=False):
        if tests["family"].max() > 1 and smallest < LEVEL:
            found, family = int((tests["p_holm"] < LEVEL).sum()), int(tests["family"].max())
            few = f"; with {_count(n, 'pair')} none could" if smallest * family >= LEVEL else ""
            yield (
                f"After Holm's correction for {family} tests p is below {LEVEL:.2g} for {found} of "
                f"the {len(tests)} differences of layers on the {split} split{few}."
            )


def _metric(treatment: str, metric: str, rows: Sequence[Any]) -> Iterator[str]:
    """Where in depth a metric differs."""
    if not rows:
        return
    clear = [row for row in rows if row.low > 0 or row.high < 0]
    bounded = [row for row in rows if not math.isnan(row.low)]
    largest = max(rows, key=lambda row: (abs(row.difference), row.place_index))
    if not bounded:
        yield (
            f"{metric}: the largest difference, at {largest.place}, is {_difference(largest)}; "
            "there is no interval."
        )
        return
    if not clear:
        yield (
            f"{metric}: no layer's interval leaves out 0; the largest difference, at "
            f"{largest.place}, is {_difference(largest)}."
        )
        return
    for way, some in (
        ("higher", [row for row in clear if row.low > 0]),
        ("lower", [row for row in clear if row.high < 0]),
    ):
        if some:
            largest = max(some, key=lambda row: abs(row.difference))
            sure = sum(row.p_holm < LEVEL for row in some)
            yield (
                f"{metric} is {way} with {treatment} at {len(some)} of "
                f"{_count(len(rows), 'place')} ({', '.join(row.place for row in some)}), going by "
                f"single intervals, most at {largest.place}: {_difference(largest)}; "
                f"{sure or 'none'} of them after Holm's correction."
            )


def _explained(study: Study, relations: pd.DataFrame, mediation: pd.DataFrame) -> Iterator[str]:
    if relations.empty:
        return
    accuracy = relations[(relations["target"] == "test accuracy") & (relations["split"] == "train")]
    accuracy = accuracy[of_activations(accuracy)].dropna(subset="granulated")
    for name, metric in mediators(study).items():
        table = accuracy[accuracy["metric"] == metric]
        if not table.empty:
            row: Any = table.iloc[int(table["granulated"].abs().argmax())]
            spread = (
                f" [{row['granulated_low']:.2f}, {row['granulated_high']:.2f}]"
                if not math.isnan(row["granulated_low"])
                else " (no interval)"
            )
            alone = ", of norms alone" if row["axes"] == 1 else ""
            chance = "above" if row["cmi"] > row["cmi_null"] else "not above"
            yield (
                f"Does {name} go with generalization? Over {row['n']} runs, {metric} goes with "
                f"test accuracy most at {row['place']}, the strongest of "
                f"{_count(len(table), 'place')}: granulated Kendall "
                f"{row['granulated']:+.2f}{spread}{alone}, tau {row['tau']:+.2f}; its conditional "
                f"mutual information, {row['cmi']:.3f}, is {chance} what 95 of 100 random orders "
                f"stay below ({row['cmi_null']:.3f})."
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
            f"{row.share:.0%} [{row.share_low:.0%}, {row.share_high:.0%}] through {row.mediator} "
            f"({row.metric})"
            for row in singly
        )
        unclear = all(row.share_low <= 0 <= row.share_high for row in singly)
        doubt = "; every interval holds 0" if unclear else ""
        yield (
            f"Of the {table['total'].iloc[0]:+.4f} that {treatment} changes test accuracy by, "
            f"{parts} would go, each looked at alone{doubt}: this is association, and causal only "
            "under the assumptions of mediation."
        )


def _intervened(interventions: pd.DataFrame) -> Iterator[str]:
    if interventions.empty:
        return
    known = _known(interventions)
    for (treatment, baseline), table in known.groupby(["treatment", "baseline"]):
        told = []
        for metric in dict.fromkeys(table.loc[table["place_index"] > 0, "metric"]):
            rows = list(_rows(table, split="train", metric=metric))
            if rows:
                told.append(f"{metric} by {sum(r.difference for r in rows) / len(rows):+.3f}")
        for row in _rows(table, split="test", metric="accuracy", place_index=0):
            yield (
                f"Intervention: {treatment} instead of {baseline} changed "
                f"{' and '.join(told) or 'representations'} (mean over layers), and test accuracy: "
                f"{_difference(row)}."
            )


def _known(table: pd.DataFrame) -> pd.DataFrame:
    """Differences that there are; and as `is_told` whether sentences about a metric are of them."""
    return table.assign(is_told=of_activations(table)).dropna(subset="difference")


def _rows(table: pd.DataFrame, **values: object) -> Iterator[Any]:
    """The rows with these values; of layers' activations in order, unless a place is asked for."""
    for column, value in values.items():
        table = table[table[column] == value]
    if "place_index" not in values:
        table = table[table["is_told"]].sort_values("place_index")
    return table.itertuples(index=False)


def _difference(row: Any) -> str:
    interval = "" if math.isnan(row.low) else f" [{row.low:.3f}, {row.high:.3f}]"
    undefined = f", {row.undefined} undefined" if row.undefined else ""
    way = ", the same way in all that differ" if row.n > 1 and abs(row.rank_biserial) == 1 else ""
    n = _count(row.n, "pair")
    return f"{row.difference:+.3f}{interval}, p = {row.p:.3g}, {n}{way}{undefined}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"
