"""Do representations explain generalization? Over the runs of a study, after their last epoch.

`relations` asks whether a metric orders networks as their generalization does, `mediation` how much
of a treatment's effect may go through a metric, `interventions` what happened where a metric was
changed directly. The first two are about association: only the third changes anything.
"""

from collections.abc import Mapping
from functools import lru_cache
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from bnstudy.study.effects import effects, pairs
from bnstudy.study.inference.paired import (
    CONFIDENCE,
    MIN_PAIRS,
    Indices,
    Numbers,
    mean,
    measured_differences,
    paired_test,
)
from bnstudy.study.load.numbers import layer_means, wide
from bnstudy.study.load.records import NAMES, Study

TARGETS = ("test accuracy", "generalization gap")  # the gap: train less test accuracy

MIN_RUNS = 5  # for a correlation: with fewer, Kendall's tau has no p of 0.05 or less
COEFFICIENTS = [
    *("tau", "tau_p", "granulated", "granulated_low", "granulated_high", "cmi", "cmi_null")
]
MOST_RUNS = 200  # whose pairs conditional mutual information is of; of more runs, some are drawn
SHUFFLES = 100
RESAMPLES = 2_000  # of the bootstrap of a mediated effect

# What a treatment's effect may go through: of each, the first that was measured.
MEDIATORS = {
    "sparsity": ("unit_sparsity", "channel_sparsity", "hoyer"),
    "clustering": ("silhouette", "kmeans_nmi", "knn_purity", "within_between_ratio"),
}

ASSUMPTIONS = (
    "Shares are causal only if, within a pair, nothing else that the treatment changes moves both "
    "the metric and accuracy, accuracy does not itself move the metric, and the relation is linear "
    "and the same for both treatments. Measurements cannot test this; interventions can."
)


def targets(study: Study) -> pd.DataFrame:
    """Test accuracy and generalization gap of each of `study.results`, by those names."""
    train, test = (
        study.results[name].to_numpy(float) for name in ("train_accuracy", "test_accuracy")
    )
    gap = measured_differences(train[:, None], test[:, None])[:, 0]
    return pd.DataFrame({"test accuracy": test, "generalization gap": gap})


def relations(study: Study) -> pd.DataFrame:
    """How each metric at each place goes with generalization, over all runs.

    Args:
        study: Whose runs are comparable.

    Returns:
        One row for each split, metric, place (place_index, site) and target ("test accuracy",
        "generalization gap"), with n, the runs that have both, and (NaN with fewer than 5 runs)

        - tau: Kendall's tau-b, over all pairs of runs, and tau_p, of no association; runs that
          share a seed or a point of the grid are taken to be independent, which flatters it;
        - granulated: the granulated Kendall coefficient (Jiang et al. 2020, arXiv 1912.02178, eq.
          7): the mean over the study's axes (the treatment, and those of the grid) of tau among
          runs that differ in this axis alone; its interval granulated_low, granulated_high over
          seeds (of `paired_test`), and axes, how many there are;
        - cmi: conditional mutual information of the two orders (ibid., eq. 9 to 11), in [0, 1]: the
          least share of the entropy of the order by the target that the order by the metric takes
          away, given up to two axes' values of both runs; of more than 200 runs, 200 are drawn.
          cmi_null: what 95 of 100 random orders stay below. It is not 0, more so in small studies.
    """
    # Of treatments that are the same, digit for digit, one counts.
    results = study.results[~study.results["treatment"].isin(study.identical)]
    keys, values = wide(study)
    values = values[results.index]
    layers = np.flatnonzero(keys["place_index"] > 0)
    axes = pd.DataFrame({"treatment": results["treatment"]})
    for key in study.design.grid:
        axes[key] = results[NAMES.get(key, key)].astype(str)
    axes = axes.loc[:, axes.nunique() > 1]
    if not layers.size or len(results) < 2:
        return pd.DataFrame()
    goals, tables = targets(study).loc[results.index], []
    for name in TARGETS:
        goal = goals[name].to_numpy(float)
        metrics = np.where(np.isfinite(values[:, layers]), values[:, layers], np.nan)
        granulated, low, high = _granulated(metrics, goal, axes, results["seed"])
        cmi, null = _conditional_mutual_information(metrics, goal, axes)
        tau = np.array([_tau(column, goal) for column in metrics.T])
        n = np.isfinite(metrics + goal[:, None]).sum(axis=0)
        table = keys.loc[layers].assign(
            target=name,
            n=n,
            tau=tau[:, 0],
            tau_p=tau[:, 1],
            granulated=granulated,
            granulated_low=low,
            granulated_high=high,
            axes=axes.shape[1],
            cmi=cmi,
            cmi_null=null,
        )
        table.loc[n < MIN_RUNS, COEFFICIENTS] = np.nan
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _tau(metric: Numbers, goal: Numbers) -> tuple[float, float]:
    """Kendall's tau-b, and its p; NaN of fewer than two runs."""
    known = np.isfinite(metric + goal)
    if known.sum() < 2:
        return np.nan, np.nan
    found = stats.kendalltau(metric[known], goal[known])
    return float(found.statistic), float(found.pvalue)


