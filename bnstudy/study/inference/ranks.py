"""Rank correlation of metrics with a target over runs: Kendall's tau and its refinements.

`metrics` is runs x metrics, and `goal` has one value of the target per run; NaN marks a missing
value. `axes` is runs x axes: the levels in which the runs differ by design, such as a treatment or
a depth, of any type that can be sorted.
"""

from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bnstudy.study.inference.columns import FloatArray, IntArray, Mask, group_rows, mean
from bnstudy.study.inference.paired import CONFIDENCE, MIN_PAIRS_FOR_TEST, paired_test

MAX_RUNS = 200  # runs for conditional mutual information; of more, a sample is drawn
NUM_SHUFFLES = 100  # random permutations of the runs
MAX_CONDITIONS = 2  # axes that are conditioned on at once

DECIMALS = 12  # decimals of a coefficient; further ones are rounding errors


class Kendall(NamedTuple):
    """Kendall's tau-b of each metric.

    Attributes:
        tau: Coefficients, in [-1, 1].
        p: Two-sided p-values for the hypothesis of no association; they assume independent runs.
    """

    tau: FloatArray
    p: FloatArray


def kendall(metrics: FloatArray, goal: FloatArray) -> Kendall:
    """Compute Kendall's tau-b (Kendall 1945, doi:10.1093/biomet/33.3.239) over all pairs of runs.

    Args:
        metrics: Runs x metrics.
        goal: Target of each run.

    Returns:
        One entry for each metric; NaN with fewer than two runs that have both values, or if one of
        the two is constant.

    Examples:
        >>> kendall(np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([0.1, 0.3, 0.2, 0.4]))
        Kendall(tau=array([0.66666667]), p=array([0.33333333]))
    """
    results = np.full((2, metrics.shape[1]), np.nan)
    for number, metric in enumerate(metrics.T):
        known = np.isfinite(metric + goal)
        if known.sum() >= 2:
            result = stats.kendalltau(metric[known], goal[known])
            results[:, number] = result.statistic, result.pvalue
    return Kendall(*results)


class GranulatedKendall(NamedTuple):
    """Granulated Kendall coefficient of each metric.

    Attributes:
        coefficient: Mean of the seeds' coefficients, in [-1, 1].
        low: Lower end of its confidence interval over seeds.
        high: Upper end of its confidence interval over seeds.
    """

    coefficient: FloatArray
    low: FloatArray
    high: FloatArray


def granulated_kendall(
    metrics: FloatArray,
    goal: FloatArray,
    axes: NDArray[Any],
    seeds: NDArray[Any],
    confidence: float = CONFIDENCE,
    *,
    min_groups: int = MIN_PAIRS_FOR_TEST,
) -> GranulatedKendall:
    """Compute the granulated Kendall coefficient (Jiang et al. 2020, arXiv 1912.02178, eq. 7).

    For each seed and axis, Kendall's tau (tied pairs count as 0) is averaged over the groups of
    runs that differ in this axis alone. The coefficient is the mean over the axes, then over the
    seeds. The interval is that of `paired_test` over the seeds' coefficients.

    Args:
        metrics: Runs x metrics.
        goal: Target of each run.
        axes: Runs x axes.
        seeds: Seed of each run; runs are compared within a seed.
        confidence: Confidence of the interval.
        min_groups: Minimum number of groups of runs that differ in one axis alone.

    Returns:
        One entry for each metric; the coefficient is NaN with fewer groups, the interval with fewer
        seeds than `paired_test` needs.

    Examples:
        >>> depth, seeds = np.tile([2, 4, 8], 3)[:, None], np.repeat([0, 1, 2], 3)
        >>> metrics = np.array([[0.1], [0.2], [0.3], [0.1], [0.2], [0.3], [0.1], [0.2], [0.3]])
        >>> goal = np.array([0.5, 0.6, 0.7, 0.5, 0.6, 0.7, 0.6, 0.5, 0.7])
        >>> granulated_kendall(metrics, goal, depth, seeds).coefficient.round(3)
        array([0.778])
    """
    by_axis = [
        _compute_tau_along_axis(metrics, goal, axes, seeds, axis) for axis in range(axes.shape[1])
    ]
    taus = np.array([tau for tau, _ in by_axis])
    shape = (len(np.unique(seeds)), metrics.shape[1])
    by_seed = mean(taus.reshape(-1, shape[0] * shape[1])).reshape(shape)
    test = paired_test(by_seed.round(DECIMALS), confidence)
    centre = test.difference.round(DECIMALS)
    centre[sum(num_groups for _, num_groups in by_axis) < min_groups] = np.nan
    return GranulatedKendall(centre, test.low.clip(-1), test.high.clip(max=1))


def _compute_tau_along_axis(
    metrics: FloatArray, goal: FloatArray, axes: NDArray[Any], seeds: NDArray[Any], axis: int
) -> tuple[FloatArray, IntArray]:
    """Average Kendall's tau, for each seed, over the groups of runs that differ in one axis only.

    Returns:
        Mean of tau over the groups, seeds x metrics, and the number of groups of each metric.
    """
    seed = np.unique(seeds, return_inverse=True)[1]
    level = np.unique(axes[:, axis], return_inverse=True)[1]
    others = [column for number, column in enumerate(axes.T) if number != axis]
    group = group_rows([seed, *others])
    run = np.full((group.max() + 1, level.max() + 1), -1)
    run[group, level] = np.arange(len(axes))
    agreement, num_comparable = np.zeros((2, len(run), metrics.shape[1]))
    for first, second in combinations(run.T, 2):
        signs = np.sign(metrics[first] - metrics[second])
        signs *= np.sign(goal[first] - goal[second])[:, None]
        signs[(first < 0) | (second < 0)] = np.nan
        agreement += np.nan_to_num(signs)
        num_comparable += np.isfinite(signs)
    with np.errstate(invalid="ignore"):
        tau = agreement / num_comparable
    seed_of_group = np.empty(len(run), dtype=np.intp)
    seed_of_group[group] = seed
    by_seed = np.array([mean(tau[seed_of_group == number]) for number in range(seed.max() + 1)])
    return by_seed, np.isfinite(tau).sum(axis=0)


