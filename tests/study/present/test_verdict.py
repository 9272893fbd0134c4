"""Sentences of the verdict, for studies with known numbers."""

import itertools
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from bnstudy.study.analysis import Analysis
from bnstudy.study.confounders import describe_confounders
from bnstudy.study.generalization import compute_mediation
from bnstudy.study.load.matrix import load_shared_columns
from bnstudy.study.present.labels import name_layer
from bnstudy.study.present.verdict import compose_verdict
from bnstudy.study.present.verdict.comparison import describe_adjustment
from bnstudy.study.present.verdict.explanation import describe_association
from bnstudy.study.present.verdict.wording import format_place
from bnstudy.study.study import load
from tests.study.studies import Studies


def verdict(studies: Studies) -> str:
    return "\n".join(compose_verdict(Analysis(load(studies.folder))))


def add_pairs(studies: Studies, seeds: int, effect: float) -> None:
    generator = np.random.default_rng(2)
    for seed, norm in itertools.product(range(seeds), ("none", "batchnorm")):
        values = 0.5 + 0.01 * generator.normal(size=2)
        values[1] += effect * (norm == "batchnorm")
        accuracy = 0.8 + 0.01 * generator.normal()
        studies.add(norm, seed, layers={"unit_sparsity": values.tolist()}, accuracy=accuracy)


def test_four_pairs_assume_normal_differences(studies: Studies) -> None:
    add_pairs(studies, seeds=4, effect=-0.3)
    text = verdict(studies)
    assert "in 4 pairs of runs (4 seeds). The two runs of a pair differ only in the norm." in text
    assert "With only 4 pairs, intervals and p-values come from Student's t-test, which" in text
    assert "An exact test needs at least 6 pairs: add 2 seeds for each treatment." in text
    assert (
        "Without adjustment for multiple tests, unit_sparsity is lower with BatchNorm in 1 of 2 "
        "layers (block02). " in text
    )
    assert (
        "Estimated probability that a run with BatchNorm has a higher test accuracy than one with "
        "no normalization: 0." in text
    )
    assert text.count(", Student's t.") == 2  # accuracy, and the layer
    assert "too few pairs for a mediation analysis, which needs at least 6 pairs" in text


def test_without_sparsity_or_clustering_there_is_no_mediation_whatever_the_pairs(
    studies: Studies,
) -> None:
    for seed, norm in itertools.product(range(8), ("none", "batchnorm")):
        studies.add(norm, seed, layers={"nc1": [seed / 10]}, accuracy=0.8 + seed / 100)
    text = verdict(studies)
    assert "too few pairs" not in text
    assert (
        "There is no mediation analysis, because no metric of sparsity or clustering was measured "
        "in the layers of the training split." in text
    )


def test_six_pairs_are_enough_for_an_exact_test(studies: Studies) -> None:
    add_pairs(studies, seeds=6, effect=-0.3)
    text = verdict(studies)
    assert "Student" not in text
    assert "After adjustment for 2 tests, this difference remains significant." in text
    assert "6 pairs, p = 0.0312, adjusted p = 0.0312 (2 tests)." in text
    assert "The smallest p that they can give with 6 pairs is 0.0312." in text
    assert (
        "After adjustment for 2 tests (all metrics and layers of the train split), 1 of the 2 "
        "differences between BatchNorm and no normalization is significant." in text
    )


def test_the_smallest_p_is_that_of_the_named_number_of_pairs(studies: Studies) -> None:
    generator = np.random.default_rng(0)
    for seed, norm in itertools.product(range(20), ("none", "batchnorm")):
        value = generator.normal() if seed < 16 else float("nan")  # 16 pairs: p from 2^16 flips
        layers = {"silhouette": [value]}
        studies.add(norm, seed, layers=layers, accuracy=generator.uniform(), status="completed")
    assert "The smallest p that they can give with 20 pairs is 0.000122." in verdict(studies)


