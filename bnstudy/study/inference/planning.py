"""Probability of improvement, and numbers of pairs for the next study."""

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from bnstudy.study.inference.columns import FloatArray, Mask
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
    Cohen's d. It is at least 6, because with fewer pairs no sign-flip test has a p of 0.05 or less.
    The observed d is itself uncertain.

    Args:
        differences: Pairs x comparisons.
        confidence: Confidence of the later test.
        power: Probability with which it rejects.

    Returns:
        Number of pairs of each comparison; NaN with fewer than 3 pairs or without spread, infinite
        above 1,000.

    Examples:
        >>> pairs_needed(np.array([[0.3], [-0.1], [0.4], [0.0]]))
        array([22.])
    """
    d = np.abs(cohens_d(differences))
    d[np.isfinite(differences).sum(axis=0) < MIN_PAIRS_FOR_TEST] = np.nan
    n = np.arange(MIN_PAIRS_TO_FLIP, MAX_PAIRS + 1)
    critical = stats.t.ppf((1 + confidence) / 2, n - 1)
    # Effect size at which the test statistic exceeds its critical value with probability `power`.
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

    At each point of the grid, every run of the treatment is compared with every run of the baseline
    (Mann and Whitney 1947; a tie counts half). Points have the same weight, as in rliable (Agarwal
    et al. 2021, arXiv 2108.13264). The interval is that of a bootstrap, stratified by point and
    treatment.

    Args:
        treated: Values of the treatment, runs x comparisons.
        untreated: Values of the baseline, runs x comparisons, at the same points.
        points: Point of the grid of each row of `treated` and `untreated`.
        confidence: Confidence of the percentile interval.
        num_resamples: Number of resamples.

    Returns:
        Probability, and lower and upper end of its interval, for each comparison; NaN where a point
        has no values. The ends are also NaN with fewer than 3 runs per treatment at a point, and if
        the resamples do not differ, as with a probability of 0 or 1.

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
        value, baseline_value = treated[rows][:, None], untreated[rows][None]
        known = np.isfinite(value) & np.isfinite(baseline_value)
        wins = np.where(known, (value > baseline_value) + 0.5 * (value == baseline_value), 0)
        once = np.ones((1, len(rows)))
        observed += _compute_share(wins, known, once, once)
        even = np.full(len(rows), 1 / len(rows))
        counts, baseline_counts = (
            generator.multinomial(len(rows), even, num_resamples).astype(float) for _ in range(2)
        )
        resampled += _compute_share(wins, known, counts, baseline_counts)
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled / len(rows_at_points), [tail, 1 - tail], axis=0)
    probability = observed[0] / len(rows_at_points)
    has_no_interval = (low == high) | (min(map(len, rows_at_points)) < MIN_PAIRS_FOR_TEST)
    low, high = np.where(has_no_interval, np.nan, (low, high))
    return probability, low, high


def _compute_share(
    wins: FloatArray, known: Mask, counts: FloatArray, baseline_counts: FloatArray
) -> FloatArray:
    """Compute the share of wins in each resample, resamples x comparisons.

    Args:
        wins: 1, 0.5 or 0 for each two runs, treatment x baseline x comparisons.
        known: True where both runs have a value, in the same shape.
        counts: Number of times that each run of the treatment is in a resample, resamples x runs.
        baseline_counts: The same for each run of the baseline.
    """
    won, all_pairs = (
        np.einsum("ri,rj,ijk->rk", counts, baseline_counts, values, optimize=True)
        for values in (wins, known.astype(float))
    )
    with np.errstate(invalid="ignore"):
        share: FloatArray = won / all_pairs
    return share
