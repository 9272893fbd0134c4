"""Statistics against SciPy, statsmodels and plain formulas, and on data with known effects."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from bnstudy.study.load import load
from bnstudy.study.statistics import (
    averages,
    cohens_d,
    curves,
    effects,
    factors,
    interval,
    pairs,
    rank_biserial,
    sign_flip,
    smallest_p,
)
from tests.study.studies import Studies

SEEDS = range(4)


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape)


# ---- Functions of differences


@pytest.mark.parametrize("n", [2, 4, 7, 10])
def test_sign_flips_are_scipys_permutation_test(n: int) -> None:
    differences = drawn(n, 3) + 0.5
    expected = stats.permutation_test(
        (differences, np.zeros_like(differences)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
        axis=0,
    )
    assert sign_flip(differences) == pytest.approx(expected.pvalue)


def test_the_exact_p_counts_ties() -> None:
    differences = np.array([[0.1], [0.1], [0.1], [-0.1]])
    sums = [abs(sum(signs)) for signs in itertools.product((1, -1), repeat=4)]
    assert sign_flip(differences) == sum(one >= 2 for one in sums) / 16


def test_flips_at_random_agree_with_the_t_test_of_many_pairs() -> None:
    differences = drawn(200, 5) + np.array([0, 0.05, 0.1, 0.2, 1])
    expected = stats.ttest_1samp(differences, 0).pvalue
    p = sign_flip(differences)
    assert p[:4] == pytest.approx(expected[:4], rel=0.25)
    assert p[4] == pytest.approx(1e-5)  # the smallest there can be


@pytest.mark.parametrize(("n", "smallest"), [(1, 1), (4, 0.125), (16, 2**-15), (17, 1e-5)])
def test_the_smallest_p(n: int, smallest: float) -> None:
    assert smallest_p(np.array([n])) == pytest.approx(smallest)
    if n <= 16:
        assert sign_flip(np.ones((n, 1))) == pytest.approx(smallest)


@pytest.mark.parametrize(("n", "expected"), [(5, 1 / 16), (40, 0.1)])  # 5 pairs: of 16 flips 1
def test_where_nothing_differs_p_is_as_often_small_as_it_should(n: int, expected: float) -> None:
    trials = 2_000
    share = (sign_flip(drawn(n, trials)) <= 0.1).mean()
    assert share == pytest.approx(expected, abs=4 * math.sqrt(0.1 * 0.9 / trials))


@pytest.mark.parametrize("n", [3, 5, 7])
def test_the_interval_of_few_pairs_is_students(n: int) -> None:
    differences = drawn(n, 4)
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    low, high = interval(differences)
    assert low == pytest.approx(expected.low)
    assert high == pytest.approx(expected.high)


def test_there_is_no_interval_of_two_pairs_or_without_variation() -> None:
    for differences in (drawn(2, 1), np.full((6, 1), 0.1), np.zeros((20, 1))):
        assert np.isnan(interval(differences)).all()


def test_the_bootstrap_is_the_textbooks() -> None:
    """Against the same by hand: one resample at a time."""
    sample = np.random.default_rng(2).exponential(size=12)
    generator = np.random.default_rng(3)
    t = []
    for _ in range(20_000):
        again = generator.choice(sample, size=12)
        t.append((again.mean() - sample.mean()) / (again.std(ddof=1) / math.sqrt(12)))
    error = sample.std(ddof=1) / math.sqrt(12)
    expected = sample.mean() - np.quantile(t, [0.975, 0.025]) * error
    low, high = interval(sample[:, None])
    assert [low[0], high[0]] == pytest.approx(expected, abs=0.15 * (expected[1] - expected[0]))


@pytest.mark.parametrize(
    ("grid", "name", "least", "most"),
    [
        ([4], "normal", 0.935, 0.97),
        ([8], "normal", 0.935, 0.97),
        ([20], "normal", 0.935, 0.97),
        ([20], "exponential", 0.92, 0.97),
        ([4, 4, 4, 4], "normal", 0.935, 0.97),  # 4 seeds at each point of a grid
        ([4, 4, 4, 4], "one point varies more", 0.935, 0.97),
        ([2, 2, 2, 2], "normal", 0.935, 0.99),  # is wider than need be
        ([2, 2, 2, 2], "one point varies more", 0.91, 0.97),
        ([1] * 10, "normal", 0.93, 0.97),
    ],
)
def test_the_interval_covers_the_mean_95_times_of_100(
    grid: list[int], name: str, least: float, most: float
) -> None:
    trials = 2_000
    generator = np.random.default_rng(4)
    points = np.repeat(np.arange(len(grid)), grid)
    draw = generator.exponential if name == "exponential" else generator.normal
    differences = draw(size=(len(points), trials))
    if name == "one point varies more":
        differences[points == 0] *= 10
    centre = 1.0 if name == "exponential" else 0.0
    if max(grid) > 1:  # the effect is each point's own, and their mean is meant
        differences += (points - points.mean())[:, None]
    low, high = interval(differences, points)
    covered = ((low <= centre) & (centre <= high)).mean()
    assert least <= covered <= most


def test_where_most_pairs_do_not_differ_at_all_the_interval_is_students() -> None:
    differences = np.zeros((16, 1))
    differences[:3, 0] = -0.2, -0.05, -0.01
    low, high = interval(differences)
    margin = stats.t.ppf(0.975, 15) * stats.sem(differences[:, 0])
    assert (low[0], high[0]) == pytest.approx(
        (differences.mean() - margin, differences.mean() + margin)
    )


def test_strata_take_the_differences_between_points_out() -> None:
    points = np.repeat([0, 1], 8)
    differences = drawn(16, 1) + 100 * points[:, None]
    low, high = interval(differences, points)
    assert high - low < 3
    low, high = interval(differences)
    assert high - low > 30


def test_a_pair_without_a_value_is_left_out_of_that_comparison_alone() -> None:
    differences = drawn(9, 2)
    differences[3, 0] = np.nan
    for function in (sign_flip, cohens_d, rank_biserial, lambda x: interval(x)[0]):
        found = function(differences)
        assert found[0] == pytest.approx(function(np.delete(differences, 3, axis=0))[0])
        assert found[1] == pytest.approx(function(differences[:, 1:])[0])


def test_effect_sizes_are_as_defined() -> None:
    differences = drawn(12, 1) + 0.3
    column = differences[:, 0]
    assert cohens_d(differences) == pytest.approx(column.mean() / column.std(ddof=1))
    both = column.size * (column.size + 1) / 2
    wilcoxon = stats.wilcoxon(column, alternative="greater").statistic  # the positive ranks' sum
    assert rank_biserial(differences) == pytest.approx((2 * wilcoxon - both) / both)


def test_pairs_without_a_difference_have_no_rank() -> None:
    assert rank_biserial(np.array([[0.0], [0.2], [0.1]])) == 1
    assert np.isnan(rank_biserial(np.zeros((3, 1))))


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


def test_a_planted_effect_is_found_where_it_is(studies: Studies) -> None:
    planted(studies, effect=0.5)
    table = effects(load(studies.folder))
    layers = table[table["metric"] == "silhouette"].set_index("place")
    last, first = layers.loc["depth 100 %"], layers.loc["depth 0 %"]
    assert last["difference"] == pytest.approx(0.5, abs=0.06)
    assert last["low"] < 0.5 < last["high"]
    assert last["p_holm"] == pytest.approx(5 * 2**-15)
    assert (last["n"], last["family"], last["rank_biserial"]) == (16, 5, 1)
    assert first["low"] < 0 < first["high"]
    assert first["p_holm"] > 0.05


def test_at_each_point_of_the_grid(studies: Studies) -> None:
    planted(studies, effect=0.5)
    table = effects(load(studies.folder), by=["depth"])
    layers = table[table["metric"] == "silhouette"].set_index(["depth", "place"])
    for depth in (2, 4):
        last = layers.loc[(depth, f"block0{depth}")]
        assert last["difference"] == pytest.approx(0.5, abs=0.1)
        assert last["n"] == 8


def test_four_pairs_can_prove_nothing(studies: Studies) -> None:
    for seed in SEEDS:
        studies.add("none", seed, layers={"silhouette": [0.1 + 0.001 * seed]})
        studies.add("batchnorm", seed, layers={"silhouette": [0.9]})
    table = effects(load(studies.folder)).set_index("metric")
    assert table.loc["silhouette", "p"] == table.loc["silhouette", "smallest_p"] == 0.125
    assert table.loc["silhouette", "difference"] == pytest.approx(0.7985)


def test_no_effect_is_found_where_none_was_planted(studies: Studies) -> None:
    generator = np.random.default_rng(6)
    for seed in range(8):
        for norm in ("none", "batchnorm"):
            values = generator.normal(size=100).tolist()
            studies.add(norm, seed, layers={"silhouette": values})
    table = effects(load(studies.folder))
    layers = table[table["metric"] == "silhouette"]
    assert (layers["p"] <= 0.05).mean() == pytest.approx(0.05, abs=0.08)
    assert (layers["p_holm"] > 0.05).all()


def test_holm_corrects_for_all_treatments_metrics_and_layers_of_a_split(studies: Studies) -> None:
    for seed in range(5):
        for norm in ("none", "batchnorm", "layernorm"):
            values = np.random.default_rng([seed, len(norm)]).normal(size=3).tolist()
            studies.add(norm, seed, layers={"silhouette": values, "unit_sparsity": values})
    table = effects(load(studies.folder))
    layers = table[table["place_index"] > 0]
    assert set(layers["family"]) == {2 * 2 * 3}
    p = layers["p"].to_numpy()
    order = np.argsort(p)
    by_hand = np.minimum(1, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
    assert layers["p_holm"].to_numpy()[order] == pytest.approx(by_hand)
    assert set(table.loc[table["place_index"] == 0, "family"]) == {2 * 2}


def test_diverged_and_missing_runs_are_counted(studies: Studies) -> None:
    for seed in range(5):
        for norm in ("none", "batchnorm"):
            diverged = (norm, seed) == ("none", 4)
            value = math.nan if diverged else 0.1 * seed
            status = "diverged" if diverged else "completed"
            studies.add(norm, seed, layers={"silhouette": [value]}, status=status)
    studies.add("batchnorm", 5)
    study = load(studies.folder)
    row = effects(study).set_index("metric").loc["silhouette"]
    assert (row["n"], row["undefined"], row["diverged"]) == (4, 1, 1)
    assert effects(study).set_index("metric").loc["accuracy", "n"].tolist() == [5, 5]
    assert pairs(study, "batchnorm", "none").unpaired == 1


def test_unpaired_treatments_have_no_effects(studies: Studies) -> None:
    studies.add("none", 0)
    studies.add("batchnorm", 1)
    assert effects(load(studies.folder)).empty


def test_averages_are_over_runs(studies: Studies) -> None:
    for seed, value in enumerate((0.1, 0.2, 0.6)):
        studies.add("none", seed, layers={"silhouette": [value]})
    row = averages(load(studies.folder)).set_index("metric").loc["silhouette"]
    assert (row["n"], row["treatment"]) == (3, "none")
    assert row["mean"] == pytest.approx(0.3)
    assert row["sd"] == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1))


def test_curves_are_students_intervals_at_each_epoch(studies: Studies) -> None:
    values = drawn(4, 2, 2)
    for seed, (norm, name) in itertools.product(SEEDS, enumerate(("none", "batchnorm"))):
        layers = {("silhouette", 5 * at): [values[seed, norm, at]] for at in (0, 1)}
        studies.add(name, seed, layers=layers)
    table = curves(load(studies.folder))
    table = table[table["metric"] == "silhouette"].set_index("epoch")
    assert table.index.tolist() == [0, 5]
    for at in (0, 1):
        expected = stats.ttest_rel(values[:, 1, at], values[:, 0, at]).confidence_interval(0.95)
        assert table.loc[5 * at, ["low", "high"]].tolist() == pytest.approx(list(expected))


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
    found = factors(load(studies.folder))
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
    found = factors(load(studies.folder))
    assert found.empty
