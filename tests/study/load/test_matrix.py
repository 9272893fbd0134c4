"""Layers of networks of the same and of different depths, over studies with known numbers."""

import itertools
import math

import numpy as np
import pytest

from bnstudy.runs.long_table import Row
from bnstudy.study.analysis import Analysis
from bnstudy.study.effects import compute_averages, compute_effects, compute_effects_over_time
from bnstudy.study.generalization import compute_mediation
from bnstudy.study.load.matrix import average_layers, load_shared_columns
from bnstudy.study.present.figures import draw_figures
from bnstudy.study.present.tables import format_latex_tables
from bnstudy.study.study import load
from tests.study.studies import Studies

DEPTHS = ("depth 0 %", "depth 25 %", "depth 50 %", "depth 75 %", "depth 100 %")


@pytest.fixture
def planted(studies: Studies) -> Studies:
    """Depths 2 and 4: unit_sparsity is lower by 0.4 with BatchNorm, in block04 alone."""
    generator = np.random.default_rng(0)
    for seed, depth in itertools.product(range(3), (2, 4)):
        shared = generator.uniform(size=depth)
        for norm in ("none", "batchnorm"):
            change = np.where(np.arange(depth) == 3, -0.4 * (norm == "batchnorm"), 0)
            studies.add(
                norm,
                seed,
                f"model.depth={depth}",
                layers={"unit_sparsity": (shared + change).tolist()},
                accuracy=generator.uniform(),
            )
    return studies


@pytest.mark.slow
def test_an_effect_in_one_layer_is_not_averaged_away(planted: Studies) -> None:
    study = load(planted.folder)
    found = compute_effects(study, by=["depth"])
    layers = found[found["metric"] == "unit_sparsity"].set_index(["depth", "place"])
    assert layers.index.tolist() == [
        *((2, f"block0{layer}") for layer in (1, 2)),
        *((4, f"block0{layer}") for layer in (1, 2, 3, 4)),
    ]
    assert layers.loc[(4, "block04"), "difference"] == pytest.approx(-0.4)
    assert layers["difference"].drop((4, "block04")).abs().max() < 1e-12
    across = compute_effects(study)
    across = across[across["metric"] == "unit_sparsity"].set_index("place")
    assert across.index.tolist() == list(DEPTHS)
    assert across["n"].tolist() == [6] * 5
    # Of 4 layers the third lies at 67 %, the fourth at 100 %; at 75 % are 3 and 1 quarters of them.
    expected = [0, 0, 0, -0.4 / 4 / 2, -0.4 / 2]
    assert across["difference"].tolist() == pytest.approx(expected)


def test_values_are_interpolated_at_relative_depth(studies: Studies) -> None:
    studies.add("none", 0, "model.depth=2", layers={"silhouette": [1, 2]})
    studies.add("none", 0, "model.depth=4", layers={"silhouette": [1, 4, 9, math.nan]})
    studies.add("none", 0, "model.depth=1", layers={"silhouette": [7]})
    study = load(studies.folder)
    keys, values = load_shared_columns(study)
    layers = keys["place_index"] > 0
    assert keys[layers]["place"].tolist() == list(DEPTHS)
    assert set(keys[layers]["layers"]) == {0}
    of_depth = dict(zip(study.results["depth"], values[:, layers].tolist(), strict=True))
    assert of_depth[1] == [7] * 5
    assert of_depth[2] == [1, 1.25, 1.5, 1.75, 2]
    depths, known = np.linspace(0, 1, 4), [1, 4, 9, math.nan]
    np.testing.assert_allclose(
        of_depth[4], np.interp([0, 0.25, 0.5, 0.75, 1], depths, known), equal_nan=True
    )
    relative = study.query("select layer, relative_depth from layers where cell like '%depth=4%'")
    assert relative["relative_depth"].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_a_linear_course_is_the_same_at_any_depth(studies: Studies) -> None:
    for depth in (3, 5, 8):
        course = np.linspace(0.2, 0.8, depth).tolist()
        studies.add("none", 0, f"model.depth={depth}", layers={"silhouette": course})
    means = compute_averages(load(studies.folder)).query("metric == 'silhouette'")
    assert means["mean"].tolist() == pytest.approx([0.2, 0.35, 0.5, 0.65, 0.8])
    assert means["sd"].max() < 1e-12