def _granulated(
    metrics: Numbers, goal: Numbers, axes: pd.DataFrame, seeds: pd.Series
) -> tuple[Numbers, Numbers, Numbers]:
    """The coefficient of each metric, and its interval over seeds."""
    along = [_along(metrics, goal, axes, seeds, axis) for axis in axes.columns]
    by_axis = np.array([tau for tau, _ in along])
    shape = (seeds.nunique(), metrics.shape[1])
    by_seed = mean(by_axis.reshape(-1, shape[0] * shape[1])).reshape(shape)
    found = paired_test(by_seed.round(12))  # where it is 0 but for rounding
    centre = found.difference.round(12)
    centre[sum(groups for _, groups in along) < MIN_PAIRS] = np.nan
    return centre, found.low.clip(-1), found.high.clip(max=1)


def _along(
    metrics: Numbers, goal: Numbers, axes: pd.DataFrame, seeds: pd.Series, axis: str
) -> tuple[Numbers, Indices]:
    """Kendall's tau among runs that differ in one axis alone.

    Returns:
        Its mean over such groups of runs, seeds x metrics, and the number of groups of each metric.
    """
    others = [seeds, *(axes[name] for name in axes.columns if name != axis)]
    level, group = pd.factorize(axes[axis])[0], axes.groupby(others).ngroup().to_numpy()
    run = np.full((group.max() + 1, level.max() + 1), -1)
    run[group, level] = np.arange(len(axes))
    agreement, couples = np.zeros((2, len(run), metrics.shape[1]))
    for one, other in combinations(run.T, 2):
        signs = np.sign(metrics[one] - metrics[other])
        signs *= np.sign(goal[one] - goal[other])[:, None]
        signs[(one < 0) | (other < 0)] = np.nan
        agreement += np.nan_to_num(signs)
        couples += np.isfinite(signs)
    with np.errstate(invalid="ignore"):
        tau = agreement / couples
    of_group = np.empty(len(run), dtype=np.intp)
    of_group[group] = pd.factorize(seeds, sort=True)[0]
    by_seed = np.array([mean(tau[of_group == seed]) for seed in range(seeds.nunique())])
    return by_seed, np.isfinite(tau).sum(axis=0)


def _conditional_mutual_information(
    metrics: Numbers, goal: Numbers, axes: pd.DataFrame
) -> tuple[Numbers, float]:
    """Of each metric, and what 95 of 100 random ones stay below."""
    generator = np.random.default_rng(0)
    runs = np.flatnonzero(np.isfinite(goal))
    if len(runs) > MOST_RUNS:
        runs = np.sort(generator.choice(runs, MOST_RUNS, replace=False))
    if len(np.unique(goal[runs])) < 2:
        return np.full(metrics.shape[1], np.nan), np.nan
    codes = np.zeros((len(runs), axes.shape[1]), dtype=np.intp)
    for number, name in enumerate(axes):
        codes[:, number] = pd.factorize(axes[name].iloc[runs])[0]
    first, second = np.nonzero(~np.eye(len(runs), dtype=bool))
    ordered = goal[runs][first] != goal[runs][second]
    first, second = first[ordered], second[ordered]
    ahead = goal[runs][first] > goal[runs][second]
    conditions = []
    for size in range(3):
        for chosen in combinations(range(codes.shape[1]), size):
            both = np.hstack([codes[first][:, chosen], codes[second][:, chosen]])
            cell = np.zeros(len(first), dtype=np.intp)
            for column in both.T:
                cell = cell * (column.max(initial=0) + 1) + column
            conditions.append(np.unique(cell, return_inverse=True)[1])

    def least(values: Numbers) -> float:
        known = np.isfinite(values[first] + values[second])
        higher = values[first] > values[second]
        shares = [_share(cell[known], ahead[known], higher[known]) for cell in conditions]
        return min((share for share in shares if not np.isnan(share)), default=np.nan)

    null = [least(generator.permutation(len(runs)).astype(float)) for _ in range(SHUFFLES)]
    found = np.array([least(column) for column in metrics[runs].T])
    return found, float(np.nanquantile(null, CONFIDENCE))


