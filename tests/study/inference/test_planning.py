"""Tests of power and of the probability of improvement, against statsmodels and SciPy."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from bnstudy.study.inference import cohens_d, pairs_needed, probability_of_improvement


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=shape)


def test_pairs_needed_have_the_power_and_one_pair_fewer_has_not() -> None:
    differences = drawn(8, 40) + np.linspace(0, 1, 40)
    d = cohens_d(differences)
    tested = 0
    for size, needed in zip(d, pairs_needed(differences), strict=True):
        if not np.isfinite(needed):
            assert TTestPower().power(size, 1000, 0.05) < 0.8
            continue
        assert needed >= 6
        assert TTestPower().power(size, needed, 0.05) >= 0.8 - 1e-6
        if needed > 6:
            tested += 1
            assert TTestPower().power(size, needed - 1, 0.05) < 0.8
    assert tested > 20


def test_too_few_pairs_or_no_spread_need_no_number() -> None:
    assert np.isnan(pairs_needed(np.array([[1.0, 1.0], [2.0, 1.0]]))).all()
    assert np.isnan(pairs_needed(np.ones((4, 1)))).all()
    assert np.isinf(pairs_needed(np.array([[1.0], [-1.0], [1e-3]]))).all()


def test_the_probability_is_mann_whitneys_at_each_point() -> None:
    ours, theirs = drawn(2, 10, 3).round(1)
    points = np.repeat(["a", "b"], [6, 4])
    probability, low, high = probability_of_improvement(ours, theirs, points)
    parts = [
        stats.mannwhitneyu(ours[points == point], theirs[points == point]).statistic / count**2
        for point, count in (("a", 6), ("b", 4))
    ]
    assert probability == pytest.approx(np.mean(parts, axis=0))
    assert (low <= probability).all()
    assert (probability <= high).all()
    assert ((high - low > 0.2) & (high - low < 0.8)).all()


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    ours, theirs = drawn(2, 6, 1)
    _, low, high = probability_of_improvement(ours, theirs, np.repeat("a", 6))
    generator = np.random.default_rng(8)
    shares = [
        np.mean(generator.choice(ours[:, 0], 6)[:, None] > generator.choice(theirs[:, 0], 6))
        for _ in range(4000)
    ]
    assert [low[0], high[0]] == pytest.approx(np.quantile(shares, [0.025, 0.975]), abs=0.03)


def test_missing_values_are_left_out_and_few_runs_have_no_interval() -> None:
    ours = np.array([[1.0, np.nan], [2.0, 3.0]])
    probability, low, _ = probability_of_improvement(ours, ours - 0.5, np.repeat("a", 2))
    assert probability == pytest.approx([0.75, 1])
    assert np.isnan(low).all()


def test_a_probability_of_1_has_no_interval() -> None:
    treated, untreated = np.array([[5.0], [6.0], [7.0], [8.0]]), np.array([[1.0], [2], [3], [4]])
    found = probability_of_improvement(treated, untreated, np.repeat("a", 4))
    assert np.concatenate(found) == pytest.approx([1, np.nan, np.nan], nan_ok=True)