def test_pairs_without_a_value_may_leave_too_few_for_an_exact_test(studies: Studies) -> None:
    generator = np.random.default_rng(3)
    for seed, norm in itertools.product(range(7), ("none", "batchnorm")):
        diverged = norm == "none" and seed > 3
        value = float("nan") if diverged else generator.normal()
        status = "diverged" if diverged else "completed"
        accuracy = 0.1 if diverged else generator.uniform()
        layers = {"silhouette": [value]}
        studies.add(norm, seed, layers=layers, accuracy=accuracy, status=status)
    text = verdict(studies)
    assert "4 pairs (3 more without a value), p = " in text
    assert (
        "Where fewer than 6 pairs have a value, intervals and p-values come from Student's" in text
    )


@pytest.mark.parametrize(("seeds", "more"), [(1, "5 seeds"), (2, "4 seeds")])
def test_one_or_two_pairs_support_no_claim(studies: Studies, seeds: int, more: str) -> None:
    add_pairs(studies, seeds, effect=-0.3)
    text = verdict(studies)
    assert "values are shown but not tested" in text
    assert f"at least 6 pairs: add {more} for each treatment" in text
    assert "The difference in unit_sparsity ranges from -0." in text
    assert "Rank correlations of metrics with test accuracy need at least 5 runs" in text
    for claim in ("p =", "[", "higher", "lower", "the same way", "Kendall", "significant"):
        assert claim not in text


def test_no_effect_is_reported_as_not_significant(studies: Studies) -> None:
    add_pairs(studies, seeds=10, effect=0)
    text = verdict(studies)
    assert "unit_sparsity does not differ significantly in any of the 2 layers" in text
    assert "the interval of every total effect contains 0" in text


def test_a_single_layer_is_named(studies: Studies) -> None:
    for seed, norm in itertools.product(range(4), ("none", "batchnorm")):
        value = 0.5 + 0.01 * ((seed + (norm == "none")) % 2)
        studies.add(norm, seed, layers={"unit_sparsity": [value]}, accuracy=0.8)
    assert "unit_sparsity does not differ significantly in block01. The" in verdict(studies)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 4, 8])
@pytest.mark.parametrize("lost", ["all", "all but one", "a metric"])
def test_values_that_are_not_finite_appear_in_no_sentence(
    studies: Studies, seeds: int, lost: str
) -> None:
    for seed, norm in itertools.product(range(seeds), ("none", "batchnorm")):
        diverged = norm == "none" and (lost == "all" or (lost == "all but one" and seed > 0))
        value = float("nan") if diverged else 0.1 * seed + 0.01 * (norm == "none")
        silhouette = float("nan") if lost == "a metric" else value
        studies.add(
            norm,
            seed,
            layers={"unit_sparsity": [value], "silhouette": [silhouette]},
            accuracy=value,
            status="diverged" if diverged else "completed",
        )
    text = verdict(studies)
    assert not re.search(r"\b(nan|inf)\b", text, re.IGNORECASE)
    if lost == "all":
        assert "Test accuracy cannot be compared: no pair has a value in both" in text
    if lost in ("all", "a metric"):
        assert "silhouette cannot be compared: no pair has a value in both" in text


@pytest.mark.slow
def test_sentences_about_layers_are_about_their_activations(studies: Studies) -> None:
    others = Studies(studies.compose, studies.folder.parent / "without_features")
    for seed, norm in itertools.product(range(12), ("none", "batchnorm")):
        change = (norm == "batchnorm") * (1 + (seed % 3 - 1) * 0.1)  # varies a little, by pair
        layers = {"silhouette": [0.1 * change + 0.01 * seed, 0.01 * seed]}
        features = {"silhouette": -0.9 * change - 0.02 * seed}
        accuracy = 0.8 + 0.05 * change + 0.001 * seed
        studies.add(norm, seed, layers=layers, features=features, accuracy=accuracy)
        others.add(norm, seed, layers=layers, accuracy=accuracy)
    study, other = load(studies.folder), load(others.folder)
    keys = load_shared_columns(study)[0]
    places = keys.loc[keys["metric"] == "silhouette", "place"].tolist()
    assert places == ["block01", "block02", "classifier.features"]
    text = verdict(studies)
    assert (
        "Without adjustment for multiple tests, silhouette is higher with BatchNorm in 1 of 2 "
        "layers (block01)" in text
    )
    assert "over 24 runs, the granulated Kendall coefficient of silhouette with test" in text
    assert "2 of the 3 differences between BatchNorm and no normalization are significant" in text
    assert len(compute_mediation(study)) == 2
    pd.testing.assert_frame_equal(compute_mediation(study), compute_mediation(other))
    drawn = study.plot.layers("silhouette").axes[0].get_xticklabels()
    assert [label.get_text() for label in drawn] == ["block 1", "block 2"]