def _share(cell: Indices, ahead: np.ndarray, higher: np.ndarray) -> float:
    """I(ahead; higher | cell) / H(ahead | cell), from counts; NaN where nothing is uncertain."""
    if not len(cell):
        return np.nan
    table = np.bincount(cell * 4 + ahead * 2 + higher, minlength=4 * (int(cell.max()) + 1))
    counts = table.astype(float).reshape(-1, 2, 2)

    def entropy(parts: Numbers) -> float:
        """Sum of n log n, to which entropies add up."""
        return float((parts * np.log(parts, where=parts > 0, out=np.zeros_like(parts))).sum())

    whole, by_goal = counts.sum(axis=(1, 2)), counts.sum(axis=2)
    uncertainty = entropy(whole) - entropy(by_goal)
    if uncertainty <= 0:
        return np.nan
    information = entropy(counts) + entropy(whole) - entropy(by_goal) - entropy(counts.sum(axis=1))
    return max(0.0, information / uncertainty)


def mediators(study: Study) -> dict[str, str]:
    """Of sparsity and clustering, the metric that stands for it.

    The first that was measured on the training split, of activations if there is one.
    """
    measured = study.query(
        "select distinct metric, site from final where layer_index >= 0 and split = 'train'"
    )
    activations = set(measured.loc[measured["site"] == "act", "metric"])
    found = {
        name: [metric for metric in metrics if metric in activations]
        or [metric for metric in metrics if metric in set(measured["metric"])]
        for name, metrics in MEDIATORS.items()
    }
    return {name: metrics[0] for name, metrics in found.items() if metrics}


