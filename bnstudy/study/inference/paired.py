"""Inference from paired differences: tests, intervals, adjusted p-values and effect sizes.

Pure functions of arrays. `differences` is always pairs x comparisons; NaN marks a pair without a
value, which is left out of that comparison alone.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Numbers = NDArray[np.float64]
Indices = NDArray[np.intp]
Flags = NDArray[np.bool_]

CONFIDENCE = 0.95
MIN_PAIRS = 3  # for a test, an interval or an effect size
MIN_PAIRS_TO_FLIP = 6  # with fewer, sign flips give no p of 0.05 or less
MAX_PAIRS_EXACT = 16  # with more, flips are drawn at random
NUM_FLIPS = 8_192  # drawn; a power of 2, as the number of all flips is, so that no p is 0.05 itself
RESOLUTION = 2.0**-22  # of a difference of two float32 numbers, relative to the larger one

MAX_NUMBERS = 2**22  # in a block of a computation, so that memory is bounded
ROUNDING = 1e-12  # relative; sums that differ by less are equal
SIGN_FLIPS, STUDENT_T = "sign flips", "Student's t"


def measured_differences(ours: Numbers, theirs: Numbers, resolution: float = RESOLUTION) -> Numbers:
    """Differences within pairs, as far as the numbers' precision resolves them.

    An accuracy of 972 of 1,000 is no float, so differences of two samples come out as 0.002 and
    0.0019999743, and ties are broken. Here differences whose sizes agree to the resolution become
    equal in size, and smaller ones 0. Other differences stay as they are.

    Args:
        ours: Numbers of the treatment, pairs x comparisons.
        theirs: Those of the baseline, of the same shape.
        resolution: Relative to the larger number of a pair; the default is that of numbers that
            were computed or recorded in float32.

    Returns:
        Pairs x comparisons; NaN where a number is not finite.

    Examples:
        >>> accuracy = np.float32([[0.972], [0.981]]), np.float32([[0.970], [0.979]])
        >>> np.unique(accuracy[0] - accuracy[1]).size
        2
        >>> np.unique(measured_differences(*accuracy)).size
        1
    """
    found = np.empty(ours.shape)
    size = max(1, MAX_NUMBERS // max(1, len(ours)))
    for start in range(0, ours.shape[1], size):
        block = slice(start, start + size)
        found[:, block] = _measured(
            ours[:, block].astype(np.float64), theirs[:, block].astype(np.float64), resolution
        )
    return found


def _measured(ours: Numbers, theirs: Numbers, resolution: float) -> Numbers:
    with np.errstate(invalid="ignore", over="ignore"):
        differences = ours - theirs
        noise = _noise(ours, theirs, resolution)
    differences[~np.isfinite(differences)] = np.nan
    sizes = np.abs(differences)
    sizes[sizes <= noise] = 0
    differences[sizes == 0] = 0
    order = sizes.argsort(axis=0)
    sizes, noise = (np.take_along_axis(array, order, axis=0) for array in (sizes, noise))
    steps = np.diff(sizes, axis=0)
    close = (steps > 0) & (steps <= np.maximum(noise[1:], noise[:-1]))
    columns = np.flatnonzero(close.any(axis=0))
    if columns.size:
        merged = np.empty_like(differences[:, columns])
        equal = _merged(sizes[:, columns], noise[:, columns])
        np.put_along_axis(merged, order[:, columns], equal, axis=0)
        differences[:, columns] = np.copysign(merged, differences[:, columns])
    return differences


def noise_of(ours: Numbers, theirs: Numbers, resolution: float = RESOLUTION) -> Numbers:
    """Size up to which a mean of differences is no difference: the numbers' own rounding.

    Args:
        ours: Numbers of the treatment, pairs x comparisons.
        theirs: Those of the baseline, of the same shape.
        resolution: As of `measured_differences`.

    Returns:
        Of each comparison, that of its median pair; 0 where no pair has a value.

    Examples:
        >>> noise_of(np.array([[1.0], [0.5]]), np.array([[0.5], [2.0]])) * 2**22
        array([1.5])
    """
    known = np.isfinite(ours) & np.isfinite(theirs)
    noise = np.where(known, _noise(ours, theirs, resolution), np.nan)
    found = np.zeros(noise.shape[1])
    has_pair = known.any(axis=0)
    found[has_pair] = np.nanmedian(noise[:, has_pair], axis=0)
    return found


def _noise(ours: Numbers, theirs: Numbers, resolution: float) -> Numbers:
    return resolution * np.maximum(np.abs(ours), np.abs(theirs))


def _merged(sizes: Numbers, noise: Numbers) -> Numbers:
    """Sorted sizes, those within the noise of the smallest of a group replaced by its midrange."""
    first, reach = sizes.copy(), noise[0]
    for row in range(1, len(sizes)):
        reach = np.maximum(reach, noise[row])
        is_near = sizes[row] - first[row - 1] <= reach
        first[row] = np.where(is_near, first[row - 1], sizes[row])
        reach = np.where(is_near, reach, noise[row])
    last = sizes.copy()
    for row in range(len(sizes) - 2, -1, -1):
        last[row] = np.where(first[row] == first[row + 1], last[row + 1], sizes[row])
    return np.where(first == 0, 0, first + (last - first) / 2)


def mean(values: Numbers) -> Numbers:
    """Mean of the finite values of each column; NaN where there is none.

    >>> mean(np.array([[1.0, np.nan], [3.0, np.nan]]))
    array([ 2., nan])
    """
    known = np.isfinite(values)
    with np.errstate(invalid="ignore", over="ignore"):
        found: Numbers = np.where(known, values, 0).sum(axis=0) / known.sum(axis=0)
    return found


def spread(values: Numbers) -> Numbers:
    """Standard deviation of the finite values of each column; NaN with fewer than two.

    It has n - 1 degrees of freedom, and is 0 exactly where all values are equal.

    >>> spread(np.array([[1.0, 0.1], [3.0, 0.1], [np.nan, 0.1]]))
    array([1.41421356, 0.        ])
    """
    known = np.isfinite(values)
    n = known.sum(axis=0)
    # The smallest value is subtracted, so that equal values have no spread by rounding.
    smallest = np.min(values, axis=0, where=known, initial=np.inf)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shifted = np.where(known, values - smallest, np.nan)
        largest = np.max(shifted, axis=0, where=known, initial=0)
        shifted /= np.where(largest > 0, largest, 1)  # whose square may be no float
        squares = np.where(known, shifted - mean(shifted), 0) ** 2
        return np.where(n > 1, largest * np.sqrt(squares.sum(axis=0) / (n - 1)), np.nan)


class PairedTest(NamedTuple):
    """A two-sided test of a mean difference of 0, and the interval that inverts it.

    Attributes:
        n: Pairs that have a value.
        difference: Mean difference over these pairs.
        low: Lower end of the confidence interval of the mean difference; with the upper end it
            leaves out 0 exactly where p is at most 1 - confidence.
        high: Its upper end.
        p: In (0, 1].
        smallest_p: Smallest p that sign flips of n pairs can give; NaN with another test.
        test: "sign flips", "Student's t", or "" where nothing is tested.
    """

    n: Indices
    difference: Numbers
    low: Numbers
    high: Numbers
    p: Numbers
    smallest_p: Numbers
    test: NDArray[np.str_]


def paired_test(
    differences: Numbers,
    confidence: float = CONFIDENCE,
    *,
    noise: Numbers | float = 0.0,
    min_pairs_to_flip: int = MIN_PAIRS_TO_FLIP,
    max_pairs_exact: int = MAX_PAIRS_EXACT,
    num_flips: int = NUM_FLIPS,
) -> PairedTest:
    """Test whether the mean difference is 0, by sign flips or, with few pairs, by Student's t.

    From 6 pairs on: if the treatment does nothing, each difference might as well have the other
    sign. p is the share of the sign flips whose mean is at least as far from 0 as the observed one,
    of all 2^n up to 16 pairs, of 8,192 random ones (the identity among them) beyond. It assumes
    that differences are distributed symmetrically about their mean, and no more. The interval holds
    every value that the same test of the differences to it does not reject.

    With 3 to 5 pairs: Student's t, which assumes normal differences; with fewer, nothing.

    A flip of the pairs F, G being the others, brings the mean of (d - value) at least as far from 0
    exactly where the value lies between the means of d over F and over G (the interval's ends are
    subset means, as in Hartigan 1969, doi:10.1080/01621459.1969.10501057). So p is the share of
    such pairs of subsets between whose means 0 lies; the interval's ends are quantiles of them.

    Differences that are all equal: their interval is that point, since every flip moves their mean
    closer to 0; where they are all 0, p is 1. With few pairs they have neither p nor interval, as
    no spread can be estimated.

    Args:
        differences: Pairs x comparisons.
        confidence: Of the interval.
        noise: Of each comparison, the size up to which a mean of differences is 0 (`noise_of`).
        min_pairs_to_flip: Fewest pairs that are tested by sign flips.
        max_pairs_exact: Most pairs all of whose flips are tried.
        num_flips: Number of random flips otherwise, with the identity.

    Returns:
        Arrays with one entry a comparison; NaN where there are too few pairs.

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
    for rows, columns in patterns(known & is_exact):
        sample, flips = differences[np.ix_(rows, columns)], flips_of(len(rows), max_pairs_exact)
        found = _flipped(sample, flips, confidence, noise[columns])
        low[columns], high[columns], p[columns] = found
    drawn = np.flatnonzero(is_flipped & ~is_exact)
    if drawn.size:
        sample = differences[:, drawn]
        flips = flips_of(len(sample), max_pairs_exact, num_flips)
        low[drawn], high[drawn], p[drawn] = _flipped(sample, flips, confidence, noise[drawn])
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
    differences: Numbers, confidence: float = CONFIDENCE, *, min_pairs: int = MIN_PAIRS
) -> tuple[Numbers, Numbers, Numbers]:
    """Student's paired t-test: the interval's ends and p of each comparison.

    Args:
        differences: Pairs x comparisons.
        confidence: Of the interval.
        min_pairs: Fewest pairs.

    Returns:
        Three arrays; NaN with fewer pairs, and where all differences are equal.

    Examples:
        >>> student_t(np.array([[1.0], [2.0], [3.0]]))[2].round(4)
        array([0.0742])
    """
    n = np.isfinite(differences).sum(axis=0)
    sd = spread(differences)
    sd[(sd == 0) | (n < min_pairs)] = np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        error = sd / np.sqrt(n)
        centre = mean(differences)
        margin = stats.t.ppf((1 + confidence) / 2, n - 1) * error
        p: Numbers = 2 * stats.t.sf(np.abs(centre) / error, n - 1)
    return centre - margin, centre + margin, p


