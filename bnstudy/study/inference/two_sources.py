"""Confidence intervals that account for variation over pairs and over probe samples."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from bnstudy.study.inference.columns import FloatArray, patterns
from bnstudy.study.inference.paired import CONFIDENCE, MIN_PAIRS_FOR_TEST

MIN_FOLDS = 2


class TwoSourceInterval(NamedTuple):
    """Confidence intervals that account for variation over pairs and probe samples.

    Attributes:
        low: Lower end of the interval of each comparison.
        high: Upper end.
        sample_share: Share of the variance of the mean difference that comes from the probe
            samples, from 0 to 1; the rest comes from the pairs, such as seeds.
    """

    low: FloatArray
    high: FloatArray
    sample_share: FloatArray


def two_source_interval(
    differences: FloatArray, fold_differences: FloatArray, confidence: float = CONFIDENCE
) -> TwoSourceInterval:
    """Compute the confidence interval of a mean difference over pairs and probe samples.

    All runs use the same probe samples, so an unlucky choice of samples shifts all pairs alike, and
    the standard deviation over pairs does not show it. The folds, which are parts of the samples,
    do. The variance of the mean is the sum of the variance over pairs and the variance over folds,
    less the pair x fold interaction, which the variance over pairs already contains. The dual
    bootstrap of rsatoolbox makes the same correction (Schuett et al. 2023, arXiv 2112.09200). Mean
    squares with Satterthwaite's degrees of freedom, unlike resampling, also work with few folds.
    The interval is never narrower than Student's interval from the pairs alone.

    Args:
        differences: Differences on all samples, pairs x comparisons.
        fold_differences: Differences on each fold, pairs x folds x comparisons.
        confidence: Confidence of the interval.

    Returns:
        Arrays with one entry per comparison; NaN with fewer than 2 folds, or with fewer than 3
        pairs that have values on all samples and on each fold.

    Examples:
        >>> differences = np.array([[0.3], [0.1], [0.2], [0.4]])
        >>> fold_differences = differences[:, None] + np.array([[0.1], [-0.1]])
        >>> found = two_source_interval(differences, fold_differences)
        >>> found.low.round(2), found.high.round(2), found.sample_share.round(2)
        (array([-0.29]), array([0.79]), array([0.71]))
    """
    intervals = np.full((3, differences.shape[1]), np.nan)
    known = np.isfinite(differences) & np.isfinite(fold_differences).all(axis=1)
    num_folds = fold_differences.shape[1]
    for rows, columns in patterns(known):
        n = len(rows)
        if n < MIN_PAIRS_FOR_TEST or num_folds < MIN_FOLDS:
            continue
        whole, by_fold = differences[np.ix_(rows, columns)], fold_differences[rows][:, :, columns]
        fold_means = by_fold.mean(axis=0)
        pair_means, grand_mean = by_fold.mean(axis=1, keepdims=True), by_fold.mean(axis=(0, 1))
        interaction_residuals = by_fold - pair_means - fold_means + grand_mean
        size, df_folds = n * num_folds, num_folds - 1
        pair_variance = whole.var(axis=0, ddof=1) / n
        fold_variance = n * fold_means.var(axis=0, ddof=1) / size
        interaction = (interaction_residuals**2).sum(axis=(0, 1)) / ((n - 1) * df_folds) / size
        sample_variance = np.maximum(fold_variance - interaction, 0)
        variance = pair_variance + sample_variance
        fold_terms = (fold_variance**2 + interaction**2 / (n - 1)) / df_folds
        df_denominator = pair_variance**2 / (n - 1) + (sample_variance > 0) * fold_terms
        with np.errstate(divide="ignore", invalid="ignore"):
            df = variance**2 / df_denominator
            quantile = stats.t.ppf((1 + confidence) / 2, df)
            # With few pairs, the larger degrees of freedom could make the interval narrower than
            # Student's interval from the pairs alone.
            pairs_margin = stats.t.ppf((1 + confidence) / 2, n - 1) * np.sqrt(pair_variance)
            margin = np.maximum(quantile * np.sqrt(variance), pairs_margin)
            share = sample_variance / variance
        centre = whole.mean(axis=0)
        intervals[:, columns] = centre - margin, centre + margin, share
    return TwoSourceInterval(*intervals)
