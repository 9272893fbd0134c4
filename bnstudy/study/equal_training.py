"""Comparison of runs at the same training loss or accuracy instead of the same epoch.

After the same number of epochs, the treatment that trains faster is trained further, and each
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
        most runs have no curve. Empty if the study has no probe loss (accuracy) on the training
        split. Further columns:

        - used, baseline_used: mean share of a run's training steps before the point of comparison,
          for the treatment and for the baseline;
        - diverged: number of pairs left out because a run diverged;
        - apart: number of pairs left out because a run has reached that value by its first
          measurement, which is usually before training, or has no training loss (accuracy).
    """
    keys, values = load_columns(study, every="step")
    steps = keys["step"].unique()
    keys = keys[keys["step"] == steps[0]].drop(columns="step").reset_index(drop=True)
    # bnstudy.train evaluates whole splits only before training and after the last epoch.
    has_curve = ~keys["metric"].isin(["loss", "accuracy"]).to_numpy()
    by_step = values.reshape(len(values), len(steps), len(keys))[:, :, has_curve]
    keys = keys[has_curve].reset_index(drop=True)
    criterion_column = np.flatnonzero(
        (keys["metric"] == f"probe_{criterion}")
        & (keys["split"] == "train")
        & (keys["place_index"] == 0)
    )
    if not criterion_column.size:
        return pd.DataFrame()
    # Accuracies are negated, so that a smaller value always means further trained.
    curves = by_step[:, :, criterion_column[0]] * (1 if criterion == "loss" else -1)
    is_diverged = study.results["status"].to_numpy() == "diverged"

    def read(treatment_rows: IntArray, baseline_rows: IntArray) -> PairedValues:
        has_diverged_run = is_diverged[treatment_rows] | is_diverged[baseline_rows]
        kept: list[int] = []  # rows of the baseline's runs
        values_of_pairs: list[tuple[FloatArray, FloatArray]] = []
        shares: list[tuple[float, float]] = []
        for row, baseline_row in zip(
            treatment_rows[~has_diverged_run], baseline_rows[~has_diverged_run], strict=True
        ):
            goal = max(_find_last(curves[row]), _find_last(curves[baseline_row]))
            point = _find_first_reached(curves[row], steps, goal)
            baseline_point = _find_first_reached(curves[baseline_row], steps, goal)
            if point is not None and baseline_point is not None:
                kept.append(baseline_row)
                shares.append((point.share, baseline_point.share))
                values_of_pairs.append(
                    (
                        _interpolate(by_step[row], point),
                        _interpolate(by_step[baseline_row], baseline_point),
                    )
                )
        paired = np.array(values_of_pairs).reshape(len(kept), 2, len(keys))
        used = np.mean(shares, axis=0) if shares else np.full(2, np.nan)
        facts = {
            "used": used[0],
            "baseline_used": used[1],
            "diverged": has_diverged_run.sum(),
            "apart": len(treatment_rows) - has_diverged_run.sum() - len(kept),
        }
        return PairedValues(paired[:, 0], paired[:, 1], np.array(kept, dtype=np.intp), facts)

    return compare_pairs(study, keys, read, baseline)


class _TrainingPoint(NamedTuple):
    """Point in the training of a run, between two measurements or at the second of them.

    Attributes:
        before: Index of the first measurement.
        after: Index of the second measurement.
        weight: Weight of the second measurement in the interpolation; 1 if the point is there.
        share: Share of the run's training steps before the point.
    """

    before: int
    after: int
    weight: float
    share: float


def _find_last(curve: FloatArray) -> float:
    """Find the last finite value of a curve; NaN if it has none."""
    known = curve[np.isfinite(curve)]
    return float(known[-1]) if known.size else np.nan


def _find_first_reached(curve: FloatArray, steps: FloatArray, goal: float) -> _TrainingPoint | None:
    """Find where a curve first falls to a goal; None if it never does or starts at or below it."""
    known = np.flatnonzero(np.isfinite(curve))
    reached = np.flatnonzero(curve[known] <= goal)
    if not reached.size or reached[0] == 0:
        return None
    before, after = int(known[reached[0] - 1]), int(known[reached[0]])
    weight = float((curve[before] - goal) / (curve[before] - curve[after]))
    step = steps[before] + weight * (steps[after] - steps[before])
    return _TrainingPoint(before, after, weight, float(step / steps[known[-1]]))


def _interpolate(values: FloatArray, point: _TrainingPoint) -> FloatArray:
    """Interpolate the values at a point of the training: steps x columns -> columns."""
    after: FloatArray = values[point.after]
    if point.weight == 1:  # the values before may be NaN, which a weight of 0 does not remove
        return after
    before = values[point.before]
    interpolated: FloatArray = (1 - point.weight) * before + point.weight * after
    return interpolated
