"""Standardized sizes of paired differences."""

import numpy as np
from scipy import stats

from bnstudy.study.inference.columns import FloatArray, mean, spread


def cohens_d(differences: FloatArray) -> FloatArray:
    """Compute the mean difference in standard deviations of the differences (Cohen 1988's d_z).

    Args:
        differences: Pairs x comparisons.

    Returns:
        One entry per comparison; NaN with fewer than two pairs, or if all differences are equal.

    Examples:
        >>> cohens_d(np.array([[1.0, 0.1], [2.0, 0.1], [3.0, 0.1]]))
        array([ 2., nan])
    """
    sd = spread(differences)
    d: FloatArray = mean(differences) / np.where(sd == 0, np.nan, sd)
    return d


def rank_biserial(differences: FloatArray) -> FloatArray:
    """Compute the matched-pairs rank-biserial correlation (Kerby 2014, with Wilcoxon's ranks).

    The absolute differences are ranked; pairs without a difference have no rank. The correlation is
    the share of the sum of ranks that belongs to positive differences, minus the share that belongs
    to negative ones.

    Args:
        differences: Pairs x comparisons.

    Returns:
        One entry per comparison, in [-1, 1]; NaN if no pair differs.

    Examples:
        >>> rank_biserial(np.array([[0.1], [0.2], [-0.2], [0.0]])).round(3)
        array([0.167])
    """
    sizes = np.where(differences == 0, np.nan, np.abs(differences))
    ranks = np.nan_to_num(stats.rankdata(sizes, axis=0, nan_policy="omit"))
    with np.errstate(invalid="ignore"):
        correlation: FloatArray = np.nansum(np.sign(differences) * ranks, axis=0) / ranks.sum(
            axis=0
        )
    return correlation
