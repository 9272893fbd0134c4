"""Effects with confidence intervals that account for variation over pairs and probe samples."""

import numpy as np
import pandas as pd

from bnstudy.study.effects import iterate_comparisons
from bnstudy.study.inference import mean, measured_differences
from bnstudy.study.inference.two_sources import two_source_interval
from bnstudy.study.load.matrix import load_columns
from bnstudy.study.load.study_runs import StudyRuns


def compute_two_source_intervals(study: StudyRuns, baseline: str | None = None) -> pd.DataFrame:
    """Compute paired differences after the last epoch, with intervals over pairs and samples.

    Args:
        study: Study whose runs are comparable.
        baseline: Treatment to compare with; None: `StudyRuns.baseline`'s choice.

    Returns:
        One row per treatment, metric and layer, if the runs have folds (`metrics.folds`):
        treatment, baseline, split, metric, layers, place, place_index, site; n, the number of pairs
        with values on all samples and on each fold; difference; low, high and sample_share of
        `two_source_interval`. Empty without folds.
    """
    baseline = study.baseline(baseline)
    if study.query("select 1 from folds limit 1").empty:
        return pd.DataFrame()
    keys, values = load_columns(study)
    fold_keys, fold_values = load_columns(study, every="fold")
    folds = fold_keys["fold"].unique()
    # `keys` lacks probe_loss and probe_accuracy where whole splits were evaluated; the folds have
    # them. So the columns of the folds are looked up.
    names = ["split", "metric", "site", "layers", "place_index"]
    first = fold_keys[fold_keys["fold"] == folds[0]].reset_index(drop=True)
    fold_columns = pd.MultiIndex.from_frame(first[names]).get_indexer(
        pd.MultiIndex.from_frame(keys[names])
    )
    by_fold = fold_values.reshape(len(values), len(folds), len(first))[:, :, fold_columns]
    tables: list[pd.DataFrame] = []
    for comparison_labels, treatment_rows, baseline_rows, shared in iterate_comparisons(
        study, keys, baseline
    ):
        differences = measured_differences(
            values[np.ix_(treatment_rows, shared)], values[np.ix_(baseline_rows, shared)]
        )
        fold_differences = (
            by_fold[treatment_rows][:, :, shared] - by_fold[baseline_rows][:, :, shared]
        )
        known = np.isfinite(differences) & np.isfinite(fold_differences).all(axis=1)
        intervals = two_source_interval(differences, fold_differences)
        table: pd.DataFrame = keys[shared].assign(
            **comparison_labels,
            n=known.sum(axis=0),
            difference=mean(np.where(known, differences, np.nan)),
            low=intervals.low,
            high=intervals.high,
            sample_share=intervals.sample_share,
        )
        tables.append(table[pd.Series(known.any(axis=0), table.index)])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
