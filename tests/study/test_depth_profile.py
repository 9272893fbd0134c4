"""Tests of the numbers over depth, with planted laws and against a Gram matrix."""

import itertools

import numpy as np
import pytest

from bnstudy.study.analysis import Analysis
from bnstudy.study.depth_profile import (
    orthogonality_gap,
    separation_r_squared,
    separation_slope,
    tunnel_start,
)
from bnstudy.study.present.page.render import render_page
from bnstudy.study.present.verdict import compose_verdict
from bnstudy.study.study import load
from tests.study.studies import Studies


def test_a_planted_law_of_separation_is_found() -> None:
    law = 5 * 0.7 ** np.arange(6)
    assert separation_slope(law) == pytest.approx(np.log(0.7))
    assert separation_r_squared(law) == pytest.approx(1)
    noisy = law * np.exp(np.random.default_rng(0).normal(size=6))
    slope, offset = np.polyfit(np.arange(6), np.log(noisy), 1)
    residuals = np.log(noisy) - slope * np.arange(6) - offset
    assert separation_slope(noisy) == pytest.approx(slope)
    share = 1 - residuals.var() / np.log(noisy).var()
    assert separation_r_squared(noisy) == pytest.approx(share)
    assert np.isnan(separation_slope(np.array([1.0, 0.5])))
    assert np.isnan(separation_slope(np.array([1.0, 0.5, np.nan])))


def test_the_tunnel_starts_where_probes_are_as_good_as_the_last() -> None:
    assert tunnel_start(np.array([0.5, 0.8, 0.96, 0.94, 1.0])) == 0.5
    assert tunnel_start(np.array([0.9, 0.5, 0.3])) == 0
    assert tunnel_start(np.array([0.1, 0.2, 0.3])) == 1
    assert np.isnan(tunnel_start(np.array([0.1, np.nan, 0.3])))


def test_the_orthogonality_gap_is_that_of_the_inner_products() -> None:
    samples = np.random.default_rng(0).normal(1, size=(7, 5))
    products = samples @ samples.T
    soft_rank = np.trace(products) ** 2 / (products**2).sum()
    expected = np.linalg.norm(products / np.trace(products) - np.eye(7) / 7)
    assert orthogonality_gap(np.array([soft_rank]), 7)[0] == pytest.approx(expected)
    assert orthogonality_gap(np.array([7.0]), 7)[0] == 0  # orthogonal


@pytest.mark.slow
def test_numbers_over_depth_are_paired_and_shown(studies: Studies) -> None:
    noise = np.random.default_rng(1).normal(scale=0.01, size=(6, 2))
    for seed, (number, norm) in itertools.product(range(6), enumerate(("none", "batchnorm"))):
        slope = [-0.1, -0.5][number] + noise[seed, number]
        layers = {
            "nc1": np.exp(slope * np.arange(4)).tolist(),
            "linear_probe": [0.5, 0.6, 0.99 if number else 0.8, 1.0],
            ("soft_rank", 0): [[1.0, 1.0, 1.0, 1.0], [5.0, 4.0, 3.0, 2.5]][number],
            "soft_rank": [2.0] * 4,
        }
        studies.add(norm, seed, layers=layers)
    analysis = Analysis(load(studies.folder))
    table = analysis.profile_effects.set_index(["metric", "place_index"])
    slope = table.loc[("separation_slope", 0)]
    assert slope["difference"] == pytest.approx(-0.4, abs=0.02)
    assert (slope["n"], slope["p"]) == (6, 2**-5)
    assert table.loc[("tunnel_start", 0), "difference"] == pytest.approx(-1 / 3)
    gap = table.loc[("initial_orthogonality_gap", 2)]
    assert gap["treatment_mean"] == pytest.approx(np.sqrt(1 / 4 - 1 / 10))  # 10 samples
    assert gap["baseline_mean"] == pytest.approx(np.sqrt(1 - 1 / 10))
    assert table.loc[("initial_rank", 4), "treatment_mean"] == 2.5
    text = "\n".join(compose_verdict(analysis))
    assert "is multiplied by 0.6" in text
    assert "at relative depth 67% with BatchNorm and 100% with no normalization" in text
    rank = "the soft rank of the last layer (block04) is 2.5 with BatchNorm and 1 with no norm"
    assert f"Before training, {rank}" in text
    page = render_page(analysis)
    assert "How far are classes separated in each layer?" in page
    assert "initial_orthogonality_gap" in page


@pytest.mark.slow
def test_without_the_metrics_nothing_is_shown_over_depth(studies: Studies) -> None:
    for norm in ("none", "batchnorm"):
        studies.add(norm, layers={"silhouette": [0.1, 0.2, 0.3]})
    analysis = Analysis(load(studies.folder))
    assert analysis.profile_effects.empty
    assert "Over depth" not in render_page(analysis)