@lru_cache(maxsize=4)
def flips_of(n: int, max_pairs_exact: int = MAX_PAIRS_EXACT, num_flips: int = NUM_FLIPS) -> Flags:
    """Sign flips: which pairs change their sign, pairs x flips.

    The first flip is the identity. All 2^(n - 1) flips with few pairs, counting a flip and its
    mirror once, otherwise random ones, the same in every call. The array is kept: do not change it.

    Args:
        n: Number of pairs.
        max_pairs_exact: Most pairs all of whose flips are listed.
        num_flips: Number of flips otherwise.

    Examples:
        >>> flips_of(3).astype(int)
        array([[0, 1, 0, 1],
               [0, 0, 1, 1],
               [0, 0, 0, 0]])
    """
    if n <= max_pairs_exact:
        return (np.arange(2 ** (n - 1)) >> np.arange(n)[:, None] & 1).astype(bool)
    flips = np.random.default_rng(0).integers(2, size=(n, num_flips), dtype=np.bool_)
    flips[:, 0] = False
    return flips


def _flipped(
    differences: Numbers, flips: Flags, confidence: float, noise: Numbers
) -> tuple[Numbers, Numbers, Numbers]:
    """Interval's ends and p of `paired_test` by these flips."""
    total = flips.shape[1]
    # So many of the flips hold a value that is not rejected: p is more than 1 - confidence.
    fewest = int((1 - confidence) * total) + 1
    zero = np.maximum(noise, ROUNDING * np.nanmax(np.abs(differences), axis=0))
    found = np.empty((3, differences.shape[1]))
    size = max(1, MAX_NUMBERS // total)
    for start in range(0, differences.shape[1], size):
        columns = slice(start, start + size)
        below, above = _subset_means(differences[:, columns], flips)
        holds_0 = (below <= zero[columns, None]) & (above >= -zero[columns, None])
        found[2, columns] = holds_0.sum(axis=1) / total
        below.partition(fewest - 1, axis=1)
        above.partition(total - fewest, axis=1)
        found[0, columns] = below[:, fewest - 1]
        found[1, columns] = above[:, total - fewest]
    low, high, p = found
    for end in (low, high):  # which agree with p on what is 0
        end[np.abs(end) <= zero] = 0
    return low, high, p


def _subset_means(differences: Numbers, flips: Flags) -> tuple[Numbers, Numbers]:
    """The smaller and the larger mean of the flipped and the other pairs, comparisons x flips.

    They are infinite where one of the two has no pair, as with the identity, which rejects nothing.
    """
    known = np.isfinite(differences)
    values = np.where(known, differences, 0).T
    masks, of_column = np.unique(known.T, axis=0, return_inverse=True)
    sums = np.empty((len(values), flips.shape[1]))
    counts = np.empty((len(masks), flips.shape[1]))
    size = max(1, MAX_NUMBERS // len(flips))
    for start in range(0, flips.shape[1], size):
        block = slice(start, start + size)
        flipped = flips[:, block].astype(np.float64)
        sums[:, block] = values @ flipped
        counts[:, block] = masks @ flipped
    others = masks.sum(axis=1)[:, None] - counts
    if len(masks) > 1:
        counts, others = counts[of_column], others[of_column]
    with np.errstate(divide="ignore", invalid="ignore"):
        outside = (values.sum(axis=1)[:, None] - sums) / others
        inside = np.divide(sums, counts, out=sums)
    below = np.minimum(inside, outside)
    above = np.maximum(inside, outside, out=outside)
    is_identity = (counts == 0) | (others == 0)
    np.copyto(below, -np.inf, where=is_identity)
    np.copyto(above, np.inf, where=is_identity)
    return below, above


def max_t_adjusted(
    differences: Sequence[Numbers],
    pairs: Sequence[Indices] | None = None,
    *,
    max_pairs_exact: int = MAX_PAIRS_EXACT,
    num_flips: int = NUM_FLIPS,
) -> list[Numbers]:
    """p-values adjusted for all comparisons of a family: max-T over sign flips.

    Westfall and Young 1993's step-down procedure (algorithm 4.1) with the flips of `paired_test`,
    the same for all comparisons, so that it knows how they depend on each other. The smallest value
    is that of a single test, 2^(1 - n), however many tests the family has. The statistic of a
    comparison is |sum of its differences| / sqrt(sum of their squares), which rises with |t|.

    Args:
        differences: Parts of the family, such as of each treatment, each pairs x comparisons.
        pairs: Of each part, the identity of each pair; a pair has the same sign in all parts. None:
            the parts have the same pairs.
        max_pairs_exact: Most pairs of the family all of whose flips are tried.
        num_flips: Number of random flips otherwise, with the identity.

    Returns:
        Of each part, the adjusted p of each comparison; NaN where no pair has a value.

    Examples:
        >>> several = np.array([[0.3, 0.1], [0.1, -0.2], [0.2, 0.3], [0.4, 0.1], [0.2, -0.1]])
        >>> max_t_adjusted([several])
        [array([0.0625, 0.8125])]
    """
    if pairs is None:
        pairs = [np.arange(len(part)) for part in differences]
    known = [np.isfinite(part) for part in differences]
    has_value = [is_known.any(axis=1) for is_known in known]
    identities, rows = np.unique(
        np.concatenate([own[has] for own, has in zip(pairs, has_value, strict=True)]),
        return_inverse=True,
    )
    rows_of = np.split(rows, np.cumsum([has.sum() for has in has_value])[:-1])
    parts = []
    for part, is_known, has in zip(differences, known, has_value, strict=True):
        values = np.where(is_known, part, 0)[has]
        values /= np.abs(values).max(axis=0, initial=np.finfo(float).tiny)
        parts.append((values / np.sqrt((values**2).sum(axis=0)).clip(1)).T)
    observed = np.abs(np.concatenate([part.sum(axis=1) for part in parts]))
    order = observed.argsort()
    reached = observed[order][:, None] * (1 - ROUNDING)
    as_extreme = np.zeros(len(observed))
    flips = flips_of(max(1, len(identities)), max_pairs_exact, num_flips)
    size = max(1, MAX_NUMBERS // max(1, len(observed), len(flips)))
    for start in range(0, flips.shape[1], size):
        signs = 1.0 - 2 * flips[:, start : start + size]
        found = np.vstack([part @ signs[own] for part, own in zip(parts, rows_of, strict=True)])
        found = np.abs(found, out=found)[order]
        np.maximum.accumulate(found, axis=0, out=found)  # of it and all less extreme comparisons
        as_extreme += (found >= reached).sum(axis=1)
    p = np.empty(len(observed))
    p[order] = np.maximum.accumulate(as_extreme[::-1] / flips.shape[1])[::-1]
    p[~np.concatenate([is_known.any(axis=0) for is_known in known])] = np.nan
    return np.split(p, np.cumsum([len(part) for part in parts])[:-1])


def holm(p: Numbers) -> Numbers:
    """p-values adjusted for all tests of a family without regard to dependence (Holm 1979).

    Args:
        p: Of each test.

    Returns:
        Each at most 1.

    Examples:
        >>> holm(np.array([0.01, 0.04, 0.03]))
        array([0.03, 0.06, 0.06])
    """
    order = p.argsort()
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted


def cohens_d(differences: Numbers) -> Numbers:
    """Mean difference in standard deviations of the differences (Cohen 1988's d_z).

    Args:
        differences: Pairs x comparisons.

    Returns:
        Of each comparison; NaN with fewer than two pairs, and where all differences are equal.

    Examples:
        >>> cohens_d(np.array([[1.0, 0.1], [2.0, 0.1], [3.0, 0.1]]))
        array([ 2., nan])
    """
    sd = spread(differences)
    found: Numbers = mean(differences) / np.where(sd == 0, np.nan, sd)
    return found


def rank_biserial(differences: Numbers) -> Numbers:
    """Matched-pairs rank-biserial correlation (Kerby 2014, with Wilcoxon's ranks).

    Of the sum of the ranks of the differences' sizes, the share of positive differences less that
    of negative ones; pairs without a difference have no rank.

    Args:
        differences: Pairs x comparisons.

    Returns:
        In [-1, 1], for each comparison; NaN where no pair differs.

    Examples:
        >>> rank_biserial(np.array([[0.1], [0.2], [-0.2], [0.0]])).round(3)
        array([0.167])
    """
    sizes = np.where(differences == 0, np.nan, np.abs(differences))
    ranks = np.nan_to_num(stats.rankdata(sizes, axis=0, nan_policy="omit"))
    with np.errstate(invalid="ignore"):
        found: Numbers = np.nansum(np.sign(differences) * ranks, axis=0) / ranks.sum(axis=0)
    return found


def patterns(known: Flags) -> Iterator[tuple[Indices, Indices]]:
    """Group the comparisons that have the same pairs.

    Args:
        known: Which pairs have a value, pairs x comparisons.

    Yields:
        The rows of the pairs that have one, and the columns; nothing for columns without a pair.

    Examples:
        >>> for rows, columns in patterns(np.array([[True, True, False], [True, True, True]])):
        ...     print(rows, columns)
        [0 1] [0 1]
        [1] [2]
    """
    columns = defaultdict(list)
    for column, pattern in enumerate(np.asarray(known, order="F").T):
        columns[pattern.tobytes()].append(column)
    for same in map(np.array, columns.values()):
        rows = np.flatnonzero(known[:, same[0]])
        if rows.size:
            yield rows, same
