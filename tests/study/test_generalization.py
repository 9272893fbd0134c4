"""Does it explain generalization? Against plain formulas, and on data with known answers."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols

from bnstudy.study.generalization import compute_interventions, compute_mediation, compute_relations
from bnstudy.study.study import load
from tests.study.studies import Studies

NORMS = ("none", "batchnorm", "layernorm")


def random_study(studies: Studies, explained: float) -> pd.DataFrame:
    """3 norms x 2 depths x 3 seeds, whose accuracy depends on the metric by `explained`."""
    generator = np.random.default_rng(1)
    rows = []
    for norm, depth, seed in itertools.product(NORMS, (2, 4), range(3)):
        metric, noise = generator.normal(size=2)
        accuracy = 0.5 + 0.01 * (explained * metric + (1 - explained) * noise)
        layers = {"silhouette": [metric]}
        studies.add(norm, seed, f"model.depth={depth}", layers=layers, accuracy=accuracy)
        rows.append({"norm": norm, "depth": depth, "seed": seed, "m": metric, "g": accuracy})
    return pd.DataFrame(rows)


def related(studies: Studies, target: str = "test accuracy") -> pd.Series:
    table = compute_relations(load(studies.folder))
    return table[table["target"] == target].iloc[0]


@pytest.mark.slow
@pytest.mark.parametrize("explained", [0, 0.5])
def test_kendalls_coefficients(studies: Studies, explained: float) -> None:
    runs = random_study(studies, explained)
    found = related(studies)
    assert found["tau"] == pytest.approx(stats.kendalltau(runs["m"], runs["g"]).statistic)
    by_axis = []
    for axis, others in (("norm", ["depth", "seed"]), ("depth", ["norm", "seed"])):
        groups = [group for _, group in runs.groupby(others)]
        assert all(group[axis].nunique() == len(group) > 1 for group in groups)
        by_axis.append(np.mean([stats.kendalltau(g["m"], g["g"]).statistic for g in groups]))
    assert found["granulated"] == pytest.approx(np.mean(by_axis))
    assert found["axes"] == 2
    assert found["granulated_low"] < found["granulated"] < found["granulated_high"]


def test_conditional_mutual_information_is_that_of_the_definition(studies: Studies) -> None:
    runs = random_study(studies, explained=0.5)
    couples = [(one, other) for one, other in itertools.permutations(runs.to_dict("records"), 2)]

    def probability(*events: list[object]) -> dict[tuple[object, ...], float]:
        counts: dict[tuple[object, ...], float] = {}
        for event in zip(*events, strict=True):
            counts[event] = counts.get(event, 0) + 1 / len(couples)
        return counts

    shares = []
    for size in range(3):
        for chosen in itertools.combinations(("norm", "depth"), size):
            u = [tuple((a[key], b[key]) for key in chosen) for a, b in couples]
            g, m = ([a[key] > b[key] for a, b in couples] for key in ("g", "m"))
            p, p_u = probability(u, g, m), probability(u)
            p_g, p_m = probability(u, g), probability(u, m)
            information = sum(
                one * math.log(one * p_u[(k,)] / (p_g[(k, x)] * p_m[(k, y)]))
                for (k, x, y), one in p.items()
            )
            entropy = -sum(one * math.log(one / p_u[(k,)]) for (k, _), one in p_g.items())
            shares.append(information / entropy)
    found = related(studies)
    assert found["cmi"] == pytest.approx(min(shares))


@pytest.mark.slow
def test_a_metric_that_decides_accuracy_orders_runs_perfectly(studies: Studies) -> None:
    random_study(studies, explained=1)
    found = related(studies)
    assert (found["tau"], found["granulated"]) == pytest.approx((1, 1))
    assert found["cmi"] == pytest.approx(1)
    assert found["cmi_null"] < 0.5
    gap = related(studies, "generalization gap")  # all train to accuracy 1
    assert (gap["tau"], gap["granulated"]) == pytest.approx((-1, -1))


def test_a_metric_that_knows_nothing_is_within_chance(studies: Studies) -> None:
    generator = np.random.default_rng(2)
    for norm, seed in itertools.product(NORMS, range(8)):
        values = generator.normal(size=60).tolist()
        studies.add(norm, seed, layers={"silhouette": values}, accuracy=generator.uniform())
    table = compute_relations(load(studies.folder))
    assert (table["cmi"] <= table["cmi_null"]).mean() == pytest.approx(0.95, abs=0.05)
    inside = (table["granulated_low"] <= 0) & (table["granulated_high"] >= 0)
    assert inside.mean() > 0.85


def mediated(studies: Studies, through: float, past: float, seeds: int) -> pd.DataFrame:
    """BatchNorm makes it sparser by 0.2; accuracy gains `through` of that, and `past` besides."""
    generator = np.random.default_rng(3)
    rows = []
    for seed in range(seeds):
        level, accuracy = {}, {}
        for norm in ("none", "batchnorm"):
            level[norm] = 0.4 + 0.2 * (norm == "batchnorm") + 0.05 * generator.normal()
            accuracy[norm] = 0.5 + through * level[norm] + past * (norm == "batchnorm")
            accuracy[norm] += 0.002 * generator.normal()
            layers = {"unit_sparsity": [level[norm]]}
            studies.add(norm, seed, layers=layers, accuracy=accuracy[norm])
        rows.append(
            {
                "dm": level["batchnorm"] - level["none"],
                "dy": accuracy["batchnorm"] - accuracy["none"],
                "level": (level["batchnorm"] + level["none"]) / 2,
            }
        )
    return pd.DataFrame(rows)


@pytest.mark.slow
def test_mediation_is_the_regression_of_differences(studies: Studies) -> None:
    runs = mediated(studies, through=0.2, past=0.04, seeds=30)
    table = compute_mediation(load(studies.folder)).set_index("target")
    row = table.loc["test accuracy"]
    centred = runs.assign(level=runs["level"] - runs["level"].mean())
    fit = ols("dy ~ dm + level", centred).fit()
    assert row["total"] == pytest.approx(runs["dy"].mean())
    assert row["indirect"] == pytest.approx(fit.params["dm"] * runs["dm"].mean())
    assert row["direct"] == pytest.approx(fit.params["Intercept"])
    assert (row["mediator"], row["metric"], row["n"]) == ("sparsity", "unit_sparsity", 30)
    # As planted: 0.2 * 0.2 of the effect goes through sparsity, 0.04 past it.
    assert row["share"] == pytest.approx(0.5, abs=0.05)
    assert row["share_low"] < 0.5 < row["share_high"]


@pytest.mark.slow
def test_what_goes_past_the_metric_is_no_share_of_it(studies: Studies) -> None:
    mediated(studies, through=0, past=0.05, seeds=30)
    row = compute_mediation(load(studies.folder)).iloc[0]
    assert row["indirect_low"] < 0 < row["indirect_high"]
    assert row["share"] == pytest.approx(0, abs=0.1)


def test_of_no_effect_there_is_no_share(studies: Studies) -> None:
    mediated(studies, through=0, past=0, seeds=12)
    row = compute_mediation(load(studies.folder)).iloc[0]
    assert row["total_low"] < 0 < row["total_high"]
    assert math.isnan(row["share"])


def test_four_pairs_are_too_few_for_mediation(studies: Studies) -> None:
    mediated(studies, through=0.2, past=0, seeds=4)
    assert compute_mediation(load(studies.folder)).empty


@pytest.mark.slow
def test_two_mediators_are_told_apart_and_together(studies: Studies) -> None:
    generator = np.random.default_rng(5)
    for seed, norm in itertools.product(range(30), ("none", "batchnorm")):
        effect = norm == "batchnorm"
        sparsity, clustering = 0.2 * effect + 0.1 * generator.normal(size=2)
        layers = {"unit_sparsity": [sparsity], "silhouette": [clustering]}
        accuracy = 0.5 + 0.1 * clustering + 0.001 * generator.normal()
        studies.add(norm, seed, layers=layers, accuracy=accuracy)
    table = compute_mediation(load(studies.folder))
    table = table[table["target"] == "test accuracy"].set_index("mediator")
    assert table.loc["both", "share"] == pytest.approx(1, abs=0.1)
    assert table.loc["clustering", "share"] == pytest.approx(1, abs=0.1)
    assert table.loc["sparsity", "indirect_low"] < 0 < table.loc["sparsity", "indirect_high"]


def test_interventions_are_compared_with_the_same_norm_left_alone(studies: Studies) -> None:
    for seed in range(4):
        sparsity = 0.4 + 0.01 * seed
        studies.add("none", seed, layers={"unit_sparsity": [sparsity]}, accuracy=0.8)
        studies.add("batchnorm", seed, layers={"unit_sparsity": [0.9]}, accuracy=0.9)
        words = ("regularizer=activation_l1",)
        layers = {"unit_sparsity": [sparsity + 0.1 + 0.001 * seed]}
        studies.add("none", seed, *words, layers=layers, accuracy=0.7 + 0.01 * seed)
    table = compute_interventions(load(studies.folder))
    assert set(table["baseline"]) == {"none"}
    assert set(table["treatment"]) == {"none + activation_l1"}
    found = table.set_index(["split", "metric"])["difference"]
    assert found["train", "unit_sparsity"] == pytest.approx(0.1015)
    assert found["test", "accuracy"] == pytest.approx(-0.085)


@pytest.mark.slow
def test_an_intervention_is_compared_with_the_same_options_of_the_norm(studies: Studies) -> None:
    for groups, accuracy in ((2, 0.7), (4, 0.8)):
        words = (f"norm.num_groups={groups}",)
        for seed in range(3):
            studies.add("groupnorm", seed, *words, layers={"mean": [0.4]}, accuracy=accuracy)
            studies.add(
                "groupnorm",
                seed,
                *words,
                "regularizer=activation_l1",
                layers={"mean": [0.4]},
                accuracy=accuracy + 0.01,
            )
    table = compute_interventions(load(studies.folder))
    table = table[(table["metric"] == "accuracy") & (table["split"] == "test")]
    assert dict(zip(table["treatment"], table["baseline"], strict=True)) == {
        f"groupnorm + activation_l1 num_groups={groups}": f"groupnorm num_groups={groups}"
        for groups in (2, 4)
    }
    assert table["difference"].to_numpy() == pytest.approx(0.01)


def test_without_interventions_there_are_none(studies: Studies) -> None:
    studies.add("none")
    assert compute_interventions(load(studies.folder)).empty
