"""Detection of repeated runs and of treatments without effect, so that each run counts once."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bnstudy.runs.long_table import SCHEMA
from bnstudy.runs.parquet_file import read_table

MIN_EQUAL_VALUES = 20  # equal values with which two runs are treated as one observation


def mark_duplicates(runs: pd.DataFrame, original_names: Sequence[str]) -> None:
    """Mark copies of a run, and runs that were trained again in another folder.

    Of several runs with the same configuration and seed on the same data, one is counted: runs that
    have ended take precedence, then completed runs, then runs in the folder that they were trained
    in, then the first name.

    Args:
        runs: Table of runs; gets the column duplicate_of.
        original_names: Name of the folder in which each run was trained.
    """
    runs["duplicate_of"] = None
    order = pd.DataFrame(
        {
            "is_unfinished": ~runs["ended"],
            "is_incomplete": runs["status"] != "completed",
            "is_copy": runs["cell"] != original_names,
            "cell": runs["cell"],
        }
    ).sort_values(["is_unfinished", "is_incomplete", "is_copy", "cell"])
    ordered = runs.loc[order.index]
    keys = ["treatment", "pair", "comparable"]
    known = ordered[ordered["comparable"] != ""]
    known = known[known.duplicated(keys, keep=False)]  # most runs have no duplicate
    for _, same in known.groupby(keys, sort=False):
        first, *others = same.index
        _mark(runs, others, first, "repeats {} and is not counted again")


def mark_repetitions(runs: pd.DataFrame) -> None:
    """Mark runs of a treatment that have exactly the values of another run.

    The settings in which they differ, such as the seed, had no effect, so they are one observation.
    The run with the most partners is counted.

    Args:
        runs: Table of runs; its columns duplicate_of and remark are updated.
    """
    counted = runs[runs["ended"] & runs["duplicate_of"].isna() & runs["train_loss"].notna()]
    keys = ["treatment", "comparable", *_list_final_columns(runs)]
    partners = counted.groupby(["pair", "comparable"])["cell"].transform("size")
    equal = counted.assign(partners=-partners)[counted.duplicated(keys, keep=False)]
    ordered = equal.sort_values(["partners", "grid", "seed", "cell"], kind="stable")
    for _, same in ordered.groupby(keys, dropna=False, sort=False):
        first, *others = same.index
        paths = same["path"].astype(str)
        repeated = [
            other
            for other in others
            if _are_identical(paths[first], paths[other], MIN_EQUAL_VALUES)
        ]
        _mark(runs, repeated, first, "has the same numbers as {} and is not counted again")


def find_identical_treatments(results: pd.DataFrame, treatments: Sequence[str]) -> dict[str, str]:
    """Find treatments whose runs have exactly the values of their partners in another treatment.

    The network probably ignores such a treatment. At least one pair must have a training loss,
    because other values can be equal by chance.

    Args:
        results: Runs that have ended, as in `StudyRuns.results`.
        treatments: Treatments in order.

    Returns:
        Earlier treatment with the same values, by treatment. The earlier ones are not keys.
    """
    identical: dict[str, str] = {}
    numbers = _list_final_columns(results)
    results = results[["treatment", "pair", "path", *numbers]]
    for treatment in treatments:
        for earlier in treatments[: treatments.index(treatment)]:
            first, second = (results[results["treatment"] == name] for name in (earlier, treatment))
            pairs = first.merge(second, on="pair", suffixes=("", "_other"))
            values = pairs[numbers].to_numpy(float)
            other_values = pairs[[f"{name}_other" for name in numbers]].to_numpy(float)
            # Two runs that both diverged may have no common finite values.
            min_values = pairs["train_loss"].notna().astype(int)
            if (
                min_values.any()
                and earlier not in identical
                and np.array_equal(values, other_values, equal_nan=True)
                and all(map(_are_identical, pairs["path"], pairs["path_other"], min_values))
            ):
                identical[treatment] = earlier
                break
    return identical


def _mark(runs: pd.DataFrame, duplicates: list[int], first: int, remark: str) -> None:
    """Mark runs as duplicates of the first one, with a remark in which {} stands for its cell."""
    if duplicates:
        cell = str(runs.at[first, "cell"])
        runs.loc[duplicates, "duplicate_of"] = cell
        runs.loc[duplicates, "remark"] = [
            f"{earlier}; {remark.format(cell)}" if isinstance(earlier, str) else remark.format(cell)
            for earlier in runs.loc[duplicates, "remark"]
        ]


def _list_final_columns(runs: pd.DataFrame) -> list[str]:
    """List the columns of final losses and accuracies in the table of runs."""
    return [name for name in map(str, runs) if name.endswith(("_loss", "_accuracy"))]


def _are_identical(table: str, other_table: str, min_values: int) -> bool:
    """Return whether all values that two long tables have in common are exactly equal.

    Values before training are left out. Rows that only one table has are ignored, because they were
    measured later. The tables must have at least `min_values` finite values in common, not counting
    accuracies, which can be equal by chance.
    """
    keys = ["epoch", "split", "site", "layer", "metric"]
    first, second = (
        read_table(Path(path), SCHEMA, [*keys, "value"]).to_pandas().fillna({"site": ""})
        for path in (table, other_table)
    )
    merged = first.merge(second, on=keys)
    merged = merged[merged["epoch"] > 0]
    informative = np.isfinite(merged["value_x"]) & ~merged["metric"].str.endswith("accuracy")
    return bool(informative.sum() >= min_values) and np.array_equal(
        merged["value_x"], merged["value_y"], equal_nan=True
    )