class MutualInformation(NamedTuple):
    """Conditional mutual information of the order by each metric and the order by the target.

    Attributes:
        share: Share of the entropy of the order by the target that the order by the metric removes,
            in [0, 1], one entry per metric: the smallest over the choices of conditions.
        null: Quantile of the shares of randomly permuted runs.
    """

    share: FloatArray
    null: float


def conditional_mutual_information(
    metrics: FloatArray,
    goal: FloatArray,
    axes: NDArray[Any],
    confidence: float = CONFIDENCE,
    *,
    max_conditions: int = MAX_CONDITIONS,
    max_runs: int = MAX_RUNS,
    num_shuffles: int = NUM_SHUFFLES,
) -> MutualInformation:
    """Compute the conditional mutual information of the orders of runs by a metric and the target.

    Jiang et al. 2020 (arXiv 1912.02178, eq. 9 to 11): knowing the order by the metric removes a
    share of the entropy of the order by the target, given the values of up to two axes. The
    smallest of these shares is returned. Random orders have shares above 0 too, and larger ones in
    small studies; `null` is a quantile of them.

    Args:
        metrics: Runs x metrics.
        goal: Target of each run.
        axes: Runs x axes.
        confidence: Level of the quantile `null`.
        max_conditions: Maximum number of axes that are conditioned on at once.
        max_runs: Maximum number of runs; of more, the same sample is drawn in each call.
        num_shuffles: Number of random permutations.

    Returns:
        NaN if all runs have the same value of the target.

    Examples:
        >>> metrics = np.array([[0.1, 0.3], [0.2, 0.1], [0.3, 0.2], [0.4, 0.2]])
        >>> goal, depth = np.array([0.5, 0.6, 0.7, 0.8]), np.array([[2], [2], [4], [4]])
        >>> conditional_mutual_information(metrics, goal, depth).share.round(2)
        array([1.  , 0.02])
    """
    generator = np.random.default_rng(0)
    runs = np.flatnonzero(np.isfinite(goal))
    if len(runs) > max_runs:
        runs = np.sort(generator.choice(runs, max_runs, replace=False))
    if len(np.unique(goal[runs])) < 2:
        return MutualInformation(np.full(metrics.shape[1], np.nan), np.nan)
    # Not by name: the order of the groups, and with it the rounding of the sums over them, must not
    # depend on how levels are named.
    codes = np.zeros((len(runs), axes.shape[1]), dtype=np.intp)
    for number, column in enumerate(axes[runs].T):
        codes[:, number] = _number_by_appearance(column)
    first, second = np.nonzero(~np.eye(len(runs), dtype=bool))
    ordered = goal[runs][first] != goal[runs][second]
    first, second = first[ordered], second[ordered]
    ahead = goal[runs][first] > goal[runs][second]
    conditions = []
    for size in range(max_conditions + 1):
        for chosen in combinations(range(codes.shape[1]), size):
            joint_codes = np.hstack([codes[first][:, chosen], codes[second][:, chosen]])
            conditions.append(group_rows(joint_codes.T, len(first)))

    def find_smallest_share(values: FloatArray) -> float:
        known = np.isfinite(values[first] + values[second])
        higher = values[first] > values[second]
        shares = [_compute_share(group[known], ahead[known], higher[known]) for group in conditions]
        return min((share for share in shares if not np.isnan(share)), default=np.nan)

    shuffles = (generator.permutation(len(runs)) for _ in range(num_shuffles))
    null = [find_smallest_share(shuffled.astype(float)) for shuffled in shuffles]
    shares = np.array([find_smallest_share(column) for column in metrics[runs].T])
    return MutualInformation(shares, float(np.nanquantile(null, confidence)))


def _number_by_appearance(values: NDArray[Any]) -> IntArray:
    """Number the different values in the order in which they first appear."""
    _, first, codes = np.unique(values, return_index=True, return_inverse=True)
    numbers: IntArray = first.argsort().argsort()[codes]
    return numbers


def _compute_share(group: IntArray, ahead: Mask, higher: Mask) -> float:
    """Compute I(ahead; higher | group) / H(ahead | group) from counts; NaN if the entropy is 0.

    Args:
        group: Number of the group with the same conditions, for each ordered pair of runs.
        ahead: Whether the first run has the larger value of the target.
        higher: Whether the first run has the larger value of the metric.
    """
    if not len(group):
        return np.nan
    table = np.bincount(group * 4 + ahead * 2 + higher, minlength=4 * (int(group.max()) + 1))
    counts = table.astype(float).reshape(-1, 2, 2)

    def sum_n_log_n(n: FloatArray) -> float:
        """Compute the sum of n log n; entropies are differences of such sums."""
        return float((n * np.log(n, where=n > 0, out=np.zeros_like(n))).sum())

    of_cells, of_goal = sum_n_log_n(counts.sum(axis=(1, 2))), sum_n_log_n(counts.sum(axis=2))
    entropy = of_cells - of_goal
    if entropy <= 0:
        return np.nan
    information = sum_n_log_n(counts) + of_cells - of_goal - sum_n_log_n(counts.sum(axis=1))
    return max(0.0, information / entropy)
