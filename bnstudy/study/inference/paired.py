"""Paired tests of a mean difference of 0, and the confidence intervals that invert them."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bnstudy.study.inference.columns import (
    MAX_NUMBERS,
    FloatArray,
    IntArray,
    Mask,
    mean,
    patterns,
    spread,
)

CONFIDENCE = 0.95
MIN_PAIRS_FOR_TEST = 3  # also for an interval or an effect size
MIN_PAIRS_TO_FLIP = 6  # with fewer pairs, sign flips cannot give a p of 0.05 or less
MAX_PAIRS_EXACT = 16  # with more pairs, flips are drawn at random
NUM_FLIPS = 8_192  # number of random flips; a power of 2, so that no p is exactly 0.05

ROUNDING = 1e-12  # relative to the largest difference; sums that differ by at most this are equal
SIGN_FLIPS, STUDENT_T = "sign flips", "Student's t"


class PairedTest(NamedTuple):
    """Two-sided test of a mean difference of 0, with the confidence interval that inverts it.

    Attributes:
        n: Number of pairs that have a value.
        difference: Mean difference over these pairs.
        low: Lower end of the confidence interval of the mean difference. The interval excludes 0
            if and only if p is at most 1 - confidence.
        high: Upper end of the interval.
        p: Two-sided p-value, in (0, 1].
        smallest_p: Smallest p that sign flips of n pairs can give; NaN with another test.
        test: "sign flips", "Student's t", or "" where nothing is tested.
    """

    n: IntArray
    difference: FloatArray
    low: FloatArray
    high: FloatArray
    p: FloatArray
    smallest_p: FloatArray
    test: NDArray[np.str_]


def paired_test(
    differences: FloatArray,
    confidence: float = CONFIDENCE,
    *,
    noise: FloatArray | float = 0.0,
    min_pairs_to_flip: int = MIN_PAIRS_TO_FLIP,
    max_pairs_exact: int = MAX_PAIRS_EXACT,
    num_flips: int = NUM_FLIPS,
) -> PairedTest:
    """Test whether the mean difference is 0, by sign flips or, with few pairs, by Student's t.

    With 6 or more pairs, signs are flipped: under the null hypothesis, a difference d and -d are
    equally likely. p is the share of the sign flips whose mean is at least as far from 0 as the
    observed mean. With 6 to 16 pairs all flips are used; with more, 8,192 random flips, including
    the identity. It is assumed that pairs are independent, and that their differences are
    distributed symmetrically about the mean. The interval contains every value v for which the test
    of d - v does not reject.

    With 3 to 5 pairs, Student's t-test is used, which assumes normally distributed differences.
    With fewer pairs, nothing is tested.

    Let a flip change the signs of the pairs in F, and let G be the other pairs. The flipped mean of
    d - v is at least as far from 0 as the mean itself if and only if v lies between the mean of d
    over F and the mean of d over G. Hence p is the share of flips for which 0 lies between these
    two means, and the ends of the interval are quantiles of these means (subset means, as in
    Hartigan 1969, doi:10.1080/01621459.1969.10501057).

    If all differences are equal to d, the interval is that point: for any other v, every flip of
    some but not all pairs moves the mean of d - v closer to 0. If all are 0, p is 1. With fewer
    than 6 pairs, equal differences have neither p nor interval, because their standard deviation is
    0.

    Args:
        differences: Pairs x comparisons.
        confidence: Confidence of the interval.
        noise: Largest rounding error of a mean of differences, per comparison; a mean over any
            subset of the pairs counts as 0 if its absolute value is at most this. See
            `estimate_noise`.
        min_pairs_to_flip: Minimum number of pairs for sign flips.
        max_pairs_exact: Maximum number of pairs for which all flips are used.
        num_flips: Number of random flips otherwise, including the identity.

    Returns:
        Arrays with one entry per comparison; low, high and p are NaN where there are too few pairs.

    Examples:
        >>> found = paired_test(np.array([[0.3], [0.1], [0.2], [0.4], [0.2], [0.1]]))
        >>> found.p, found.low.round(3), found.high.round(3), found.test.item()
        (array([0.03125]), array([0.1]), array([0.4]), 'sign flips')
        >>> paired_test(np.array([[0.3], [0.1], [0.2]])).test.item()
        "Student's t"
    """
    known = np.isfinite(differences)
    differences = np.where(known, differences, np.nan)
    n = known.sum(axis=0)
    difference = mean(differences)
    low, high, p = student_t(differences, confidence)
    noise = np.broadcast_to(noise, n.shape)
    is_flipped = n >= min_pairs_to_flip
    is_exact = is_flipped & (n <= max_pairs_exact)
    # With all flips, comparisons that have values from exactly the same pairs are tested together.
    # With random flips, all comparisons are tested together: the flips are drawn once for all
    # pairs, and a pair without a value does not count.
    groups = [
        (columns, differences[np.ix_(rows, columns)])
        for rows, columns in patterns(known & is_exact)
    ]
    if (columns := np.flatnonzero(is_flipped & ~is_exact)).size:
        groups.append((columns, differences[:, columns]))
    for columns, group_differences in groups:
        flips = sign_flips(len(group_differences), max_pairs_exact, num_flips)
        results = _test_by_flips(group_differences, flips, confidence, noise[columns])
        low[columns], high[columns], p[columns] = results
    smallest = np.where(is_exact, 2.0 ** (1 - np.minimum(n, max_pairs_exact)), 1 / num_flips)
    return PairedTest(
        n,
        difference,
        low,
        high,
        p,
        np.where(is_flipped, smallest, np.nan),
        np.where(np.isnan(p), "", np.where(is_flipped, SIGN_FLIPS, STUDENT_T)),
    )


def student_t(
    differences: FloatArray,
    confidence: float = CONFIDENCE,
    *,
    min_pairs: int = MIN_PAIRS_FOR_TEST,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Compute the interval and p-value of Student's paired t-test for each comparison.

    Args:
        differences: Pairs x comparisons.
        confidence: Confidence of the interval.
        min_pairs: Minimum number of pairs.

    Returns:
        Lower and upper end of the interval, and p; NaN with fewer pairs, or if all differences are
        equal.

    Examples:
        >>> student_t(np.array([[1.0], [2.0], [3.0]]))[2].round(4)
        array([0.0742])
    """
    n = np.isfinite(differences).sum(axis=0)
    sd = spread(differences)
    sd[(sd == 0) | (n < min_pairs)] = np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        standard_error = sd / np.sqrt(n)
        centre = mean(differences)
        margin = stats.t.ppf((1 + confidence) / 2, n - 1) * standard_error
        p: FloatArray = 2 * stats.t.sf(np.abs(centre) / standard_error, n - 1)
    return centre - margin, centre + margin, p


@lru_cache(maxsize=4)
def sign_flips(n: int, max_pairs_exact: int = MAX_PAIRS_EXACT, num_flips: int = NUM_FLIPS) -> Mask:
    """List sign flips: a mask of the pairs whose sign changes, pairs x flips.

    The first flip is the identity. With few pairs, one of each two complementary flips is listed,
    because both give the same absolute mean: 2^(n - 1) flips. With more pairs, the flips are
    random, and the same in each call.

    Args:
        n: Number of pairs.
        max_pairs_exact: Maximum number of pairs for which all flips are listed.
        num_flips: Number of flips otherwise, including the identity.

    Returns:
        Mask, which is cached and read-only.

    Examples:
        >>> sign_flips(3).astype(int)
        array([[0, 1, 0, 1],
               [0, 0, 1, 1],
               [0, 0, 0, 0]])
    """
    if n <= max_pairs_exact:
        flips = (np.arange(2 ** (n - 1)) >> np.arange(n)[:, None] & 1).astype(bool)
    else:
        flips = np.random.default_rng(0).integers(2, size=(n, num_flips), dtype=np.bool_)
        flips[:, 0] = False
    flips.setflags(write=False)
    return flips


def _test_by_flips(
    differences: FloatArray, flips: Mask, confidence: float, noise: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Compute the ends of the interval and the p-value of `paired_test` from given flips."""
    num_flips = flips.shape[1]
    # A value is not rejected if it lies between the two means of at least this many flips: its p is
    # then above 1 - confidence.
    min_flips = int((1 - confidence) * num_flips) + 1
    results = np.empty((3, differences.shape[1]))
    size = max(1, MAX_NUMBERS // num_flips)
    for start in range(0, differences.shape[1], size):
        columns = slice(start, start + size)
        below, above = _compute_subset_means(differences[:, columns], flips)
        # 0 lies between the two means of a flip if the smaller one is not clearly above 0 and the
        # larger one is not clearly below 0: means up to the noise count as 0.
        contains_0 = (below <= noise[columns, None]) & (above >= -noise[columns, None])
        results[2, columns] = contains_0.sum(axis=1) / num_flips
        below.partition(min_flips - 1, axis=1)
        above.partition(num_flips - min_flips, axis=1)
        results[0, columns] = below[:, min_flips - 1]
        results[1, columns] = above[:, num_flips - min_flips]
    low, high, p = results
    for end in (low, high):  # as for p, a mean within the noise counts as 0
        end[np.abs(end) <= noise] = 0
    return low, high, p


def _compute_subset_means(differences: FloatArray, flips: Mask) -> tuple[FloatArray, FloatArray]:
    """Compute the mean of the flipped pairs and of the other pairs, comparisons x flips.

    The smaller of the two means is returned first, then the larger. If one of the two groups is
    empty, as with the identity, the means are -inf and inf: every value lies between them. A
    group's mean is set to 0 if its sum is 0 up to rounding, relative to the largest difference.
    """
    known = np.isfinite(differences)
    values = np.where(known, differences, 0).T
    masks, mask_of_column = np.unique(known.T, axis=0, return_inverse=True)
    sums = np.empty((len(values), flips.shape[1]))
    counts = np.empty((len(masks), flips.shape[1]))
    size = max(1, MAX_NUMBERS // len(flips))
    for start in range(0, flips.shape[1], size):
        block = slice(start, start + size)
        flipped = flips[:, block].astype(np.float64)
        sums[:, block] = values @ flipped
        counts[:, block] = masks @ flipped
    other_counts = masks.sum(axis=1)[:, None] - counts
    if len(masks) > 1:
        counts, other_counts = counts[mask_of_column], other_counts[mask_of_column]
    other_sums = values.sum(axis=1)[:, None] - sums
    # Flipping the signs of a group changes the sum over all pairs by twice the sum of the group.
    tolerance = ROUNDING / 2 * np.abs(values).max(axis=1)[:, None]
    for group_sums in (sums, other_sums):
        group_sums[np.abs(group_sums) <= tolerance] = 0
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.divide(sums, counts, out=sums)
        other_means = np.divide(other_sums, other_counts, out=other_sums)
    below = np.minimum(means, other_means)
    above = np.maximum(means, other_means, out=other_means)
    has_empty_group = (counts == 0) | (other_counts == 0)
    np.copyto(below, -np.inf, where=has_empty_group)
    np.copyto(above, np.inf, where=has_empty_group)
    return below, above
