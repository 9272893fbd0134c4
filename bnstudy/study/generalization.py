"""Relations between representations and generalization, over runs after their last epoch.

`compute_relations` computes rank correlations of metrics with generalization, `compute_mediation`
the part of a treatment's effect that may go through a metric, and `compute_interventions` the
effect of changing a metric directly. Only the last one is causal.
"""

import math

import numpy as np
import pandas as pd

from bnstudy.headline import FAMILIES, choose_measured
from bnstudy.study.effects import compute_effects
from bnstudy.study.inference import (
    conditional_mutual_information,
    granulated_kendall,
    kendall,
    measured_differences,
    mediate,
)
from bnstudy.study.load.design import COLUMN_OF_KEY, format_options
from bnstudy.study.load.matrix import average_layers, load_shared_columns
from bnstudy.study.load.pairs import match_pairs
from bnstudy.study.load.study_runs import StudyRuns

MIN_RUNS = 5  # for a correlation; with fewer, Kendall's tau cannot reach p = 0.05
COEFFICIENTS = [
    *("tau", "tau_p", "granulated", "granulated_low", "granulated_high"),
    *("cmi", "cmi_null"),
]

ASSUMPTIONS = (
    "Shares are causal only under three assumptions: within a pair, what else the treatment "
    "changes does not affect both the metric and the target; the target does not affect the "
    "metric; and the relation of the two is linear and the same for both treatments. Measurements "
    "cannot test these assumptions; interventions can."
)


def compute_targets(study: StudyRuns) -> pd.DataFrame:
    """Compute the targets for each row of `study.results`: test accuracy and generalization gap.

    The gap is the training accuracy minus the test accuracy.
    """
    train, test = (
        study.results[name].to_numpy(float) for name in ("train_accuracy", "test_accuracy")
    )
    gap = measured_differences(train[:, None], test[:, None])[:, 0]
    return pd.DataFrame({"test accuracy": test, "generalization gap": gap})


def compute_relations(study: StudyRuns) -> pd.DataFrame:
    """Compute rank correlations of each metric at each place with generalization, over all runs.

    Args:
        study: Study whose runs are comparable.

    Returns:
        One row for each split, metric, place (place_index, site) and target ("test accuracy",
        "generalization gap"), with n, the number of runs that have both values, and the following
        columns, all of which except `axes` are NaN if n is below 5:

        - tau: Kendall's tau-b over all pairs of runs; tau_p: its p-value, which treats runs with
          the same seed or point of the grid as independent and is therefore too small;
        - granulated: granulated Kendall coefficient (Jiang et al. 2020, arXiv 1912.02178, eq. 7):
          mean over the study's axes (treatment and grid) of tau among runs that differ only in this
          axis; granulated_low, granulated_high: its interval over seeds (see `paired_test`); axes:
          number of axes;
        - cmi: conditional mutual information of the runs' orders by metric and by target, divided
          by the conditional entropy of the order by target (ibid., eq. 9 to 11), in [0, 1]: the
          minimum over conditioning sets of at most two axes. Of more than 200 runs, 200 are drawn
          at random; cmi_null: 95th percentile of cmi over 100 random permutations of the runs.
          Even an unrelated metric has a cmi above 0; only a cmi above cmi_null is evidence of a
          relation.

        Empty with fewer than two runs or without metrics of layers.
    """
    # Of several treatments with identical values, only the first is included.
    results = study.results[~study.results["treatment"].isin(study.identical)]
    keys, values = load_shared_columns(study)
    layers = np.flatnonzero(keys["place_index"] > 0)
    if not layers.size or len(results) < 2:
        return pd.DataFrame()
    metrics = values[np.ix_(results.index.to_numpy(), layers)]
    metrics[~np.isfinite(metrics)] = np.nan
    axes = pd.DataFrame({"treatment": results["treatment"]})
    for key in study.design.grid:
        axes[key] = results[COLUMN_OF_KEY.get(key, key)].astype(str)
    axes = axes.loc[:, axes.nunique() > 1]
    levels = axes.to_numpy()
    tables = []
    for target, numbers in compute_targets(study).loc[results.index].items():
        goal = numbers.to_numpy(float)
        granulated = granulated_kendall(metrics, goal, levels, results["seed"].to_numpy())
        information = conditional_mutual_information(metrics, goal, levels)
        over_all = kendall(metrics, goal)
        n = np.isfinite(metrics + goal[:, None]).sum(axis=0)
        table = keys.loc[layers].assign(
            target=str(target),
            n=n,
            tau=over_all.tau,
            tau_p=over_all.p,
            granulated=granulated.coefficient,
            granulated_low=granulated.low,
            granulated_high=granulated.high,
            axes=axes.shape[1],
            cmi=information.share,
            cmi_null=information.null,
        )
        table.loc[n < MIN_RUNS, COEFFICIENTS] = np.nan
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def choose_family_metrics(study: StudyRuns) -> dict[str, str]:
    """Choose a metric for each family of headline metrics (sparsity, clustering).

    It is the family's first metric that was measured on activations of the training split, or, if
    there is none, its first metric that was measured at another site. Families without a measured
    metric are left out.

    Args:
        study: Study whose runs are comparable.

    Returns:
        Name of the metric, by name of the family.
    """
    measured = study.query(
        "select distinct metric, site from final where layer_index >= 0 and split = 'train'"
    )
    activations = set(measured.loc[measured["site"] == "act", "metric"])
    chosen = {
        name: choose_measured(family, activations)
        or choose_measured(family, set(measured["metric"]))
        for name, family in FAMILIES.items()
    }
    return {name: metrics[0] for name, metrics in chosen.items() if metrics}


