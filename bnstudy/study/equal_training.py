"""Comparison of runs where they are equally far trained, not after the same number of epochs.

At equal epochs, a treatment with which training is faster is also further trained, and each
difference may come from that alone.
"""

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from bnstudy.study.effects import PairedValues, compare_pairs
from bnstudy.study.inference.columns import FloatArray, IntArray
from bnstudy.study.load.matrix import load_columns
from bnstudy.study.load.study_runs import StudyRuns

Criterion = Literal["loss", "accuracy"]
CRITERIA: tuple[Criterion, Criterion] = ("loss", "accuracy")


def compute_equal_training(
    study: StudyRuns, criterion: Criterion, baseline: str | None = None
) -> pd.DataFrame:
    """Compute paired differences to a baseline where both runs of a pair are equally far trained.

    The two runs of a pair are compared at the larger of their two final training losses, or the
    smaller of their final training accuracies: each where it first gets there. Loss and accuracy
    are those of the training split's probe set. Between two measurements, all values are
    interpolated linearly, at the place where the interpolated loss or accuracy is the common one.

    Args:
        study: Study whose runs are comparable.
        criterion: `loss` or `accuracy`.
        baseline: Treatment to compare with; None: `StudyRuns.baseline`'s choice.

    Returns:
        Table as of `compute_effects`, without columns of whole splits, which are not known within
        the training. Further columns: used and baseline_used, mean share of the steps of a run that
        are before the comparison; diverged, pairs left out because a run diverged; apart, pairs
        left out because one run begins where the other does not get, or has no such values. Empty
        if the study has no probe loss.
    """
    keys, values = load_columns(study, every="step")
    steps = keys["step"].unique()
    keys = keys[keys["step"] == steps[0]].drop(columns="step").reset_index(drop=True)
    # Whole splits are evaluated before training and after the last epoch alone.
    is_known = ~keys["metric"].isin(["loss", "accuracy"]).to_numpy()
    by_step = values.reshape(len(values), len(steps), len(keys))[:, :, is_known]
    keys = keys[is_known].reset_index(drop=True)
    progress = np.flatnonzero(
        (keys["metric"] == f"probe_{criterion}")
        & (keys["split"] == "train")
        & (keys["place_index"] == 0)
    )
    if not progress.size:
        return pd.DataFrame()
    # Accuracies get the sign of losses: smaller is further trained.
    curves = by_step[:, :, progress[0]] * (1 if criterion == "loss" else -1)
    is_diverged = study.results["status"].to_numpy() == "diverged"

    def read(treatment_rows: IntArray, baseline_rows: IntArray) -> PairedValues:
        lost = is_diverged[treatment_rows] | is_diverged[baseline_rows]
        kept: list[int] = []
        values_of_pairs: list[tuple[FloatArray, FloatArray]] = []
        shares: list[tuple[float, float]] = []
        for row, other in zip(treatment_rows[~lost], baseline_rows[~lost], strict=True):
            goal = max(_last(curves[row]), _last(curves[other]))
            place, other_place = (_first_reached(curves[run], steps, goal) for run in (row, other))
            if place is not None and other_place is not None:
                kept.append(other)
                shares.append((place.share, other_place.share))
                values_of_pairs.append(
                    (_value_at(by_step[row], place), _value_at(by_step[other], other_place))
                )
        sides = np.array(values_of_pairs).reshape(len(kept), 2, len(keys))
        used = np.mean(shares, axis=0) if shares else np.full(2, np.nan)
        facts = {
            "used": used[0],
            "baseline_used": used[1],
            "diverged": lost.sum(),
            "apart": len(treatment_rows) - lost.sum() - len(kept),
        }
        return PairedValues(sides[:, 0], sides[:, 1], np.array(kept, dtype=np.intp), facts)

    return compare_pairs(study, keys, read, baseline)


class _Place(NamedTuple):
    """Place in the training of a run.

    Attributes:
        before: Number of the measurement before it.
        after: Number of the measurement after it; the same if the place is at a measurement.
        weight: Weight of the measurement after it.
        share: Share of the run's steps that are before the place.
    """

    before: int
    after: int
    weight: float
    share: float


def _last(curve: FloatArray) -> float:
    known = curve[np.isfinite(curve)]
    return float(known[-1]) if known.size else np.nan


def _first_reached(curve: FloatArray, steps: FloatArray, goal: float) -> _Place | None:
    """Find where a falling curve first reaches a goal; None if it begins below it, or never does.

    A run that begins exactly at the goal has not been trained, and counts as beginning below it.
    """
    known = np.flatnonzero(np.isfinite(curve))
    reached = np.flatnonzero(curve[known] <= goal)
    if not reached.size or reached[0] == 0:
        return None
    before, after = (int(known[reached[0] - back]) for back in (1, 0))
    weight = float((curve[before] - goal) / (curve[before] - curve[after]))
    step = steps[before] + weight * (steps[after] - steps[before])
    return _Place(before, after, weight, float(step / steps[known[-1]]))


def _value_at(values: FloatArray, place: _Place) -> FloatArray:
    """Interpolate the values at a place: steps x columns -> columns."""
    after: FloatArray = values[place.after]
    if place.weight == 1:
        return after
    before = values[place.before]
    interpolated: FloatArray = (1 - place.weight) * before + place.weight * after
    return interpolated
