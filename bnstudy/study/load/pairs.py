"""Pairs of runs that differ in nothing but the treatment."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnstudy.study.load.study_runs import StudyRuns

Indices = NDArray[np.intp]


class Pairs(NamedTuple):
    """Runs of a treatment beside those of the baseline that they are paired with.

    Attributes:
        treatment: Rows of `StudyRuns.results`, one a pair.
        baseline: Rows of `StudyRuns.results`, one a pair.
        unpaired: How many runs of the treatment have no partner.
        identical: How many pairs there would be, were their runs not the same, digit for digit.
    """

    treatment: Indices
    baseline: Indices
    unpaired: int
    identical: int = 0


def match_pairs(study: StudyRuns, treatment: str, baseline: str) -> Pairs:
    """Pair the runs of two treatments; there are no pairs where the treatments are identical."""
    results = study.results[["treatment", "pair"]].reset_index(names="row")
    ours, theirs = (results[results["treatment"] == name] for name in (treatment, baseline))
    both = ours.merge(theirs, on="pair", suffixes=("", "_baseline")).sort_values("pair")
    unpaired, identical = len(ours) - len(both), 0
    if study.identical.get(treatment, treatment) == study.identical.get(baseline, baseline):
        both, identical = both[:0], len(both)
    return Pairs(
        both["row"].to_numpy(),
        both["row_baseline"].to_numpy(),
        unpaired,
        identical,
    )
