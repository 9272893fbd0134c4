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
    """Compute the p-values of all comparisons of a family, adjusted by max-T over sign flips.

    The step-down procedure of Westfall and Young 1993 (algorithm 4.1) is used with the flips of
    `paired_test`. The same flips are used for all comparisons, which takes their dependence into
    account. The smallest adjusted p is therefore that of a single test, 2^(1 - n) with all flips of
    n pairs, however many tests the family has. The statistic of a comparison is
    abs(sum of its differences) / sqrt(sum of their squares), which rises with abs(t).

    Args:
        differences: Parts of the family, such as one per treatment, each pairs x comparisons.
        pair_ids: Number of each pair, for each part; pairs with the same number are flipped
            together. None: the parts have the same pairs, in the same order.
        max_pairs_exact: Maximum number of pairs of the family for which all flips are used.
        num_flips: Number of random flips otherwise, including the identity.

    Returns:
        Adjusted p of each comparison, one array per part; NaN where no pair has a value.

    Examples:
        >>> several = np.array([[0.3, 0.1], [0.1, -0.2], [0.2, 0.3], [0.4, 0.1], [0.2, -0.1]])
        >>> max_t_adjusted([several])
        [array([0.0625, 0.8125])]
    """
    if pair_ids is None:
        pair_ids = [np.arange(len(part)) for part in differences]
    known = [np.isfinite(part) for part in differences]
    has_value = [is_known.any(axis=1) for is_known in known]
    used_ids = [ids[is_used] for ids, is_used in zip(pair_ids, has_value, strict=True)]
    distinct_ids, rows = np.unique(np.concatenate(used_ids), return_inverse=True)
    rows_of_parts = np.split(rows, np.cumsum([len(ids) for ids in used_ids])[:-1])
    parts = []
    for part, is_known, is_used in zip(differences, known, has_value, strict=True):
        values = np.where(is_known, part, 0)[is_used]
        # The largest size becomes 1: squares cannot overflow, and their sum is 0 or at least 1.
        values /= np.abs(values).max(axis=0, initial=np.finfo(float).tiny)
        parts.append((values / np.sqrt((values**2).sum(axis=0)).clip(1)).T)
    observed = np.abs(np.concatenate([part.sum(axis=1) for part in parts]))
    order = observed.argsort()
    thresholds = observed[order][:, None] * (1 - ROUNDING)
    as_extreme = np.zeros(len(observed))
    flips = sign_flips(max(1, len(distinct_ids)), max_pairs_exact, num_flips)
    size = max(1, MAX_NUMBERS // max(1, len(observed), len(flips)))
    for start in range(0, flips.shape[1], size):
        signs = 1.0 - 2 * flips[:, start : start + size]
        statistics = np.vstack(
            [part @ signs[rows] for part, rows in zip(parts, rows_of_parts, strict=True)]
        )
        statistics = np.abs(statistics, out=statistics)[order]
        # Each statistic becomes the largest one of its comparison and all less extreme ones.
        np.maximum.accumulate(statistics, axis=0, out=statistics)
        as_extreme += (statistics >= thresholds).sum(axis=1)
    p = np.empty(len(observed))
    p[order] = np.maximum.accumulate(as_extreme[::-1] / flips.shape[1])[::-1]
    p[~np.concatenate([is_known.any(axis=0) for is_known in known])] = np.nan
    return np.split(p, np.cumsum([len(part) for part in parts])[:-1])


def holm(p: FloatArray) -> FloatArray:
    """Adjust p-values for all tests of a family, whatever their dependence (Holm 1979).

    Args:
        p: p-value of each test.

    Returns:
        Adjusted p-values, in the same order.

    Examples:
        >>> holm(np.array([0.01, 0.04, 0.03]))
        array([0.03, 0.06, 0.06])
    """
    order = p.argsort()
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted
