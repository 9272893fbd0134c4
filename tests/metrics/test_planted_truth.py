"""Metrics of synthetic representations whose true values are known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnstudy.metrics import METRICS, evaluate
from bnstudy.metrics.implicit_clustering import best_number_of_clusters
from bnstudy.representations import Layer, capture
from tests.metrics.samples import generator, rotate


def clouds(clusters: int, each: int, spread: float = 0.05, units: int = 30) -> Tensor:
    """Create samples around orthogonal centres."""
    random = generator(clusters)
    noise = torch.randn(clusters * each, units, generator=random)
    return torch.eye(clusters, units).repeat_interleave(each, 0) + spread * noise


@pytest.mark.parametrize("clusters", [2, 3, 10, 25, 30])
def test_the_number_of_clusters_is_found(clusters: int) -> None:
    layer = Layer(clouds(clusters, 12), torch.arange(12 * clusters) % 2)
    assert METRICS["best_k"](layer) == clusters
    assert METRICS["best_k_silhouette"](layer) > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [1, 10, 100])
@pytest.mark.parametrize("groups", [2, 3, 8])
def test_the_groups_inside_classes_are_found(groups: int, num_classes: int) -> None:
    inside = torch.cat([clouds(groups, 3, spread=0.02) for _ in range(num_classes)])
    labels = torch.arange(num_classes).repeat_interleave(3 * groups)
    far_off = 50 * torch.randn(num_classes, 30, generator=generator(0))
    layer = Layer(inside + far_off[labels], labels)
    assert METRICS["intraclass_silhouette"](layer) > 0.85
    for number in range(0, num_classes, 20):
        members = (layer.classes == number).nonzero().flatten()
        squared = layer.squared_distances[members][:, members]
        assert best_number_of_clusters(squared, squared.sqrt(), 8)[0] == groups


def test_classes_without_groups_have_no_high_silhouette_inside() -> None:
    far_off = 50 * torch.randn(10, 30, generator=generator(1))
    noise = torch.randn(500, 30, generator=generator(2))
    layer = Layer(far_off.repeat(50, 1) + noise, torch.arange(500) % 10)
    assert METRICS["silhouette"](layer) > 0.9
    assert METRICS["intraclass_silhouette"](layer) < 0.1


def plane(dimension: int, count: int, seed: int) -> Tensor:
    """Create samples that are uniform in a cube of a linear subspace of 60 dimensions."""
    cube = torch.rand(count, dimension, generator=generator(seed))
    return rotate(torch.nn.functional.pad(cube, (0, 60 - dimension)), seed) + 3


def swiss_roll(count: int, seed: int) -> Tensor:
    angle = 1.5 * math.pi * (1 + 2 * torch.rand(count, generator=generator(seed)))
    height = 21 * torch.rand(count, generator=generator(seed + 1))
    roll = torch.stack([angle * angle.cos(), height, angle * angle.sin()], 1)
    return rotate(torch.nn.functional.pad(roll, (0, 47)), seed)


def sphere(dimension: int, count: int, seed: int) -> Tensor:
    points = torch.randn(count, dimension + 1, generator=generator(seed))
    return rotate(torch.nn.functional.pad(nn.functional.normalize(points), (0, 30)), seed)


MANIFOLDS = {
    "a line": (1, lambda seed: plane(1, 1000, seed)),
    "a plane": (2, lambda seed: plane(2, 1000, seed)),
    "five dimensions": (5, lambda seed: plane(5, 2000, seed)),
    "a Swiss roll": (2, lambda seed: swiss_roll(1000, seed)),
    "a sphere": (4, lambda seed: sphere(4, 1500, seed)),
}


@pytest.mark.parametrize("manifold", MANIFOLDS)
def test_the_intrinsic_dimension_is_found(manifold: str) -> None:
    dimension, draw = MANIFOLDS[manifold]
    values = draw(0)
    layer = Layer(values, torch.zeros(len(values)))
    assert METRICS["intrinsic_dimension"](layer) == pytest.approx(dimension, rel=0.1)


@pytest.mark.parametrize("manifold", ["a line", "a Swiss roll", "a sphere"])
def test_the_error_of_the_dimension_is_how_much_it_differs_between_samples(manifold: str) -> None:
    _, draw = MANIFOLDS[manifold]
    layers = [Layer(draw(seed)[:300], torch.zeros(300)) for seed in range(40)]
    dimensions = [METRICS["intrinsic_dimension"](layer) for layer in layers]
    error = np.mean([METRICS["intrinsic_dimension_error"](layer) for layer in layers])
    # The standard deviation of 40 draws has an error of 11 %.
    assert 0.65 < error / np.std(dimensions) < 1.5


@pytest.mark.parametrize(("rank", "count", "units"), [(1, 80, 30), (7, 80, 30), (7, 30, 80)])
def test_the_rank_is_found(rank: int, count: int, units: int) -> None:
    random = generator(rank)
    directions = torch.linalg.qr(torch.randn(units, rank, generator=random)).Q
    drawn = torch.randn(count, rank, generator=random)
    equally_strong = torch.linalg.qr(drawn - drawn.mean(0)).Q
    layer = Layer(equally_strong @ directions.T + 5, torch.zeros(count))
    for name in ("participation_ratio", "stable_rank", "effective_rank"):
        assert METRICS[name](layer) == pytest.approx(rank, rel=5e-3)
    assert len(layer.spectrum) == min(count, units)
    assert (layer.spectrum > 1e-5 * layer.spectrum[0]).sum() == rank


@pytest.mark.parametrize(("rank", "count", "units"), [(1, 80, 30), (7, 80, 30), (7, 30, 80)])
def test_the_uncentred_rank_is_found(rank: int, count: int, units: int) -> None:
    random = generator(rank)
    directions = torch.linalg.qr(torch.randn(units, rank, generator=random)).Q
    equally_strong = torch.linalg.qr(torch.randn(count, rank, generator=random)).Q
    layer = Layer(equally_strong @ directions.T, torch.arange(count) % 3)
    assert METRICS["soft_rank"](layer) == pytest.approx(rank, rel=1e-5)
    identity = Layer(5 * torch.eye(count, units), torch.arange(count) % 3)
    assert METRICS["soft_rank"](identity) == pytest.approx(min(count, units), rel=1e-5)


@pytest.mark.parametrize("units", [20, 200])
def test_a_common_direction_takes_the_uncentred_rank_to_1(units: int) -> None:
    noise, labels = torch.randn(100, units, generator=generator(0)), torch.arange(100) % 5
    along = torch.randn(units, generator=generator(1))
    values = [Layer(noise + far * along, labels) for far in (0, 1, 10, 1000)]
    ranks = [METRICS["soft_rank"](layer) for layer in values]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] > 15
    assert ranks[-1] == pytest.approx(1, abs=1e-4)
    # The rank of the centred activations does not show it.
    assert METRICS["effective_rank"](values[-1]) == pytest.approx(
        METRICS["effective_rank"](values[0]), rel=1e-3
    )


def test_the_sparsity_is_found() -> None:
    activations = 1 + torch.rand(100, 8, 4, 4, generator=generator(0))
    activations[:, :2] = 0  # dead channels
    activations[:50, 2] = 0  # silent on half of the samples
    activations[:, 3:, :2] = 0  # dead units
    layer = Layer(activations, torch.arange(100) % 2)
    share = torch.tensor([1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert METRICS["dead_channels"](layer) == 2 / 8
    assert METRICS["channel_sparsity"](layer) == 2.5 / 8
    assert METRICS["dead_units"](layer) == (2 + 5 / 2) / 8
    assert METRICS["unit_sparsity"](layer) == share.mean().item() == METRICS["saturation"](layer)
    assert METRICS["unit_sparsity_channel_std"](layer) == pytest.approx(share.std(correction=0))


@pytest.mark.parametrize(("units", "active"), [(16, 1), (16, 4), (100, 25), (100, 100)])
def test_the_sparseness_is_that_of_so_many_active_units(units: int, active: int) -> None:
    order = torch.rand(200, units, generator=generator(0)).argsort(1)
    values = torch.zeros(200, units).scatter_(1, order[:, :active], 3.0)
    layer = Layer(values, torch.zeros(200))
    root = math.sqrt(units)
    assert METRICS["hoyer"](layer) == pytest.approx(
        (root - math.sqrt(active)) / (root - 1), abs=1e-6
    )
    assert METRICS["population_sparseness"](layer) == pytest.approx(
        (1 - active / units) / (1 - 1 / units), abs=1e-6
    )


def test_the_lifetime_sparseness_is_that_of_so_many_active_samples() -> None:
    values = torch.zeros(50, 3)
    values[:1, 0], values[:10, 1] = 7, -2  # the last unit is dead
    layer = Layer(values, torch.zeros(50))
    assert METRICS["lifetime_sparseness"](layer) == pytest.approx(
        np.mean([1, (1 - 10 / 50) / (1 - 1 / 50)])
    )


def simplex(num_classes: int) -> Tensor:
    return torch.eye(num_classes) - 1 / num_classes


def collapsed(num_classes: int, noise: float, each: int = 8) -> Layer:
    """Read features whose class means form a simplex, in a network with the same weights."""
    labels = torch.arange(num_classes).repeat(each)
    inputs = simplex(num_classes)[labels]
    inputs = inputs + noise * torch.randn(inputs.shape, generator=generator(0))
    network = nn.Sequential(nn.Identity(), nn.Linear(num_classes, num_classes))
    with torch.no_grad():
        network[1].weight.copy_(3 * simplex(num_classes))
        network[1].bias.zero_()
    (layer,) = capture(network, [(inputs, labels)], sites=["features"])
    return layer


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_neural_collapse_is_found(num_classes: int) -> None:
    names = ["nc1", "nc2_norm", "nc2_angle", "nc3", "ncc_agreement", "linear_probe"]
    values = evaluate([METRICS[name] for name in names], collapsed(num_classes, noise=1e-4))
    assert {name: value.number for name, value in values.items()} == pytest.approx(
        dict.fromkeys(names[:4], 0) | {"ncc_agreement": 1, "linear_probe": 1}, abs=1e-3
    )


@pytest.mark.parametrize("num_classes", [2, 10])
def test_classes_are_the_more_collapsed_the_less_noise_there_is(num_classes: int) -> None:
    layers = [collapsed(num_classes, noise, each=40) for noise in (0.5, 0.1, 0.02)]
    for name in ("nc1", "nc2_norm", "nc2_angle", "nc3"):
        values = [METRICS[name](layer) for layer in layers]
        if num_classes == 2 and name in ("nc2_norm", "nc2_angle"):
            assert values == pytest.approx([0, 0, 0], abs=1e-6)  # opposite, and equally far
        else:
            assert values[0] > 3 * values[2]


def test_the_variability_within_classes_is_that_of_the_noise() -> None:
    # tr(S_W S_B^+) / C: S_W = s^2 I, S_B has C - 1 eigenvalues of 1 / C on a simplex.
    num_classes, noise = 10, 0.1
    layer = collapsed(num_classes, noise, each=300)
    expected = noise**2 * (num_classes - 1) * num_classes / num_classes
    assert METRICS["nc1"](layer) == pytest.approx(expected, rel=0.03)


def test_the_moments_of_known_distributions_are_found() -> None:
    random = np.random.default_rng(0)
    normal, exponential = random.normal(2, 3, (4000, 1, 25)), random.exponential(2, (4000, 1, 25))
    uniform = random.uniform(-1, 1, (4000, 1, 25))
    labels = torch.zeros(4000)
    for draws, expected in [
        (normal, (2, 9, 0, 0)),
        (exponential, (2, 4, 2, 6)),
        (uniform, (0, 1 / 3, 0, -1.2)),
    ]:
        layer = Layer(torch.from_numpy(draws).float(), labels)
        found = [METRICS[name](layer) for name in ("mean", "variance", "skewness", "kurtosis")]
        assert found == pytest.approx(expected, rel=0.06, abs=0.05)
