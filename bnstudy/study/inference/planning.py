"""Probability of improvement, and numbers of pairs for the next study."""

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from bnstudy.study.inference.columns import Flags, FloatArray
from bnstudy.study.inference.effect_sizes import cohens_d
from bnstudy.study.inference.paired import CONFIDENCE, MIN_PAIRS_FOR_TEST, MIN_PAIRS_TO_FLIP

POWER = 0.8
MAX_PAIRS = 1_000
NUM_RESAMPLES = 2_000


def pairs_needed(
    differences: FloatArray, confidence: float = CONFIDENCE, power: float = POWER
) -> FloatArray:
    """Compute the number of pairs needed to detect an effect of the observed size.

    It is the smallest number with which Student's paired t-test, two-sided at the level
    1 - confidence, rejects with the given probability, if differences are normal with the observed
    Cohen's d; at least 6, as fewer have no exact test. The observed d is itself uncertain.

    Args:
        differences: Pairs x comparisons.
        confidence: Confidence of the later test.
        power: Probability with which it rejects.

    Returns:
        Number of pairs of each comparison; NaN with fewer than 3 pairs or no spread, infinite above
        1,000.

    Examples:
        >>> pairs_needed(np.array([[0.3], [-0.1], [0.4], [0.0]]))
        array([22.])
    """
    d = np.abs(cohens_d(differences))
    d[np.isfinite(differences).sum(axis=0) < MIN_PAIRS_FOR_TEST] = np.nan
    n = np.arange(MIN_PAIRS_TO_FLIP, MAX_PAIRS + 1)
    critical = stats.t.ppf((1 + confidence) / 2, n - 1)
    # The noncentrality at which the test statistic exceeds its critical value often enough.
    detectable = special.nctdtrinc(n - 1, 1 - power, critical) / np.sqrt(n)
    position = np.searchsorted(-detectable, -d)  # detectable sizes fall with n
    needed = np.append(n.astype(float), np.inf)[np.minimum(position, len(n))]
    return np.where(np.isnan(d), np.nan, needed)


def probability_of_improvement(
    treated: FloatArray,
    untreated: FloatArray,
    points: NDArray[np.str_],
    confidence: float = CONFIDENCE,
    *,
    num_resamples: int = NUM_RESAMPLES,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Compute the probability that a run of the treatment has a larger value than the baseline's.

    At each point of the grid all runs are compared with all others (Mann and Whitney 1947; a tie
    counts half), and points have the same weight, as in rliable (Agarwal et al. 2021, arXiv
    2108.13264). The interval is a bootstrap's, stratified by point and treatment.

    Args:
        treated: Values of the treatment, runs x comparisons.
        untreated: Values of the baseline, runs x comparisons, at the same points.
        points: Point of the grid of each run of both.
        confidence: Confidence of the percentile interval.
        num_resamples: Number of resamples.

    Returns:
        Probability, and low and high end of its interval, of each comparison; NaN where a point has
        no values. The interval needs 3 runs of each at every point, and runs of both that win: a
        bootstrap of probability 0 or 1 has no spread.

    Examples:
        >>> treated, untreated = np.array([[3.0], [4.0], [2.0]]), np.array([[1.0], [2.0], [3.0]])
        >>> found = probability_of_improvement(treated, untreated, np.array(["a", "a", "a"]))
        >>> found[0].round(3)
        array([0.778])
    """
    rows_at_points = [np.flatnonzero(points == point) for point in dict.fromkeys(points.tolist())]
    generator = np.random.default_rng(0)
    observed = np.zeros((1, treated.shape[1]))
    resampled = np.zeros((num_resamples, treated.shape[1]))
    for rows in rows_at_points:
        with_it, without = treated[rows][:, None], untreated[rows][None]
        known = np.isfinite(with_it) & np.isfinite(without)
        wins = np.where(known, (with_it > without) + 0.5 * (with_it == without), 0)
        once = np.ones((1, len(rows)))
        observed += _share(wins, known, once, once)
        even = np.full(len(rows), 1 / len(rows))
        first, second = (
            generator.multinomial(len(rows), even, num_resamples).astype(float) for _ in range(2)
        )
        resampled += _share(wins, known, first, second)
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled / len(rows_at_points), [tail, 1 - tail], axis=0)
    probability = observed[0] / len(rows_at_points)
    has_no_interval = (low == high) | (min(map(len, rows_at_points)) < MIN_PAIRS_FOR_TEST)
    low, high = np.where(has_no_interval, np.nan, (low, high))
    return probability, low, high


def _share(wins: FloatArray, known: Flags, first: FloatArray, second: FloatArray) -> FloatArray:
    """Compute the share of wins if runs are counted so often: resamples x comparisons."""
    won, all_pairs = (
        np.einsum("ri,rj,ijk->rk", first, second, values, optimize=True)
        for values in (wins, known.astype(float))
    )
    with np.errstate(invalid="ignore"):
        share: FloatArray = won / all_pairs
    return share