def compute_mediation(study: StudyRuns, baseline: str | None = None) -> pd.DataFrame:
    """Compute the part of a treatment's effect on generalization that may go through a metric.

    The mediators are the families of headline metrics, each with its metric of
    `choose_family_metrics`. The value of a metric is its mean over layers (`average_layers`).
    `bnstudy.study.inference.mediate` describes the computation, `ASSUMPTIONS` the assumptions.

    Args:
        study: Study whose runs are comparable.
        baseline: Treatment to compare with; None: `StudyRuns.baseline`'s choice.

    Returns:
        One row for each treatment, target and mediator and, if there are several mediators, for all
        of them together ("both"): metric, n; total, indirect and direct effect, each with _low and
        _high; share, indirect / total, with share_low and share_high, NaN if the interval of the
        total effect contains 0. A row needs `min_pairs_to_mediate` pairs that have all its values.
    """
    baseline = study.baseline(baseline)
    metrics = choose_family_metrics(study)
    means = {mediator: average_layers(study, metric) for mediator, metric in metrics.items()}
    mediator_sets = {mediator: [mediator] for mediator in metrics}
    if len(metrics) > 1:
        mediator_sets["both"] = list(metrics)
    rows = []
    for treatment in study.treatments_without(baseline):
        matched = match_pairs(study, treatment, baseline)
        for target, goal in compute_targets(study).items():
            goals = goal.to_numpy()[:, None]
            change = measured_differences(goals[matched.treatment], goals[matched.baseline])
            for name, mediators in mediator_sets.items():
                values = np.stack([means[mediator] for mediator in mediators], axis=1)
                treated, untreated = values[matched.treatment], values[matched.baseline]
                mediation = mediate(change[:, 0], treated, untreated)
                if math.isnan(mediation.total):
                    continue
                rows.append(
                    {
                        "treatment": treatment,
                        "baseline": baseline,
                        "target": target,
                        "mediator": name,
                        "metric": " + ".join(metrics[mediator] for mediator in mediators),
                        **mediation._asdict(),
                    }
                )
    return pd.DataFrame(rows)


def compute_interventions(study: StudyRuns) -> pd.DataFrame:
    """Compute the effect of regularizers, which change representations directly.

    Args:
        study: Study whose runs are comparable.

    Returns:
        Rows of `compute_effects` for the regularized treatments, with the same norm without a
        regularizer as baseline: accuracy and loss of the whole model, and the metrics of
        `choose_family_metrics` at each place. p_adjusted is that of `compute_effects`.
    """
    runs = study.results[study.results["regularizer"] != "none"]
    norm_options = [key for key in study.design.options if key.startswith("norm.")]
    baseline_of = {
        treatment: f"{norm} {format_options(study.settings[cell], norm_options)}".strip()
        for treatment, norm, cell in zip(runs["treatment"], runs["norm"], runs["cell"], strict=True)
    }
    wanted = [*choose_family_metrics(study).values(), "accuracy", "loss"] if baseline_of else []
    tables = []
    for baseline in sorted(set(baseline_of.values()) & set(study.treatments)):
        table = compute_effects(study, baseline)
        is_wanted = table["metric"].isin(wanted)
        tables.append(table[is_wanted & table["treatment"].map(baseline_of).eq(baseline)])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