@pytest.mark.slow
def test_other_differences_than_the_norm_are_named(studies: Studies) -> None:
    for seed in range(3):
        studies.add("none", seed, "optim.lr=0.01", layers={"silhouette": [0.1 * seed]})
        for norm, rate, position in (("batchnorm", 0.1, "pre"), ("layernorm", 0.01, "post")):
            words = (f"optim.lr={rate}", f"norm.position={position}")
            studies.add(norm, seed, *words, layers={"silhouette": [0.3 * seed + rate]})
    text = verdict(studies)
    assert (
        "BatchNorm is compared with no normalization in 3 pairs of runs (3 seeds). Besides the "
        "norm, the runs of a pair differ in learning rate (0.1 with BatchNorm, 0.01 with no "
        "normalization)." in text
    )
    assert (
        "LayerNorm is compared with no normalization in 3 pairs of runs (3 seeds). The two runs of "
        "a pair differ only in the norm." in text
    )
    study = load(studies.folder)
    assert describe_confounders(study, "layernorm", "batchnorm") == (
        "learning rate (0.01 with LayerNorm, 0.1 with BatchNorm) and "
        "norm.position (post with LayerNorm, pre with BatchNorm)"
    )


def test_a_difference_in_some_pairs_is_named_with_their_number(studies: Studies) -> None:
    for seed in range(3):
        studies.add("none", seed, layers={"silhouette": [0.1 * seed]})
        words = ("trainer.accelerator=gpu",) if seed == 2 else ()
        studies.add("batchnorm", seed, *words, layers={"silhouette": [0.3 * seed + 1]})
    expected = (
        "trainer.accelerator (gpu with BatchNorm, auto with no normalization; in 1 of 3 pairs)"
    )
    assert describe_confounders(load(studies.folder), "batchnorm", "none") == expected
    assert f"Besides the norm, the runs of a pair differ in {expected}." in verdict(studies)


@pytest.mark.parametrize(
    ("changed", "norm", "override"),
    [
        ("options of the norm", "batchnorm", "norm.momentum=0.5"),
        ("regularizer", "batchnorm", "regularizer=activation_l1"),
        ("norm and regularizer", "none", "regularizer=activation_l1"),
    ],
)
def test_what_distinguishes_two_treatments_is_named(
    studies: Studies, changed: str, norm: str, override: str
) -> None:
    for seed in range(3):
        layers = {"silhouette": [0.1 * seed]}
        studies.add("batchnorm", seed, "norm.momentum=0.1", layers=layers)
        layers = {"silhouette": [0.2 * seed + 0.1]}
        studies.add(norm, seed, override, layers=layers)
    assert f"The two runs of a pair differ only in the {changed}." in verdict(studies)


def test_the_largest_difference_that_is_not_excluded_has_a_sign(studies: Studies) -> None:
    for seed, difference in enumerate((-0.3, -0.2, 0.1, -0.1, 0.05, -0.25, -0.15, 0.02)):
        studies.add("none", seed, layers={"silhouette": [0.1]})
        studies.add("batchnorm", seed, layers={"silhouette": [0.1 + difference]})
    row = Analysis(load(studies.folder)).overall_effects.set_index("metric").loc["silhouette"]
    assert row["low"] < 0 < row["high"] < -row["low"]
    assert (
        "these pairs do not exclude a difference in silhouette as large as "
        f"{row['low']:+.3g} (in block01)." in verdict(studies)
    )


def test_a_regularizer_of_another_strength_is_named(studies: Studies) -> None:
    for norm, strength in (("none", 0.1), ("batchnorm", 1)):
        words = ("regularizer=activation_l1", f"regularizer.strength={strength}")
        studies.add(norm, 0, *words, layers={"silhouette": [strength]})
    text = verdict(studies)
    assert (
        "in 1 pair of runs (1 seed). Besides the norm, the runs of a pair differ in "
        "regularizer.strength (0.1 with no normalization + activation_l1, 1 with BatchNorm + "
        "activation_l1)." in text
    )
    assert "probability" not in text  # of one pair