def test_each_site_is_looked_at_by_itself(planted: Studies) -> None:
    for norm in ("none", "batchnorm"):
        layers, features = {"unit_sparsity": [0.1] * 3}, {"unit_sparsity": 0.5}
        planted.add(norm, 0, "model.depth=3", layers=layers, features=features)
    keys, _ = load_shared_columns(load(planted.folder))
    assert keys.loc[keys["place_index"] > 0, "place"].tolist() == [*DEPTHS, "classifier.features"]


def renamed(studies: Studies, norm: str, seed: int, names: list[str], values: list[float]) -> None:
    """A run whose layers have other names."""
    record = studies.add(norm, seed)
    rows = [
        Row(5, 9, "train", number, name, "act", "silhouette", value, None)
        for number, (name, value) in enumerate(zip(names, values, strict=True))
    ]
    record.table.add_rows(rows)


def test_as_many_layers_are_matched_by_their_order(studies: Studies) -> None:
    for seed in range(3):
        renamed(studies, "none", seed, ["features.1", "features.3"], [0.1, 0.2 * seed])
        renamed(studies, "batchnorm", seed, ["features.2", "features.5"], [0.4, 0.2 * seed])
    table = compute_effects(load(studies.folder)).query("metric == 'silhouette'")
    assert table["place"].tolist() == ["features.1 / features.2", "features.3 / features.5"]
    assert table["difference"].tolist() == pytest.approx([0.3, 0])
    assert table["n"].tolist() == [3, 3]
    renamed(studies, "layernorm", 0, ["features.7", "features.8"], [0.3, 0.5])
    table = compute_effects(load(studies.folder)).query("metric == 'silhouette'")
    assert table["place"].unique().tolist() == ["layer 1", "layer 2"]


def test_curves_are_of_layers_and_of_relative_depths(planted: Studies) -> None:
    found = compute_effects_over_time(load(planted.folder)).query("metric == 'unit_sparsity'")
    of_layers = found[found["layers"] == 4].set_index("place")
    assert of_layers.loc["block04", "difference"] == pytest.approx(-0.4)
    assert of_layers.loc["block04", ["n", "undefined"]].tolist() == [3, 0]
    across = found[found["layers"] == 0].set_index("place")
    assert across.loc["depth 100 %", "difference"] == pytest.approx(-0.2)
    assert across.loc["depth 100 %", "n"] == 6


def test_means_over_layers_are_of_each_networks_own_layers(planted: Studies) -> None:
    study = load(planted.folder)
    means = average_layers(study, "unit_sparsity")
    values = study.query(
        "select cell, avg(value) as mean from final where metric = 'unit_sparsity' group by cell"
    ).set_index("cell")["mean"]
    np.testing.assert_allclose(means, values[study.results["cell"]])
    change = [-0.4 / 4 if depth == 4 else 0 for depth in (2, 4)]
    treated = study.results["treatment"] == "batchnorm"
    mean_change = means[treated].mean() - means[~treated].mean()
    assert mean_change == pytest.approx(np.mean(change))
    assert set(compute_mediation(study)["n"]) == {6}


@pytest.mark.slow
def test_what_is_written_of_each_depth_has_its_layers(planted: Studies) -> None:
    analysis = Analysis(load(planted.folder))
    assert analysis.mixed_depths == [2, 4]
    drawn = dict(draw_figures(analysis))
    assert {"layers-unit_sparsity", "layers-unit_sparsity-depth2"} <= drawn.keys()
    _, differences = drawn["layers-unit_sparsity-depth4"].axes
    assert [label.get_text() for label in differences.get_xticklabels()] == [
        f"block {layer}" for layer in (1, 2, 3, 4)
    ]
    written = dict(format_latex_tables(analysis))
    assert "block04" in written["layers-unit_sparsity-depth4"]
    assert "networks of depth 4" in written["layers-unit_sparsity-depth4"]
    assert "block" not in written["layers-unit_sparsity"]


def test_without_activations_means_are_over_the_sites_that_all_networks_have(
    studies: Studies,
) -> None:
    sites = {"none": ("conv", "features"), "batchnorm": ("conv", "features", "norm")}
    values = {"conv": 0.2, "features": 0.6, "norm": 5.0}
    for seed, norm in itertools.product(range(3), sites):
        studies.add(norm, seed).table.add_rows(
            Row(5, 9, "train", number, f"block{number}", site, "silhouette", values[site], None)
            for number, site in enumerate(sites[norm])
        )
    means = average_layers(load(studies.folder), "silhouette")
    assert means.tolist() == pytest.approx([0.4] * 6)
