"""p-values adjusted for all tests of a family."""

from collections.abc import Sequence

import numpy as np

from bnstudy.study.inference.columns import MAX_NUMBERS, FloatArray, IntArray
from bnstudy.study.inference.paired import MAX_PAIRS_EXACT, NUM_FLIPS, ROUNDING, sign_flips


def max_t_adjusted(
    differences: Sequence[FloatArray],
    pair_ids: Sequence[IntArray] | None = None,
    *,
    max_pairs_exact: int = MAX_PAIRS_EXACT,
    num_flips: int = NUM_FLIPS,
) -> list[FloatArray]:
    """Adjust p-values for all comparisons of a family: max-T over sign flips.

    Westfall and Young 1993's step-down procedure (algorithm 4.1) with the flips of `paired_test`,
    the same for all comparisons, so that it knows how they depend on each other. The smallest value
    is that of a single test, 2^(1 - n), however many tests the family has. The statistic of a
    comparison is abs(sum of its differences) / sqrt(sum of their squares), which rises with abs(t).

    Args:
        differences: Parts of the family, such as of each treatment, each pairs x comparisons.
        pair_ids: Number of each pair of each part; a pair has the same sign in all parts. None:
            the parts have the same pairs.
        max_pairs_exact: Maximum number of pairs of the family for which all flips are used.
        num_flips: Number of random flips otherwise, including the identity.

    Returns:
        Of each part, the adjusted p of each comparison; NaN where no pair has a value.

    Examples:
        >>> several = np.array([[0.3, 0.1], [0.1, -0.2], [0.2, 0.3], [0.4, 0.1], [0.2, -0.1]])
        >>> max_t_adjusted([several])
        [array([0.0625, 0.8125])]
    """
    if pair_ids is None:
        pair_ids = [np.arange(len(part)) for part in differences]
    known = [np.isfinite(part) for part in differences]
    has_value = [is_known.any(axis=1) for is_known in known]
    distinct_ids, rows = np.unique(
        np.concatenate([rows[has] for rows, has in zip(pair_ids, has_value, strict=True)]),
        return_inverse=True,
    )
    make_rows = np.split(rows, np.cumsum([has.sum() for has in has_value])[:-1])
    parts = []
    for part, is_known, has in zip(differences, known, has_value, strict=True):
        values = np.where(is_known, part, 0)[has]
        values /= np.abs(values).max(axis=0, initial=np.finfo(float).tiny)
        parts.append((values / np.sqrt((values**2).sum(axis=0)).clip(1)).T)
    observed = np.abs(np.concatenate([part.sum(axis=1) for part in parts]))
    order = observed.argsort()
    reached = observed[order][:, None] * (1 - ROUNDING)
    as_extreme = np.zeros(len(observed))
    flips = sign_flips(max(1, len(distinct_ids)), max_pairs_exact, num_flips)
    size = max(1, MAX_NUMBERS // max(1, len(observed), len(flips)))
    for start in range(0, flips.shape[1], size):
        signs = 1.0 - 2 * flips[:, start : start + size]
        statistics = np.vstack(
            [part @ signs[rows] for part, rows in zip(parts, make_rows, strict=True)]
        )
        statistics = np.abs(statistics, out=statistics)[order]
        # The largest statistic of a comparison and all less extreme ones.
        np.maximum.accumulate(statistics, axis=0, out=statistics)
        as_extreme += (statistics >= reached).sum(axis=1)
    p = np.empty(len(observed))
    p[order] = np.maximum.accumulate(as_extreme[::-1] / flips.shape[1])[::-1]
    p[~np.concatenate([is_known.any(axis=0) for is_known in known])] = np.nan
    return np.split(p, np.cumsum([len(part) for part in parts])[:-1])


def holm(p: FloatArray) -> FloatArray:
    """Adjust p-values for all tests of a family without regard to dependence (Holm 1979).

    Args:
        p: p-value of each test.

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
