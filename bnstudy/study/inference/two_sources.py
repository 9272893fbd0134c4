"""Intervals of a mean difference that varies with the pair and with the samples that are probed."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from bnstudy.study.inference.columns import FloatArray, patterns
from bnstudy.study.inference.paired import CONFIDENCE, MIN_PAIRS

MIN_FOLDS = 2


class TwoSources(NamedTuple):
    """Confidence interval that carries both sources of uncertainty.

    Attributes:
        low: Lower end.
        high: Upper end.
        sample_share: Share of the variance of the mean difference that comes from the samples, from
            0 to 1; the rest comes from the pairs, such as seeds.
    """

    low: FloatArray
    high: FloatArray
    sample_share: FloatArray


def two_source_interval(
    differences: FloatArray, of_folds: FloatArray, confidence: float = CONFIDENCE
) -> TwoSources:
    """Compute the interval of a mean difference over pairs and over samples.

    All runs are probed with the same samples, which therefore move all pairs alike: the spread over
    pairs does not show it. Parts of the samples (folds) do. In the two-way layout of pairs and
    folds, the variance of the mean is that over pairs plus that over folds without their
    interaction, which the pairs already carry; rsatoolbox's dual bootstrap makes the same
    correction (Schuett et al. 2023, arXiv 2112.09200). Mean squares instead of resamples, and
    Student's t with Satterthwaite's degrees of freedom, hold with few folds too. The interval is
    never narrower than that of the pairs alone (Student's t).

    Args:
        differences: Differences on all samples, pairs x comparisons.
        of_folds: Differences on each fold, pairs x folds x comparisons.
        confidence: Confidence of the interval.

    Returns:
        Arrays with one entry a comparison; NaN with fewer than 3 pairs or 2 folds with values.

    Examples:
        >>> differences = np.array([[0.3], [0.1], [0.2], [0.4]])
        >>> of_folds = differences[:, None] + np.array([[0.1], [-0.1]])
        >>> found = two_source_interval(differences, of_folds)
        >>> found.low.round(2), found.high.round(2), found.sample_share.round(2)
        (array([-0.29]), array([0.79]), array([0.71]))
    """
    intervals = np.full((3, differences.shape[1]), np.nan)
    known = np.isfinite(differences) & np.isfinite(of_folds).all(axis=1)
    num_folds = of_folds.shape[1]
    for rows, columns in patterns(known):
        n = len(rows)
        if n < MIN_PAIRS or num_folds < MIN_FOLDS:
            continue
        whole, parts = differences[np.ix_(rows, columns)], of_folds[rows][:, :, columns]
        fold_means = parts.mean(axis=0)
        left = parts - parts.mean(axis=1, keepdims=True) - fold_means + parts.mean(axis=(0, 1))
        size, df_folds = n * num_folds, num_folds - 1
        of_pairs = whole.var(axis=0, ddof=1) / n
        of_fold = n * fold_means.var(axis=0, ddof=1) / size
        interaction = (left**2).sum(axis=(0, 1)) / ((n - 1) * df_folds) / size
        of_samples = np.maximum(of_fold - interaction, 0)
        variance = of_pairs + of_samples
        is_clear = of_samples > 0
        uncertain = of_pairs**2 / (n - 1)
        uncertain += is_clear * (of_fold**2 + interaction**2 / (n - 1)) / df_folds
        with np.errstate(divide="ignore", invalid="ignore"):
            df = variance**2 / uncertain
            quantile = stats.t.ppf((1 + confidence) / 2, df)
            # With few pairs, the larger degrees of freedom would narrow the interval of the pairs.
            pairs_quantile = stats.t.ppf((1 + confidence) / 2, n - 1)
            margin = np.maximum(quantile * np.sqrt(variance), pairs_quantile * np.sqrt(of_pairs))
            share = of_samples / variance
        centre = whole.mean(axis=0)
        intervals[:, columns] = centre - margin, centre + margin, share
    return TwoSources(*intervals)