def mediation(
    study: Study, baseline: str | None = None, through: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """How much of a treatment's effect on generalization may go through a metric.

    Mediation within pairs (Judd, Kenny and McClelland 2001; Montoya and Hayes 2017): the difference
    in the target is regressed on the difference in the metric (its mean over the layers'
    activations, on the training split's probe set) and on the metric's mean of the two runs,
    centred. The indirect effect is the mean difference in the metric times its slope; together with
    the direct effect it is the total one, whose interval is that of `effects`. The others are
    percentiles of 2,000 resamples of pairs, the usual ones for a product of two estimates. What has
    to be assumed is in `ASSUMPTIONS`.

    Args:
        study: Whose runs are comparable.
        baseline: A treatment; None: `Study.baseline`'s choice.
        through: By name, the metrics; None: `mediators`.

    Returns:
        One row for each treatment, target and mediator (and "both", together): metric, n; total,
        indirect, direct, each with _low and _high; share, indirect / total, with share_low and
        share_high where the total effect's interval leaves out 0, otherwise NaN: of nothing there
        are no shares. Fewer pairs than twice the regression's parameters have no row.
    """
    baseline = study.baseline(baseline)
    through = mediators(study) if through is None else through
    of_metric = {name: layer_means(study, metric) for name, metric in through.items()}
    routes: list[tuple[str, list[str]]] = [(name, [name]) for name in through]
    if len(through) > 1:
        routes.append(("both", list(through)))
    rows = []
    for treatment in study.treatments:
        if treatment == baseline:
            continue
        matched = pairs(study, treatment, baseline)
        for target, goal in targets(study).items():
            values_of = goal.to_numpy()[:, None]
            change = measured_differences(values_of[matched.treatment], values_of[matched.baseline])
            for name, route in routes:
                metric = np.stack([of_metric[one] for one in route], axis=1)
                ours, theirs = metric[matched.treatment], metric[matched.baseline]
                sample = np.hstack([change, ours - theirs, (ours + theirs) / 2])
                known = np.isfinite(sample).all(axis=1)
                sample = sample[known]
                if len(sample) < 2 * (1 + 2 * len(route)):
                    continue
                rows.append(
                    {
                        "treatment": treatment,
                        "baseline": baseline,
                        "target": target,
                        "mediator": name,
                        "metric": " + ".join(through[one] for one in route),
                        "n": len(sample),
                        **_mediated(sample, len(route)),
                    }
                )
    return pd.DataFrame(rows)


@lru_cache(maxsize=1)
def _draws(size: int) -> Numbers:
    """How large a share each of `size` pairs has in each resample, resamples x pairs."""
    chosen = np.random.default_rng(0).integers(size, size=(RESAMPLES, size))
    chosen += size * np.arange(RESAMPLES)[:, None]
    return np.bincount(chosen.ravel(), minlength=RESAMPLES * size).reshape(-1, size) / size


def _mediated(sample: Numbers, mediators: int) -> dict[str, float]:
    """Effects of one treatment.

    Args:
        sample: Pairs x (change in the target, changes in the mediators, their mean levels).
        mediators: How many there are.
    """
    n = len(sample)
    largest = np.abs(sample).max(axis=0)
    largest[largest == 0] = 1
    sample = sample / largest  # whose squares may be no floats
    scale = sample.std(axis=0) + (np.ptp(sample, axis=0) == 0)
    variables = np.hstack([sample / scale, np.ones((n, 1))])
    products = (variables[:, :, None] * variables[:, None, :]).reshape(n, -1)
    draws = _draws(n)
    weights = np.vstack([np.full(n, 1 / n), draws])  # the sample itself comes first
    moments = (weights @ products).reshape(-1, variables.shape[1], variables.shape[1])
    # Of the regression of the first variable on all others; the last one is the intercept's.
    inverse = np.linalg.pinv(moments[:, 1:, 1:], hermitian=True)
    slopes = (inverse @ moments[:, 1:, :1])[:, :mediators, 0]
    unit = scale[0] * largest[0]
    total = moments[:, -1, 0] * unit
    indirect = (moments[:, -1, 1 : 1 + mediators] * slopes).sum(axis=1) * unit
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = (end[0] * largest[0] for end in paired_test(sample[:, :1])[2:4])
    found = {"total": total[0], "total_low": low, "total_high": high}
    for name, values in (("indirect", indirect), ("direct", total - indirect)):
        found[name] = values[0]
        found[f"{name}_low"], found[f"{name}_high"] = np.quantile(values[1:], tails)
    share = np.full(3, np.nan)
    if found["total_low"] > 0 or found["total_high"] < 0:
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = indirect / total  # of a resample without a total effect there is none
            share = np.array([shares[0], *np.quantile(shares[1:], tails)])
        share[~np.isfinite(share)] = np.nan
    return found | dict(zip(("share", "share_low", "share_high"), share.tolist(), strict=True))


def interventions(study: Study) -> pd.DataFrame:
    """What a regularizer that changes representations directly did to generalization.

    Args:
        study: Whose runs are comparable.

    Returns:
        Of `effects`, the rows of the regularized treatments, each with the same norm without a
        regularizer as baseline: the whole model's accuracy and loss, and what stands for sparsity
        and clustering (`mediators`) at each place. p_adjusted is that of `effects`.
    """
    results = study.results
    plain = set(results.loc[results["regularizer"] == "none", "treatment"])
    tables = []
    regularized = results[results["regularizer"] != "none"]
    for norm, treatments in regularized.groupby("norm")["treatment"].unique().items():
        if norm not in plain:
            continue
        table = effects(study, str(norm))
        wanted = [*mediators(study).values(), "accuracy", "loss"]
        chosen = table["treatment"].isin(treatments) & table["metric"].isin(wanted)
        tables.append(table[chosen])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
