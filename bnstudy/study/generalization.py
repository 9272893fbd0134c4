"""Do representations explain generalization? Over the runs of a study, after their last epoch.

`compute_relations` asks whether a metric orders networks as their generalization does,
`compute_mediation` how much of a treatment's effect may go through a metric,
`compute_interventions` what happened where a metric was changed directly. The first two are about
association: only the third changes anything.
"""

import math
from collections.abc import Mapping

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
from bnstudy.study.load.design import NAMES
from bnstudy.study.load.matrix import average_layers, load_shared_columns
from bnstudy.study.load.pairs import match_pairs
from bnstudy.study.load.study_runs import StudyRuns

TARGETS = ("test accuracy", "generalization gap")  # the gap: train less test accuracy

MIN_RUNS = 5  # for a correlation: with fewer, Kendall's tau has no p of 0.05 or less
COEFFICIENTS = [
    *("tau", "tau_p", "granulated", "granulated_low", "granulated_high", "cmi", "cmi_null")
]

ASSUMPTIONS = (
    "Shares are causal only if, within a pair, nothing else that the treatment changes moves both "
    "the metric and accuracy, accuracy does not itself move the metric, and the relation is linear "
    "and the same for both treatments. Measurements cannot test this; interventions can."
)


def compute_targets(study: StudyRuns) -> pd.DataFrame:
    """Compute test accuracy and generalization gap of each of `study.results`, by those names."""
    train, test = (
        study.results[name].to_numpy(float) for name in ("train_accuracy", "test_accuracy")
    )
    gap = measured_differences(train[:, None], test[:, None])[:, 0]
    return pd.DataFrame({"test accuracy": test, "generalization gap": gap})


def compute_relations(study: StudyRuns) -> pd.DataFrame:
    """Compute how each metric at each place goes with generalization, over all runs.

    Args:
        study: Study whose runs are comparable.

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
    keys, values = load_shared_columns(study)
    values = values[results.index]
    layers = np.flatnonzero(keys["place_index"] > 0)
    axes = pd.DataFrame({"treatment": results["treatment"]})
    for key in study.design.grid:
        axes[key] = results[NAMES.get(key, key)].astype(str)
    axes = axes.loc[:, axes.nunique() > 1]
    if not layers.size or len(results) < 2:
        return pd.DataFrame()
    goals, levels = compute_targets(study).loc[results.index], axes.to_numpy()
    tables = []
    for name in TARGETS:
        goal = goals[name].to_numpy(float)
        metrics = np.where(np.isfinite(values[:, layers]), values[:, layers], np.nan)
        granulated = granulated_kendall(metrics, goal, levels, results["seed"].to_numpy())
        information = conditional_mutual_information(metrics, goal, levels)
        over_all = kendall(metrics, goal)
        n = np.isfinite(metrics + goal[:, None]).sum(axis=0)
        table = keys.loc[layers].assign(
            target=name,
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


def choose_mediators(study: StudyRuns) -> dict[str, str]:
    """Choose the metric that stands for each family of the headline.

    It is the first that was measured on the training split, of activations if there is one.
    """
    measured = study.query(
        "select distinct metric, site from final where layer_index >= 0 and split = 'train'"
    )
    activations = set(measured.loc[measured["site"] == "act", "metric"])
    found = {
        name: choose_measured(family, activations)
        or choose_measured(family, set(measured["metric"]))
        for name, family in FAMILIES.items()
    }
    return {name: metrics[0] for name, metrics in found.items() if metrics}


def compute_mediation(
    study: StudyRuns, baseline: str | None = None, through: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Compute how much of a treatment's effect on generalization may go through a metric.

    A metric is its mean over the layers' activations, on the training split's probe set. The total
    effect's interval is that of `compute_effects`; what is computed is in
    `bnstudy.study.inference.mediate`, what has to be assumed in `ASSUMPTIONS`.

    Args:
        study: Study whose runs are comparable.
        baseline: Treatment to compare with; None: `StudyRuns.baseline`'s choice.
        through: Metrics by name of the mediator; None: `choose_mediators`.

    Returns:
        One row for each treatment, target and mediator (and "both", together): metric, n; total,
        indirect, direct, each with _low and _high; share, indirect / total, with share_low and
        share_high where the total effect's interval leaves out 0, otherwise NaN: of nothing there
        are no shares. Fewer pairs than twice the regression's parameters have no row.
    """
    baseline = study.baseline(baseline)
    through = choose_mediators(study) if through is None else through
    of_metric = {name: average_layers(study, metric) for name, metric in through.items()}
    routes: list[tuple[str, list[str]]] = [(name, [name]) for name in through]
    if len(through) > 1:
        routes.append(("both", list(through)))
    rows = []
    for treatment in study.treatments:
        if treatment == baseline:
            continue
        matched = match_pairs(study, treatment, baseline)
        for target, goal in compute_targets(study).items():
            values_of = goal.to_numpy()[:, None]
            change = measured_differences(values_of[matched.treatment], values_of[matched.baseline])
            for name, route in routes:
                metric = np.stack([of_metric[one] for one in route], axis=1)
                ours, theirs = metric[matched.treatment], metric[matched.baseline]
                found = mediate(change[:, 0], ours, theirs)
                if math.isnan(found.total):
                    continue
                rows.append(
                    {
                        "treatment": treatment,
                        "baseline": baseline,
                        "target": target,
                        "mediator": name,
                        "metric": " + ".join(through[one] for one in route),
                        **found._asdict(),
                    }
                )
    return pd.DataFrame(rows)


def compute_interventions(study: StudyRuns) -> pd.DataFrame:
    """Compute what regularizers that change representations directly did to generalization.

    Args:
        study: Study whose runs are comparable.

    Returns:
        Rows of `compute_effects` of the regularized treatments, each with the same norm without a
        regularizer as baseline: the whole model's accuracy and loss, and what stands for sparsity
        and clustering (`choose_mediators`) at each place. p_adjusted is that of `compute_effects`.
    """
    results = study.results
    plain = set(results.loc[results["regularizer"] == "none", "treatment"])
    tables = []
    regularized = results[results["regularizer"] != "none"]
    for norm, treatments in regularized.groupby("norm")["treatment"].unique().items():
        if norm not in plain:
            continue
        table = compute_effects(study, str(norm))
        wanted = [*choose_mediators(study).values(), "accuracy", "loss"]
        chosen = table["treatment"].isin(treatments) & table["metric"].isin(wanted)
        tables.append(table[chosen])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
