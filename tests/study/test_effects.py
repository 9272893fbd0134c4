"""Comparisons of a study against SciPy and statsmodels, and on data with known effects."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from bnstudy.study.analysis import Analysis
from bnstudy.study.confounders import describe_confounders
from bnstudy.study.effects import (
    compute_averages,
    compute_effects,
    compute_effects_over_time,
    compute_factors,
)
from bnstudy.study.generalization import compute_relations
from bnstudy.study.inference import holm, max_t_adjusted, paired_test
from bnstudy.study.load.pairs import match_pairs
from bnstudy.study.present.verdict import compose_verdict
from bnstudy.study.study import load
from tests.study.studies import Studies

SEEDS = range(4)


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape)


# ---- Studies


def planted(studies: Studies, effect: float, seeds: int = 4) -> None:
    """2 norms x 2 depths x 2 widths: silhouette is higher by `effect` in the last layer."""
    generator = np.random.default_rng(5)
    for seed, depth, width in itertools.product(range(seeds), (2, 4), (4, 8)):
        shared = generator.normal(size=depth)  # what a pair has in common
        for norm in ("none", "batchnorm"):
            values = shared + 0.1 * generator.normal(size=depth)
            values[-1] += effect * (norm == "batchnorm")
            words = (f"model.depth={depth}", f"model.width={width}")
            studies.add(norm, seed, *words, layers={"silhouette": values.tolist()})


@pytest.mark.slow
def test_a_planted_effect_is_found_where_it_is(studies: Studies) -> None:
    planted(studies, effect=0.5)
    table = compute_effects(load(studies.folder))
    layers = table[table["metric"] == "silhouette"].set_index("place")
    last, first = layers.loc["depth 100 %"], layers.loc["depth 0 %"]
    assert last["difference"] == pytest.approx(0.5, abs=0.06)
    assert last["low"] < 0.5 < last["high"]
    assert last["p"] == last["p_adjusted"] == 2**-15  # the smallest, whatever the family's size
    assert (last["n"], last["family"], last["rank_biserial"]) == (16, 5, 1)
    assert first["low"] < 0 < first["high"]
    assert first["p_adjusted"] > 0.05


def test_a_planted_effect_is_found_at_each_point_of_the_grid(studies: Studies) -> None:
    planted(studies, effect=0.5)
    table = compute_effects(load(studies.folder), by=["depth"])
    layers = table[table["metric"] == "silhouette"].set_index(["depth", "place"])
    for depth in (2, 4):
        last = layers.loc[(depth, f"block0{depth}")]
        assert last["difference"] == pytest.approx(0.5, abs=0.1)
        assert last["n"] == 8


@pytest.mark.slow
def test_zeros_are_not_compared_with_another_activation_function(studies: Studies) -> None:
    for seed, norm in itertools.product(SEEDS, ("none", "batchnorm", "evonorm_s0")):
        layers = {"silhouette": [0.1, 0.2], "unit_sparsity": [0.5, float(norm == "none")]}
        studies.add(norm, seed, layers=layers)
    study = load(studies.folder)
    effects = compute_effects(study, "none")
    metrics = effects[effects["place_index"] > 0].groupby("treatment")["metric"].agg(set)
    assert metrics["batchnorm"] == {"silhouette", "unit_sparsity"}
    assert metrics["evonorm_s0"] == {"silhouette"}
    averages = compute_averages(study)
    assert "unit_sparsity" not in set(averages.loc[averages["treatment"] == "evonorm_s0", "metric"])
    curves = compute_effects_over_time(study, "evonorm_s0")
    assert set(curves.loc[curves["place_index"] > 0, "metric"]) == {"silhouette"}
    assert describe_confounders(study, "evonorm_s0", "none") == (
        "activation function (that of the norm with EvoNorm-S0, ReLU with no normalization; "
        "so metrics of zeros are not compared)"
    )
    assert describe_confounders(study, "batchnorm", "none") == ""


def test_four_pairs_are_tested_by_students_t_and_adjusted_by_holm(studies: Studies) -> None:
    values = drawn(4, 2, 2) + np.array([0.0, 1.0])[:, None]
    for seed, (norm, name) in itertools.product(SEEDS, enumerate(("none", "batchnorm"))):
        layers = {"silhouette": values[seed, norm].tolist()}
        studies.add(name, seed, layers=layers, accuracy=0.9)
    table = compute_effects(load(studies.folder))
    layers = table[table["metric"] == "silhouette"]
    expected = stats.ttest_rel(values[:, 1], values[:, 0])
    assert layers["p"].to_numpy() == pytest.approx(expected.pvalue)
    assert layers["low"].to_numpy() == pytest.approx(expected.confidence_interval().low)
    assert set(layers["test"]) == {"Student's t"}
    assert layers["smallest_p"].isna().all()
    adjusted = np.maximum(2 * expected.pvalue.min(), [0, expected.pvalue.max()])
    assert sorted(layers["p_adjusted"]) == pytest.approx(sorted(adjusted.clip(max=1)))


def test_one_pair_has_a_difference_and_nothing_else(studies: Studies) -> None:
    for norm, value in (("none", 0.1), ("batchnorm", 0.9)):
        studies.add(norm, layers={"silhouette": [value]}, accuracy=value)
    study = load(studies.folder)
    row = compute_effects(study).set_index("metric").loc["silhouette"]
    assert (row["n"], row["difference"]) == (1, pytest.approx(0.8))
    claims = ["low", "high", "p", "p_adjusted", "smallest_p", "cohens_d", "rank_biserial"]
    assert row[claims].isna().all()
    assert (
        compute_relations(study)[["tau", "tau_p", "granulated", "cmi", "cmi_null"]]
        .isna()
        .all(axis=None)
    )


def test_no_effect_is_found_where_none_was_planted(studies: Studies) -> None:
    generator = np.random.default_rng(6)
    for seed in range(8):
        for norm in ("none", "batchnorm"):
            values = generator.normal(size=100).tolist()
            studies.add(norm, seed, layers={"silhouette": values})
    table = compute_effects(load(studies.folder))
    layers = table[table["metric"] == "silhouette"]
    assert (layers["p"] <= 0.05).mean() == pytest.approx(0.05, abs=0.08)
    assert (layers["p_adjusted"] > 0.05).all()


@pytest.mark.parametrize("seeds", [5, 8])
def test_a_family_is_all_treatments_metrics_and_layers_of_a_split(
    studies: Studies, seeds: int
) -> None:
    values = np.random.default_rng(8).normal(size=(seeds, 3, 3)) + 0.8 * np.arange(3)[:, None]
    for seed, (number, norm) in itertools.product(
        range(seeds), enumerate(("none", "batchnorm", "layernorm"))
    ):
        own = values[seed, number]
        layers = {"silhouette": own.tolist(), "unit_sparsity": (own**3).tolist()}
        studies.add(norm, seed, layers=layers)
    table = compute_effects(load(studies.folder))
    layers = table[table["place_index"] > 0]
    assert set(layers["family"]) == {2 * 2 * 3}
    differences = [
        np.hstack([values[:, at] - values[:, 0], values[:, at] ** 3 - values[:, 0] ** 3])
        for at in (1, 2)
    ]
    if seeds < 6:
        expected = holm(np.concatenate([paired_test(part).p for part in differences]))
    else:
        expected = np.concatenate(max_t_adjusted(differences))
    assert layers["p_adjusted"].to_numpy() == pytest.approx(expected)
    assert (layers["p_adjusted"] >= layers["p"]).all()
    whole = table[table["place_index"] == 0]  # the same accuracy in all runs
    assert set(whole["family"]) == ({0} if seeds < 6 else {2 * 2})


def test_numbers_of_callbacks_are_families_of_their_own(studies: Studies) -> None:
    values = np.random.default_rng(3).normal(size=(6, 2, 4))
    for seed, (number, norm) in itertools.product(range(6), enumerate(("none", "batchnorm"))):
        first, second, third, fourth = values[seed, number].tolist()
        studies.add(
            norm,
            seed,
            accuracy=first,
            layers={"silhouette": [second, third], "gradient_norm": [third, fourth]},
            curves={
                ("hessian_eigenvalue_1", "train"): [fourth] * 6,
                ("hessian_trace_error", "train"): [second] * 6,
            },
        )
    analysis = Analysis(load(studies.folder))
    families = analysis.overall_effects.groupby("metric")["family"].unique().map(list)
    assert families.to_dict() == {
        "accuracy": [2],  # of train and test
        "silhouette": [2],  # two layers
        "gradient_norm": [2],
        "hessian_eigenvalue_1": [1],  # the standard error is not compared
    }
    text = "\n".join(compose_verdict(analysis))
    assert "of the 2 differences between" in text


def test_comparisons_with_few_pairs_are_tested_by_students_t_among_others(studies: Studies) -> None:
    generator = np.random.default_rng(9)
    for seed, norm in itertools.product(range(8), ("none", "batchnorm")):
        few, many = generator.normal(size=2) + 3 * (norm == "batchnorm")
        layers = {"silhouette": [few if seed < 4 else math.nan, many]}
        studies.add(norm, seed, layers=layers)
    table = compute_effects(load(studies.folder)).set_index("place")
    assert table.loc[["block01", "block02"], "test"].tolist() == ["Student's t", "sign flips"]
    assert table.loc["block01", "p_adjusted"] >= max(table.loc["block01", "p"], 2**-3)
    assert table.loc["block02", "p_adjusted"] == table.loc["block02", "p"] == 2**-7


@pytest.mark.parametrize("recorded", [np.float32, np.float64])
def test_equal_differences_of_accuracies_are_ties(studies: Studies, recorded: type) -> None:
    for seed, counts in enumerate([(972, 970), (981, 979), (975, 973), (969, 967)]):
        for norm, count in zip(("batchnorm", "none"), counts, strict=True):
            studies.add(norm, seed, accuracy=float(recorded(count / 1000)))
    table = compute_effects(load(studies.folder))
    row = table[(table["metric"] == "accuracy") & (table["split"] == "test")].iloc[0]
    assert row["difference"] == pytest.approx(0.002, abs=1e-7)
    assert row["rank_biserial"] == 1
    assert row[["cohens_d", "low", "high", "p"]].isna().all()  # no spread can be estimated


def test_diverged_and_missing_runs_are_counted(studies: Studies) -> None:
    for seed in range(5):
        for norm in ("none", "batchnorm"):
            diverged = (norm, seed) == ("none", 4)
            value = math.nan if diverged else 0.1 * seed
            status = "diverged" if diverged else "completed"
            studies.add(norm, seed, layers={"silhouette": [value]}, status=status)
    studies.add("batchnorm", 5, layers={"silhouette": [0.5]})
    study = load(studies.folder)
    row = compute_effects(study).set_index("metric").loc["silhouette"]
    assert (row["n"], row["undefined"], row["diverged"]) == (4, 1, 1)
    own = compute_averages(study).set_index(["metric", "treatment"])[["n", "undefined", "diverged"]]
    assert own.loc["silhouette", "none"].tolist() == [4, 1, 1]
    assert own.loc["silhouette", "batchnorm"].tolist() == [6, 0, 0]
    assert compute_effects(study).set_index("metric").loc["silhouette", "diverged"] == 1
    curve = compute_effects_over_time(study).set_index("metric").loc["silhouette"]
    assert (curve["n"], curve["undefined"], curve["diverged"]) == (4, 1, 1)
    assert compute_effects(study).set_index("metric").loc["accuracy", "n"].tolist() == [5, 5]
    assert match_pairs(study, "batchnorm", "none").unpaired == 1


def test_a_pair_whose_runs_both_have_no_value_is_counted(studies: Studies) -> None:
    for seed in range(4):
        value, status = (math.nan, "diverged") if seed == 3 else (0.1 * seed, "completed")
        studies.add("none", seed, layers={"silhouette": [value]}, status=status)
        studies.add("batchnorm", seed, layers={"silhouette": [2 * value]}, status=status)
    row = compute_effects(load(studies.folder)).set_index("metric").loc["silhouette"]
    assert (row["n"], row["undefined"], row["diverged"]) == (3, 1, 1)


def test_a_treatment_without_any_value_has_averages_of_no_run(studies: Studies) -> None:
    for seed in range(3):
        studies.add("batchnorm", seed, layers={"silhouette": [0.1]})
        studies.add("none", seed, layers={"silhouette": [math.nan]}, status="diverged")
    own = compute_averages(load(studies.folder)).set_index(["metric", "treatment"])
    assert own.loc[("silhouette", "none"), ["n", "undefined", "diverged"]].tolist() == [0, 3, 3]
    assert math.isnan(own.loc[("silhouette", "none"), "mean"])


def test_unpaired_treatments_have_no_effects(studies: Studies) -> None:
    studies.add("none", 0)
    studies.add("batchnorm", 1)
    assert compute_effects(load(studies.folder)).empty


def test_averages_are_over_runs(studies: Studies) -> None:
    for seed, value in enumerate((0.1, 0.2, 0.6)):
        studies.add("none", seed, layers={"silhouette": [value]})
    row = compute_averages(load(studies.folder)).set_index("metric").loc["silhouette"]
    assert (row["n"], row["treatment"]) == (3, "none")
    assert row["mean"] == pytest.approx(0.3)
    assert row["sd"] == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1))


def test_curves_have_an_interval_at_each_epoch(studies: Studies) -> None:
    values = drawn(4, 2, 2)
    for seed, (norm, name) in itertools.product(SEEDS, enumerate(("none", "batchnorm"))):
        layers = {("silhouette", 5 * at): [values[seed, norm, at]] for at in (0, 1)}
        studies.add(name, seed, layers=layers)
    table = compute_effects_over_time(load(studies.folder))
    table = table[table["metric"] == "silhouette"].set_index("epoch")
    assert table.index.tolist() == [0, 5]
    for at in (0, 1):
        expected = stats.ttest_rel(values[:, 1, at], values[:, 0, at]).confidence_interval(0.95)
        assert table.loc[5 * at, ["low", "high"]].tolist() == pytest.approx(list(expected))


@pytest.mark.slow
def test_factors_are_the_analysis_of_variance_of_statsmodels(studies: Studies) -> None:
    generator = np.random.default_rng(7)
    rows = []
    for seed, depth, width in itertools.product(SEEDS, (2, 4), (4, 8)):
        difference = generator.normal() + 2 * (depth == 4)
        for norm in ("none", "batchnorm"):
            accuracy = 0.5 + 0.01 * difference * (norm == "batchnorm")
            words = (f"model.depth={depth}", f"model.width={width}")
            studies.add(norm, seed, *words, accuracy=accuracy)
        rows.append({"depth": depth, "width": width, "y": difference})
    found = compute_factors(load(studies.folder))
    found = found[(found["metric"] == "accuracy") & (found["split"] == "test")].set_index("term")
    expected = anova_lm(ols("y ~ C(depth) * C(width)", pd.DataFrame(rows)).fit(), typ=2)
    for term, name in (
        ("treatment x depth", "C(depth)"),
        ("treatment x width", "C(width)"),
        ("treatment x depth x width", "C(depth):C(width)"),
    ):
        assert found.loc[term, "f"] == pytest.approx(expected.loc[name, "F"])
        assert found.loc[term, "df"] == expected.loc[name, "df"]
        assert found.loc[term, "p"] == pytest.approx(expected.loc[name, "PR(>F)"], abs=0.08)
    assert found.loc["treatment x depth", "p"] < 0.01


def test_factors_need_a_second_seed(studies: Studies) -> None:
    planted(studies, effect=0.5, seeds=1)
    found = compute_factors(load(studies.folder))
    assert found.empty
