"""Pairs of runs that differ only in the treatment, and in options that are set per norm."""

from typing import NamedTuple

from bnstudy.study.load.matrix import IntArray
from bnstudy.study.load.study_runs import StudyRuns


class Pairs(NamedTuple):
    """Runs of a treatment, paired with runs of the baseline.

    Attributes:
        treatment: Row of the treatment's run in `StudyRuns.results`, for each pair.
        baseline: Row of the baseline's run, for each pair.
        unpaired: Number of runs of the treatment without a partner.
        identical: Number of pairs that are left out because the treatments have identical values.
    """

    treatment: IntArray
    baseline: IntArray
    unpaired: int
    identical: int = 0


def match_pairs(study: StudyRuns, treatment: str, baseline: str) -> Pairs:
    """Pair the runs of two treatments; treatments with identical values have no pairs.

    Args:
        study: Study whose runs are comparable.
        treatment: One of its treatments.
        baseline: Treatment to compare with.
    """
    results = study.results[["treatment", "pair"]].reset_index(names="row")
    of_treatment, of_baseline = (
        results[results["treatment"] == name] for name in (treatment, baseline)
    )
    pairs = of_treatment.merge(of_baseline, on="pair", suffixes=("", "_baseline")).sort_values(
        "pair"
    )
    unpaired, identical = len(of_treatment) - len(pairs), 0
    if study.identical.get(treatment, treatment) == study.identical.get(baseline, baseline):
        pairs, identical = pairs[:0], len(pairs)
    return Pairs(pairs["row"].to_numpy(), pairs["row_baseline"].to_numpy(), unpaired, identical)
