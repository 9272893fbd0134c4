"""Comparison of runs at the same training loss or accuracy instead of the same epoch.

After the same epochs, a treatment that trains faster is trained further, and each difference may
come from that alone.
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
    """Compute paired differences to a baseline at equal training loss or accuracy.

    The two runs of a pair are compared at the larger of their two final training losses, or the
    smaller of their two final training accuracies, on the training split's probe set. Each run is
    read where its curve first reaches that value, with all values interpolated linearly between
    measurements.

    Args:
        study: Study whose runs are comparable.
        criterion: `loss` or `accuracy`.
        baseline: Treatment to compare with; None: `StudyRuns.baseline`'s choice.

    Returns:
        Table as returned by `compute_effects`, without loss and accuracy on whole splits, for which
        most runs have no curve. Empty if the study has no probe loss. Further columns:

        - used, baseline_used: mean share of a run's training steps before the point of comparison;
        - diverged: number of pairs left out because a run diverged;
        - apart: number of pairs left out because no training loss (accuracy) is reached by both
          runs after training has begun.
    """
    keys, values = load_columns(study, every="step")
    steps = keys["step"].unique()
    keys = keys[keys["step"] == steps[0]].drop(columns="step").reset_index(drop=True)
    # bnstudy.train evaluates whole splits only before training and after the last epoch.
    is_known = ~keys["metric"].isin(["loss", "accuracy"]).to_numpy()
    by_step = values.reshape(len(values), len(steps), len(keys))[:, :, is_known]
    keys = keys[is_known].reset_index(drop=True)
    criterion_column = np.flatnonzero(
        (keys["metric"] == f"probe_{criterion}")
        & (keys["split"] == "train")
        & (keys["place_index"] == 0)
    )
    if not criterion_column.size:
        return pd.DataFrame()
    # Accuracies are negated: smaller always means further trained.
    curves = by_step[:, :, criterion_column[0]] * (1 if criterion == "loss" else -1)
    is_diverged = study.results["status"].to_numpy() == "diverged"

    def read(treatment_rows: IntArray, baseline_rows: IntArray) -> PairedValues:
        has_diverged_run = is_diverged[treatment_rows] | is_diverged[baseline_rows]
        kept: list[int] = []
        values_of_pairs: list[tuple[FloatArray, FloatArray]] = []
        shares: list[tuple[float, float]] = []
        for row, other in zip(
            treatment_rows[~has_diverged_run], baseline_rows[~has_diverged_run], strict=True
        ):
            goal = max(_last(curves[row]), _last(curves[other]))
            point, other_point = (
                _find_first_reached(curves[run], steps, goal) for run in (row, other)
            )
            if point is not None and other_point is not None:
                kept.append(other)
                shares.append((point.share, other_point.share))
                values_of_pairs.append(
                    (_interpolate(by_step[row], point), _interpolate(by_step[other], other_point))
                )
        sides = np.array(values_of_pairs).reshape(len(kept), 2, len(keys))
        used = np.mean(shares, axis=0) if shares else np.full(2, np.nan)
        facts = {
            "used": used[0],
            "baseline_used": used[1],
            "diverged": has_diverged_run.sum(),
            "apart": len(treatment_rows) - has_diverged_run.sum() - len(kept),
        }
        return PairedValues(sides[:, 0], sides[:, 1], np.array(kept, dtype=np.intp), facts)

    return compare_pairs(study, keys, read, baseline)


class _TrainingPoint(NamedTuple):
    """Point in the training of a run, between two measurements or at the second of them.

    Attributes:
        before: Index of the measurement before it.
        after: Index of the measurement after it.
        weight: Weight of the measurement after it; 1 if the point is at this measurement.
        share: Share of the run's training steps before the point.
    """

    before: int
    after: int
    weight: float
    share: float


def _last(curve: FloatArray) -> float:
    known = curve[np.isfinite(curve)]
    return float(known[-1]) if known.size else np.nan


def _find_first_reached(curve: FloatArray, steps: FloatArray, goal: float) -> _TrainingPoint | None:
    """Find where a curve first falls to a goal.

    None if the curve starts at or below the goal, or never reaches it.
    """
    known = np.flatnonzero(np.isfinite(curve))
    reached = np.flatnonzero(curve[known] <= goal)
    if not reached.size or reached[0] == 0:
        return None
    before, after = (int(known[reached[0] - back]) for back in (1, 0))
    weight = float((curve[before] - goal) / (curve[before] - curve[after]))
    step = steps[before] + weight * (steps[after] - steps[before])
    return _TrainingPoint(before, after, weight, float(step / steps[known[-1]]))


def _interpolate(values: FloatArray, point: _TrainingPoint) -> FloatArray:
    """Interpolate the values at a point of the training: steps x columns -> columns."""
    after: FloatArray = values[point.after]
    if point.weight == 1:
        return after
    before = values[point.before]
    interpolated: FloatArray = (1 - point.weight) * before + point.weight * after
    return interpolated
