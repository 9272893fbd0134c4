"""Mediation within pairs: the part of a difference in a target that goes through mediators."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from bnstudy.study.inference.columns import FloatArray
from bnstudy.study.inference.paired import CONFIDENCE, paired_test

NUM_RESAMPLES = 2_000
MIN_PAIRS_PER_PARAMETER = 2


class Mediation(NamedTuple):
    """Total effect on a target, and its parts through mediators and not through mediators.

    Attributes:
        n: Number of pairs that have all values.
        total: Mean difference in the target.
        total_low: Lower end of its confidence interval.
        total_high: Upper end of its confidence interval.
        indirect: Part of the total effect that goes through the mediators.
        indirect_low: Lower end of its confidence interval.
        indirect_high: Upper end of its confidence interval.
        direct: Rest of the total effect.
        direct_low: Lower end of its confidence interval.
        direct_high: Upper end of its confidence interval.
        share: indirect / total; NaN if the interval of the total effect contains 0.
        share_low: Lower end of its confidence interval.
        share_high: Upper end of its confidence interval.
    """

    n: int
    total: float = np.nan
    total_low: float = np.nan
    total_high: float = np.nan
    indirect: float = np.nan
    indirect_low: float = np.nan
    indirect_high: float = np.nan
    direct: float = np.nan
    direct_low: float = np.nan
    direct_high: float = np.nan
    share: float = np.nan
    share_low: float = np.nan
    share_high: float = np.nan


def min_pairs_to_mediate(num_mediators: int = 1) -> int:
    """Compute the minimum number of pairs of `mediate`: twice the parameters of the regression.

    Args:
        num_mediators: Number of mediators; the regression has an intercept and two slopes per
            mediator.

    Examples:
        >>> min_pairs_to_mediate(), min_pairs_to_mediate(2)
        (6, 10)
    """
    return MIN_PAIRS_PER_PARAMETER * (1 + 2 * num_mediators)


def mediate(
    change: FloatArray,
    treated: FloatArray,
    untreated: FloatArray,
    confidence: float = CONFIDENCE,
    *,
    num_resamples: int = NUM_RESAMPLES,
) -> Mediation:
    """Split a mean difference in a target into an indirect effect, through mediators, and a rest.

    Mediation within pairs (Judd, Kenny and McClelland 2001, doi:10.1037/1082-989X.6.2.115; Montoya
    and Hayes 2017, doi:10.1037/met0000086): the difference in the target is regressed on the
    differences in the mediators and on the centred means of each mediator over the two runs. The
    indirect effect is the sum over mediators of the mean difference times its slope. The indirect
    and the direct effect add up to the total effect, whose interval is that of `paired_test`. The
    other intervals are percentiles over resampled pairs, as is usual for a product of two
    estimates.

    Args:
        change: Difference in the target of each pair.
        treated: Mediators of the treatment's runs, pairs x mediators.
        untreated: Mediators of the baseline's runs, pairs x mediators.
        confidence: Confidence of the intervals.
        num_resamples: Number of resamples; the same ones are drawn in each call.

    Returns:
        Estimates from the pairs that have all values; NaN with fewer of them than
        `min_pairs_to_mediate`.

    Examples:
        >>> untreated = np.array([[0.1], [0.4], [0.3], [0.0], [0.2], [0.5], [0.3]])
        >>> treated = untreated + np.array([[1.0], [1.2], [0.9], [1.4], [1.1], [1.3], [1.0]])
        >>> found = mediate(0.2 + 0.5 * (treated - untreated)[:, 0], treated, untreated)
        >>> print(f"{found.total:.3f} = {found.indirect:.3f} + {found.direct:.3f}")
        0.764 = 0.564 + 0.200
    """
    num_mediators = treated.shape[1]
    sample = np.hstack([change[:, None], treated - untreated, (treated + untreated) / 2])
    sample = sample[np.isfinite(sample).all(axis=1)]
    n = len(sample)
    if n < min_pairs_to_mediate(num_mediators):
        return Mediation(n)
    largest = np.abs(sample).max(axis=0)
    largest[largest == 0] = 1
    sample = sample / largest  # squares of large values could overflow
    is_constant = np.ptp(sample, axis=0) == 0
    scale = sample.std(axis=0) + is_constant
    variables = np.hstack([sample / scale, np.ones((n, 1))])
    products = (variables[:, :, None] * variables[:, None, :]).reshape(n, -1)
    # The first row of weights is the sample itself.
    weights = np.vstack([np.full(n, 1 / n), _draw_resamples(n, num_resamples)])
    moments = (weights @ products).reshape(-1, variables.shape[1], variables.shape[1])
    # The first variable is regressed on all others; the last one is constant, for the intercept.
    inverse = np.linalg.pinv(moments[:, 1:, 1:], hermitian=True)
    slopes = (inverse @ moments[:, 1:, :1])[:, :num_mediators, 0]
    unit = scale[0] * largest[0]
    total = moments[:, -1, 0] * unit
    indirect = (moments[:, -1, 1 : 1 + num_mediators] * slopes).sum(axis=1) * unit
    direct = total - indirect
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    test = paired_test(sample[:, :1], confidence)
    low, high = (end[0] * largest[0] for end in (test.low, test.high))
    share = np.full(3, np.nan)
    if low > 0 or high < 0:
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = indirect / total  # not finite for resamples without a total effect
            share = np.array([shares[0], *np.quantile(shares[1:], tails)])
        share[~np.isfinite(share)] = np.nan
    return Mediation(
        n,
        *(total[0], low, high),
        *(indirect[0], *np.quantile(indirect[1:], tails)),
        *(direct[0], *np.quantile(direct[1:], tails)),
        *share.tolist(),
    )


@lru_cache(maxsize=1)
def _draw_resamples(num_pairs: int, num_resamples: int) -> FloatArray:
    """Draw the share of each pair in each resample, resamples x pairs; cached and read-only."""
    chosen = np.random.default_rng(0).integers(num_pairs, size=(num_resamples, num_pairs))
    chosen += num_pairs * np.arange(num_resamples)[:, None]
    counts = np.bincount(chosen.ravel(), minlength=num_resamples * num_pairs)
    shares: FloatArray = counts.reshape(-1, num_pairs) / num_pairs
    shares.setflags(write=False)
    return shares
