"""Tests of intervals over pairs and probe samples: coverage, and a planted study."""

import itertools

import numpy as np
import pytest
from scipy import stats

from bnstudy.runs.long_table import Row
from bnstudy.study.analysis import Analysis
from bnstudy.study.inference.two_sources import two_source_interval
from bnstudy.study.present.page.render import render_page
from bnstudy.study.present.verdict import compose_verdict
from bnstudy.study.study import load
from tests.study.studies import Studies

STUDIES = 5_000


def simulated(pairs: int, folds: int, samples: float, interaction: float) -> tuple[float, float]:
    """Return the coverage of the interval, and of one that only knows the pairs.

    The difference of a pair on a fold is a pair's effect (variance 1), a fold's effect that all
    pairs share, and an interaction; the variances are those of means over all samples.
    """
    generator = np.random.default_rng(0)
    pair_effects = generator.normal(size=(pairs, 1, STUDIES))
    fold_effects = generator.normal(scale=np.sqrt(samples * folds), size=(1, folds, STUDIES))
    interactions = generator.normal(
        scale=np.sqrt(interaction * folds), size=(pairs, folds, STUDIES)
    )
    parts = pair_effects + fold_effects + interactions
    found = two_source_interval(parts.mean(axis=1), parts)
    alone = two_source_interval(
        parts.mean(axis=1), np.broadcast_to(parts.mean(axis=1, keepdims=True), parts.shape)
    )
    covered = [np.mean((one.low <= 0) & (one.high >= 0)) for one in (found, alone)]
    return covered[0], covered[1]


@pytest.mark.parametrize("pairs", [8, 16])
@pytest.mark.parametrize("folds", [4])
@pytest.mark.parametrize("samples", [0.0, 0.03, 0.1, 0.5, 3.0])
@pytest.mark.parametrize("interaction", [0.0, 0.3])
def test_the_interval_covers_the_effect_whatever_the_variance_over_samples(
    pairs: int, folds: int, samples: float, interaction: float
) -> None:
    both, alone = simulated(pairs, folds, samples, interaction)
    assert 0.93 <= both <= 0.97
    if samples >= 0.5:
        assert alone < 0.75  # the variance over pairs does not show what all pairs share


def test_without_an_effect_of_the_samples_it_is_students_interval() -> None:
    differences = np.random.default_rng(1).normal(size=(8, 3))
    parts = np.repeat(differences[:, None], 4, axis=1)
    found = two_source_interval(differences, parts)
    assert (found.sample_share == 0).all()
    expected = stats.ttest_1samp(differences, 0).confidence_interval()
    assert found.low == pytest.approx(expected.low)
    assert found.high == pytest.approx(expected.high)


def test_it_is_never_narrower_than_students_interval() -> None:
    parts = np.random.default_rng(2).normal(size=(3, 4, 500))
    differences = parts.mean(axis=1)
    found = two_source_interval(differences, parts)
    alone = stats.ttest_1samp(differences, 0).confidence_interval()
    assert (found.high - found.low >= (alone.high - alone.low) * (1 - 1e-9)).all()


@pytest.mark.slow
def test_a_planted_study_says_which_source_dominates(studies: Studies) -> None:
    generator = np.random.default_rng(2)
    moved = {"silhouette": 0.2, "nc1": 0.0}  # by the choice of samples, with batchnorm
    fold_effects = generator.normal(size=4)
    for seed, norm in itertools.product(range(8), ("none", "batchnorm")):
        value = 0.5 + 0.02 * generator.normal()
        record = studies.add(norm, seed, layers={metric: [value] for metric in moved})
        rows = [
            (
                fold,
                Row(5, 50, "train", 0, "block01", "act", metric, number, None),
            )
            for fold, (metric, effect) in itertools.product(range(4), moved.items())
            for number in [value + effect * fold_effects[fold] * (norm == "batchnorm")]
        ]
        record.table.write_folds(rows)
    analysis = Analysis(load(studies.folder))
    table = analysis.two_source_intervals.set_index("metric")
    assert set(table["n"]) == {8}
    assert table.loc["silhouette", "sample_share"] > 0.9
    assert table.loc["nc1", "sample_share"] == 0
    width = table["high"] - table["low"]
    assert width["silhouette"] > 5 * width["nc1"]
    text = "\n".join(compose_verdict(analysis))
    assert "The samples are the larger source of uncertainty for 1, the runs for 1." in text
    assert "Intervals over runs and samples" in render_page(analysis)
