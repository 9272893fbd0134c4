"""Inference from differences: against SciPy, by brute force, by property and by simulation."""

import importlib
import importlib.util
import itertools
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from bnstudy.study import inference
from bnstudy.study.inference import (
    cohens_d,
    estimate_noise,
    holm,
    max_t_adjusted,
    measured_differences,
    paired_test,
    rank_biserial,
    spread,
)
from bnstudy.study.inference.paired import NUM_FLIPS, ROUNDING

LEVEL = 0.05


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape)


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


def brute_force_p(differences: np.ndarray, rounding: float = 1e-9) -> float:
    """p of the sign-flip test, one flip at a time; sums that differ by less are equal."""
    observed = abs(differences.sum())
    sums = [
        abs((differences * signs).sum())
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return float(np.mean([one >= observed - rounding for one in sums]))


def test_each_public_function_has_an_example() -> None:
    functions = [getattr(inference, name) for name in inference.__all__ if name[0].islower()]
    assert [one.__name__ for one in functions if ">>>" not in one.__doc__] == []


# ---- The test and its interval


@pytest.mark.parametrize("n", [6, 7, 10])
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
    found = paired_test(differences)
    assert found.p == pytest.approx(expected.pvalue)
    assert set(found.test) == {"sign flips"}


@pytest.mark.parametrize("n", [6, 8, 9])
def test_the_interval_holds_what_the_same_test_does_not_reject(n: int) -> None:
    differences = drawn(n, 1) + 0.3
    found = paired_test(differences)
    differences, margin = differences[:, 0], 1e-6
    for end, outwards in ((found.low[0], -margin), (found.high[0], margin)):
        assert brute_force_p(differences - end) > LEVEL
        assert brute_force_p(differences - (end - outwards)) > LEVEL
        assert brute_force_p(differences - (end + outwards)) <= LEVEL


multiples = st.integers(-3, 3).map(lambda number: number / 10)
few_values = st.lists(multiples, min_size=3, max_size=11)
any_values = st.lists(
    st.one_of(multiples, st.floats(-1e6, 1e6, allow_subnormal=False), st.just(float("nan"))),
    min_size=3,
    max_size=11,
)


@given(st.one_of(few_values, any_values))
@example([0, 0, 0, 0, 122071.0, 6.1e-05])  # the smallest value still breaks the ties
@example([0, 0, 0, 0, 250002.0, 1e-06])
@example([0, 0, 0, 0, 1.0, 4e-13])  # and here it does not
@settings(max_examples=100, deadline=None)
def test_interval_and_p_are_on_the_same_side_of_5_percent(values: list[float]) -> None:
    found = paired_test(column(*values))
    known = [value for value in values if not np.isnan(value)]
    if np.isnan(found.p[0]):
        assert len(known) < 3 or (len(known) < 6 and len(set(known)) == 1)
        assert np.isnan([found.low[0], found.high[0]]).all()
        return
    leaves_out_0 = found.low[0] > 0 or found.high[0] < 0
    assert leaves_out_0 == (found.p[0] <= LEVEL)
    rounding = 1e-9 * max(map(abs, known))
    assert found.low[0] - rounding <= found.difference[0] <= found.high[0] + rounding
    if len(known) >= 6:
        scaled = np.array(known) / (max(map(abs, known)) or 1)
        assert brute_force_p(scaled, 0.99 * ROUNDING) <= found.p[0]
        assert found.p[0] <= brute_force_p(scaled, 1.01 * ROUNDING)


@given(few_values.filter(lambda values: len(values) >= 6))
@settings(max_examples=40, deadline=None)
def test_ties_count_as_extreme(values: list[float]) -> None:
    whole = np.array(values) * 10
    assert paired_test(column(*values)).p[0] == brute_force_p(whole.round())


@pytest.mark.parametrize("n", [3, 4, 5])
def test_few_pairs_are_tested_by_students_t(n: int) -> None:
    differences = drawn(n, 4)
    expected = stats.ttest_1samp(differences, 0)
    interval = expected.confidence_interval(0.95)
    found = paired_test(differences)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.low == pytest.approx(interval.low)
    assert found.high == pytest.approx(interval.high)
    assert set(found.test) == {"Student's t"}
    assert np.isnan(found.smallest_p).all()


def test_two_pairs_are_not_tested() -> None:
    found = paired_test(drawn(2, 3))
    assert found.difference == pytest.approx(drawn(2, 3).mean(axis=0))
    assert np.isnan([found.low, found.high, found.p, found.smallest_p]).all()
    assert set(found.test) == {""}


def test_flips_at_random_agree_with_the_t_test_of_many_pairs() -> None:
    differences = drawn(200, 5) + np.array([0, 0.05, 0.1, 0.2, 1])
    expected = stats.ttest_1samp(differences, 0)
    interval = expected.confidence_interval(0.95)
    found = paired_test(differences)
    assert found.p[:4] == pytest.approx(expected.pvalue[:4], rel=0.25)
    assert found.p[4] == 1 / NUM_FLIPS  # the smallest there can be
    assert found.low == pytest.approx(interval.low, abs=0.01)
    assert found.high == pytest.approx(interval.high, abs=0.01)


@pytest.mark.parametrize(("n", "smallest"), [(6, 2**-5), (16, 2**-15), (17, 1 / NUM_FLIPS)])
def test_the_smallest_p_is_that_of_one_flip(n: int, smallest: float) -> None:
    found = paired_test(np.ones((n, 1)))
    assert found.p == found.smallest_p == pytest.approx(smallest)


def test_equal_differences_have_an_interval_without_width_or_none() -> None:
    found = paired_test(np.stack([np.full(8, -0.002), np.zeros(8)], axis=1))
    assert found.p.tolist() == [2**-7, 1]
    assert found.low == pytest.approx([-0.002, 0])
    assert found.high == pytest.approx([-0.002, 0])
    few = paired_test(np.stack([np.full(4, -0.002), np.zeros(4)], axis=1))
    assert np.isnan([few.p, few.low, few.high]).all()  # no spread can be estimated


@pytest.mark.parametrize("n", [5, 9, 20])
def test_a_pair_without_a_value_is_left_out_of_that_comparison_alone(n: int) -> None:
    differences = drawn(n, 2)
    differences[3, 0] = np.nan
    without = np.delete(differences, 3, axis=0)
    for function in (lambda x: np.stack(paired_test(x)[:5]), cohens_d, rank_biserial):
        found = function(differences)
        random = n > 16  # other flips are drawn for other pairs
        tolerance = {"rel": 0.1, "abs": 0.02} if random else {"rel": 1e-9}
        assert found[..., 0] == pytest.approx(function(without)[..., 0], **tolerance)
        assert found[..., 1] == pytest.approx(function(differences[:, 1:])[..., 0])


# ---- Adjusted p


def brute_force_adjusted(differences: np.ndarray) -> np.ndarray:
    """Step-down max-T over all sign flips, one comparison at a time."""
    scale = np.sqrt((differences**2).sum(axis=0))
    signs = np.array(list(itertools.product((1, -1), repeat=len(differences))))
    observed, flipped = abs(differences.sum(axis=0)) / scale, abs(signs @ differences) / scale
    order, adjusted, largest = np.argsort(-observed), np.empty(len(observed)), 0.0
    for place, number in enumerate(order):
        maxima = flipped[:, order[place:]].max(axis=1)
        largest = max(largest, (maxima >= observed[number] - 1e-9).mean())
        adjusted[number] = largest
    return adjusted


@pytest.mark.parametrize("decimals", [1, 9])
def test_max_t_is_the_textbooks(decimals: int) -> None:
    differences = (drawn(7, 6) + np.linspace(0, 1.5, 6)).round(decimals)
    (found,) = max_t_adjusted([differences])
    assert found == pytest.approx(brute_force_adjusted(differences))


def test_the_smallest_adjusted_p_does_not_depend_on_how_many_tests_there_are() -> None:
    differences = drawn(8, 300)
    differences[:, 0] = np.linspace(1, 1.1, 8)
    (found,) = max_t_adjusted([differences])
    assert found[0] == 2**-7
    assert (found[1:] > LEVEL).all()


def test_a_single_test_needs_no_adjustment() -> None:
    differences = drawn(9, 1) + 0.4
    assert max_t_adjusted([differences])[0] == pytest.approx(paired_test(differences).p)


def test_pairs_flip_together_in_all_parts() -> None:
    whole = drawn(8, 4) + 0.5
    (expected,) = max_t_adjusted([whole])
    order = np.array([3, 1, 0, 2, 7, 5, 6, 4])
    identities = np.arange(8) + 40
    parts = max_t_adjusted([whole[:, :2], whole[order, 2:]], [identities, identities[order]])
    assert np.concatenate(parts) == pytest.approx(expected)


def test_adjusted_p_counts_pairs_without_a_value_as_0() -> None:
    differences = drawn(8, 3) + 0.5
    differences[2:5, 0] = np.nan
    differences[:, 1] = np.nan
    (found,) = max_t_adjusted([differences])
    assert np.isnan(found[1])
    filled = np.nan_to_num(differences[:, [0, 2]])
    assert found[[0, 2]] == pytest.approx(brute_force_adjusted(filled))


def test_holm_is_by_hand() -> None:
    p = np.random.default_rng(0).uniform(size=12)
    order = np.argsort(p)
    by_hand = np.minimum(1, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
    assert holm(p)[order] == pytest.approx(by_hand)


# ---- Ties


RIGHT = np.array([[972, 970], [981, 979], [975, 973], [969, 967]])


@pytest.mark.parametrize("recorded", [np.float32, np.float64])
def test_equal_differences_of_counts_are_equal(recorded: type) -> None:
    accuracy = (RIGHT / 1000).astype(recorded).astype(float)
    differences = measured_differences(accuracy[:, :1], accuracy[:, 1:])
    assert len(np.unique(differences)) == 1
    assert differences[0, 0] == pytest.approx(0.002, abs=1e-7)
    assert spread(differences)[0] == 0
    assert np.isnan(cohens_d(differences)[0])
    assert rank_biserial(differences)[0] == 1


@pytest.mark.parametrize("samples", [1_000, 4_097, 50_000])
@pytest.mark.parametrize("recorded", [np.float32, np.float64])
def test_effect_sizes_of_accuracies_are_those_of_counts(recorded: type, samples: int) -> None:
    generator = np.random.default_rng(samples)
    counts = generator.integers(samples - 20, samples + 1, size=(2, 8, 300))
    accuracy = (counts / samples).astype(recorded).astype(float)
    differences = measured_differences(*accuracy)
    exact = (counts[0] - counts[1]).astype(float)
    assert (np.sign(differences) == np.sign(exact)).all()
    np.testing.assert_array_equal(rank_biserial(differences), rank_biserial(exact))
    for one, expected in zip(exact.T, rank_biserial(exact), strict=True):
        nonzero = one[one != 0]
        ranks = stats.rankdata(abs(nonzero))
        assert expected == pytest.approx((ranks * np.sign(nonzero)).sum() / ranks.sum())
    found = paired_test(differences, noise=estimate_noise(*accuracy))
    np.testing.assert_array_equal(found.p, paired_test(exact).p)  # 3 + 5 - 8 is 0
    np.testing.assert_allclose(cohens_d(differences), cohens_d(exact), atol=1e-3)


def test_differences_that_are_resolved_stay_as_they_are() -> None:
    ours, theirs = drawn(2, 500, 3)
    np.testing.assert_array_equal(measured_differences(ours, theirs), ours - theirs)


def test_dense_differences_move_by_less_than_the_resolution() -> None:
    theirs = np.full((2_000, 1), 100.0)
    ours = theirs + np.random.default_rng(0).uniform(-1e-4, 1e-4, size=theirs.shape)
    moved = measured_differences(ours, theirs) - (ours - theirs)
    assert abs(moved).max() <= 2**-22 * 101


def test_differences_of_values_that_are_not_finite_are_nan() -> None:
    ours = column(np.nan, np.inf, 1.0, 3.0)
    found = measured_differences(ours, column(1.0, np.inf, -np.inf, 1.0))
    np.testing.assert_array_equal(found, column(np.nan, np.nan, np.nan, 2.0))


# ---- Effect sizes


def test_effect_sizes_are_as_defined() -> None:
    differences = drawn(12, 1) + 0.3
    values = differences[:, 0]
    assert cohens_d(differences) == pytest.approx(values.mean() / values.std(ddof=1))
    both = values.size * (values.size + 1) / 2
    wilcoxon = stats.wilcoxon(values, alternative="greater").statistic  # the positive ranks' sum
    assert rank_biserial(differences) == pytest.approx((2 * wilcoxon - both) / both)


def test_pairs_without_a_difference_have_no_rank() -> None:
    assert rank_biserial(column(0.0, 0.2, 0.1)) == 1
    assert np.isnan(rank_biserial(np.zeros((3, 1))))


# ---- Simulation


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """benchmarks/inference.py"""
    path = Path(__file__).parents[3] / "benchmarks" / "inference.py"
    spec = importlib.util.spec_from_file_location("benchmarks_inference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("normal", 4),
        *[("normal", n) for n in (6, 8, 12)],
        *[("Student's t, 3 degrees of freedom", n) for n in (6, 8, 12)],
        *[("normal, rounded to half a standard deviation", n) for n in (6, 8, 12)],
    ],
)
def test_the_interval_covers_the_mean(benchmark: ModuleType, name: str, n: int) -> None:
    found = benchmark.coverage(name, n, 4_000, np.random.default_rng(n))
    assert found["disagreements"] == 0
    margin = 3 * np.sqrt(0.05 * 0.95 / 4_000)
    assert 0.93 - margin <= found["coverage"] <= 0.97 + margin


@pytest.mark.slow
@pytest.mark.parametrize("n", [4, 6, 8])
@pytest.mark.parametrize("name", ["normal", "exponential"])
def test_the_family_wise_error_is_at_most_5_percent(
    benchmark: ModuleType, name: str, n: int
) -> None:
    found = benchmark.family_wise_error(name, n, 4_000, np.random.default_rng(n))
    assert found <= 0.055 + 3 * np.sqrt(0.05 * 0.95 / 4_000)
