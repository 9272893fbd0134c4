"""Runs that repeat others, and treatments that change nothing: one observation counts once."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bnstudy.runs.long_table import SCHEMA
from bnstudy.runs.parquet_file import read_table

MIN_EQUAL_NUMBERS = 20  # numbers, without which two runs are not taken for the same observation


def mark_duplicates(runs: pd.DataFrame, own_names: Sequence[str]) -> None:
    """Mark copies of a run, and runs that were trained again in another folder.

    Of several runs with the same configuration and seed, on the same data, the one that counts has
    ended, or completed rather than diverged; then it is the one that lies in the folder that it was
    trained in; then the first one by name.
    """
    runs["duplicate_of"] = None
    order = pd.DataFrame(
        {
            "ended": ~runs["ended"],
            "completed": runs["status"] != "completed",
            "copied": runs["cell"] != own_names,
            "cell": runs["cell"],
        }
    ).sort_values(["ended", "completed", "copied", "cell"])
    ordered = runs.loc[order.index]
    keys = ["treatment", "pair", "comparable"]
    known = ordered[ordered["comparable"] != ""]
    known = known[known.duplicated(keys, keep=False)]  # most runs have no duplicate
    for _, same in known.groupby(keys, sort=False):
        first, *others = same.index
        _mark(runs, others, first, "the same run as {}, which counts in its place")


def mark_repetitions(runs: pd.DataFrame) -> None:
    """Mark runs of a treatment whose numbers are another run's, digit for digit.

    What they differ in, such as the seed, had no effect: they are one observation. The one that
    counts is the one with the most partners. Few numbers may be equal by chance, accuracies above
    all.
    """
    numbers = final_numbers(runs)
    if "train_loss" not in numbers:
        return
    counted = runs[runs["ended"] & runs["duplicate_of"].isna() & runs["train_loss"].notna()]
    keys = ["treatment", "comparable", *numbers]
    partners = counted.groupby(["pair", "comparable"])["cell"].transform("size")
    equal = counted.assign(partners=-partners)[counted.duplicated(keys, keep=False)]
    ordered = equal.sort_values(["partners", "grid", "seed", "cell"], kind="stable")
    for _, same in ordered.groupby(keys, dropna=False, sort=False):
        first, *others = same.index
        paths = same["path"].astype(str)
        repeated = [
            other
            for other in others
            if _are_identical(paths[first], paths[other], MIN_EQUAL_NUMBERS)
        ]
        _mark(runs, repeated, first, "its numbers are all those of {}, as which it counts")


def find_identical_treatments(
    results: pd.DataFrame, treatments: Sequence[str], numbers: Sequence[str]
) -> dict[str, str]:
    """Find treatments all of whose pairs with an earlier treatment are the same, digit for digit.

    Such runs say nothing of the treatment: the network seems to ignore it. The loss of at least one
    pair must be known: other numbers are equal by chance.

    Args:
        results: Runs that have ended, as in `StudyRuns.results`.
        treatments: Treatments in their order.
        numbers: Columns of their final numbers, of `final_numbers`.

    Returns:
        By treatment, the first one that it is the same as.
    """
    found: dict[str, str] = {}
    if "train_loss" not in numbers:
        return found
    results = results[["treatment", "pair", "path", *numbers]]
    for treatment in treatments:
        for earlier in treatments[: treatments.index(treatment)]:
            one, other = (results[results["treatment"] == name] for name in (earlier, treatment))
            pairs = one.merge(other, on="pair", suffixes=("", "_other"))
            ours = pairs[numbers].to_numpy(float)
            theirs = pairs[[f"{name}_other" for name in numbers]].to_numpy(float)
            is_known = pairs["train_loss"].notna()  # unless both runs diverged
            if (
                is_known.any()
                and earlier not in found
                and np.array_equal(ours, theirs, equal_nan=True)
                and all(map(_are_identical, pairs["path"], pairs["path_other"], is_known))
            ):
                found[treatment] = earlier
                break
    return found


def _mark(runs: pd.DataFrame, duplicates: list[int], first: int, remark: str) -> None:
    if duplicates:
        cell = str(runs.at[first, "cell"])
        runs.loc[duplicates, "duplicate_of"] = cell
        runs.loc[duplicates, "remark"] = [
            f"{earlier}; {remark.format(cell)}" if isinstance(earlier, str) else remark.format(cell)
            for earlier in runs.loc[duplicates, "remark"]
        ]


def final_numbers(runs: pd.DataFrame) -> list[str]:
    """List the columns of the table of runs that have losses and accuracies."""
    return [name for name in map(str, runs) if name.endswith(("_loss", "_accuracy"))]


def _are_identical(table: str, other_table: str, min_numbers: int = 1) -> bool:
    """Whether all numbers that two long tables have in common are the same, digit for digit.

    Numbers before training are left out. What only one table has was measured later.

    Args:
        table: Path of the one.
        other_table: Path of the other.
        min_numbers: How many finite ones besides accuracies they must have in common.
    """
    keys = ["epoch", "split", "site", "layer", "metric"]
    one, other = (
        read_table(Path(path), SCHEMA, [*keys, "value"]).to_pandas().fillna({"site": ""})
        for path in (table, other_table)
    )
    both = one.merge(other, on=keys)
    both = both[both["epoch"] > 0]
    telling = np.isfinite(both["value_x"]) & (both["metric"] != "accuracy")
    return bool(telling.sum() >= min_numbers) and np.array_equal(
        both["value_x"], both["value_y"], equal_nan=True
    )