def test_runs_without_results_are_counted(studies: Studies) -> None:
    add_pairs(studies, seeds=2, effect=0)
    studies.add("none", 2, status="diverged")
    studies.add("batchnorm", 2, status="failed")
    text = verdict(studies)
    assert "6 runs: 4 completed, 1 diverged, 1 failed." in text
    assert "1 of 3 runs with no normalization diverged" in text
    assert "1 of 6 runs has no results and is left out." in text


def test_equal_differences_are_not_tested_and_the_reason_is_given(studies: Studies) -> None:
    for seed, right in enumerate((970, 979, 973, 967)):
        studies.add("none", seed, accuracy=right / 1000)
        studies.add("batchnorm", seed, accuracy=(right + 2) / 1000)
    assert "+0.002, 4 pairs, not tested because all differences are equal." in verdict(studies)


def test_values_without_spread_have_no_brackets(studies: Studies) -> None:
    for seed, right in enumerate((970, 979, 973, 967, 971, 975)):
        studies.add("none", seed, layers={"silhouette": [0.1]}, accuracy=right / 1000)
        layers = {"silhouette": [0.2 + seed / 100]}
        studies.add("batchnorm", seed, layers=layers, accuracy=(right + 20) / 1000)
    text = verdict(studies)
    assert (
        "The difference is +0.02 in every pair, 6 pairs, p = 0.0312, adjusted p = 0.0312 (2 "
        "tests). In these pairs, every run with BatchNorm has a higher test accuracy than every "
        "run with no normalization." in text
    )
    assert "(between runs with different norms) is +1.00 for every seed in block01." in text


def test_associations_of_identical_norms_are_over_the_grid(studies: Studies) -> None:
    for seed, rate, norm in itertools.product(range(3), (0.1, 0.01), ("none", "batchnorm")):
        value = 0.1 * seed + rate
        layers = {"silhouette": [value]}
        studies.add(norm, seed, f"optim.lr={rate}", layers=layers, accuracy=value, loss=value)
    text = verdict(studies)
    assert "The network probably ignores the norm." in text
    assert "Kendall coefficient of silhouette with test accuracy is +1.00 in block01." in text
    assert "differ only in the norm" not in text


def test_layers_with_equally_strong_associations_are_all_named(studies: Studies) -> None:
    for seed, norm in itertools.product(range(4), ("none", "batchnorm")):
        change = 1 if norm == "batchnorm" else 0
        silhouette = [-change, -2 * change, change if seed else -change, change]
        layers = {"silhouette": [0.01 * seed + 0.1 * value for value in silhouette]}
        studies.add(norm, seed, layers=layers, accuracy=0.8 + 0.1 * change + 0.001 * seed)
    assert (
        "Clustering and test accuracy: over 8 runs, the granulated Kendall coefficient of "
        "silhouette with test accuracy (between runs with different norms) is -1.00 for every "
        "seed in block01 and block02, +0.50 [-1.00, 1.00] in block03, +1.00 for every seed in "
        "block04. Kendall's tau over all runs is " in verdict(studies)
    )


def relation(number: int, granulated: float, tau: float, cmi: float) -> SimpleNamespace:
    nan = float("nan")
    ends = {"granulated_low": nan, "granulated_high": nan}
    place = {"place": f"block{number:02d}", "place_index": number, "layers": 7}
    coefficients = {"granulated": granulated, "tau": tau, "cmi": cmi, "cmi_null": 0.2}
    return SimpleNamespace(metric="nc1", n=8, axes=2, **place, **ends, **coefficients)


def test_of_many_layers_all_with_the_largest_coefficient_are_named() -> None:
    rows = [
        relation(number, granulated, tau=granulated / 2, cmi=0.1 * number)
        for number, granulated in enumerate((0.1, -0.8, 0.2, 0.8, 0.3, -0.7, -0.8), start=1)
    ]
    assert describe_association(rows, is_norm_axis=True) == (
        "over 8 runs, the granulated Kendall coefficient of nc1 with test accuracy is -0.80 in "
        "block02 and block07, +0.80 in block04, and smaller in absolute value in the other 4 "
        "layers. A coefficient without a confidence interval is from too few seeds, or the same "
        "for every seed. Kendall's tau over all runs is -0.40 in block02 and block07, +0.40 in "
        "block04. The conditional mutual information of nc1 and test accuracy exceeds the 95th "
        "percentile of its values for randomly permuted runs in 2 of these 3 layers (block04: "
        "0.400 > 0.200, block07: 0.700 > 0.200)."
    )


@pytest.mark.parametrize("remaining", [0, 1, 2, 3])
def test_differences_that_remain_significant_are_named(remaining: int) -> None:
    rows = [
        SimpleNamespace(
            place=f"block{number:02d}",
            family=60,
            p_adjusted=0.01 * number if number <= remaining else 0.3,
        )
        for number in (1, 2, 3)
    ]
    expected = (
        "none of these differences is significant",
        "only block01 remains significant (adjusted p = 0.01)",
        "only block01 and block02 remain significant (largest adjusted p = 0.02)",
        "all of these differences remain significant",
    )
    sentence = describe_adjustment(rows)
    assert sentence == f" After adjustment for 60 tests, {expected[remaining]}."


@pytest.mark.parametrize("norm", ["none", "batchnorm"])
def test_one_treatment_alone_is_compared_with_nothing(studies: Studies, norm: str) -> None:
    studies.add(norm, layers={"unit_sparsity": [0.1]})
    assert "There is nothing to compare" in verdict(studies)


def test_runs_without_partners_are_not_compared(studies: Studies) -> None:
    studies.add("none", 0)
    studies.add("batchnorm", 1)
    assert (
        "BatchNorm and no normalization are not compared, because they have no pair of runs."
        in verdict(studies)
    )


@pytest.mark.slow
def test_an_intervention_is_described(studies: Studies) -> None:
    for seed in range(3):
        studies.add("none", seed, layers={"unit_sparsity": [0.4]}, accuracy=0.8)
        layers = {"unit_sparsity": [0.6]}
        words = ("regularizer=activation_l1",)
        studies.add("none", seed, *words, layers=layers, accuracy=0.7 + 0.01 * seed)
    text = verdict(studies)
    assert (
        "Intervention: compared with no normalization, no normalization + activation_l1 changes "
        "unit_sparsity by +0.2" in text
    )
    assert "The difference in test accuracy is -0.09 [" in text


@pytest.mark.slow
def test_mediation_shares_are_described_as_associations(studies: Studies) -> None:
    generator = np.random.default_rng(3)
    for seed, norm in itertools.product(range(12), ("none", "batchnorm")):
        sparsity = 0.2 * (norm == "batchnorm") + 0.05 * generator.normal()
        accuracy = 0.8 + 0.1 * sparsity + 0.0001 * generator.normal()
        studies.add(norm, seed, layers={"unit_sparsity": [sparsity]}, accuracy=accuracy)
    text = verdict(studies)
    assert (
        "Mediation: the following shares describe associations; they are causal only under the "
        "assumptions of mediation analysis. With BatchNorm, test accuracy changes by +0.0" in text
    )
    assert (
        "The share of this change that is mediated by sparsity (unit_sparsity) is estimated as "
        in text
    )


def test_networks_of_different_depth_are_compared_at_relative_depths(studies: Studies) -> None:
    generator = np.random.default_rng(4)
    for seed, depth, norm in itertools.product(range(4), (2, 4), ("none", "batchnorm")):
        values = generator.normal(size=depth) + 9 * (norm == "batchnorm")
        layers = {"silhouette": values.tolist()}
        accuracy = generator.uniform()
        studies.add(norm, seed, f"model.depth={depth}", layers=layers, accuracy=accuracy)
    text = verdict(studies)
    assert (
        "Without adjustment for multiple tests, silhouette is higher with BatchNorm at 5 of 5 "
        "relative depths (depth " in text
    )
    assert "The largest difference is at depth " in text
    assert "with test accuracy is " in text


def test_layers_with_only_a_number_are_named() -> None:
    places = ("2", "block01", "depth 25 %")
    assert [name_layer(place) for place in places] == ["layer 2", "block01", "depth 25 %"]
    assert format_place(SimpleNamespace(place="2", layers=2)) == "in layer 2"
