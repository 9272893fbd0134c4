"""Layers that need more than float32, compared with float64 on the same float32 numbers."""

import math
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pytest
import torch
from numpy import ndarray
from torch import Tensor, nn

from bnstudy.metrics import METRICS, SIMILARITIES, evaluate
from bnstudy.representations import Layer, capture
from bnstudy.representations.sums import ClassSums, Products
from tests.metrics.samples import generator, streamed
from tests.metrics.test_against_references import REFERENCES
from tests.metrics.test_similarity import kornblith, nuclear_norm

in_blocks = partial(streamed, channels=17)
READ = pytest.mark.parametrize("read", [Layer, in_blocks], ids=["held", "streamed"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def turns(count: int, num_classes: int) -> Tensor:
    return torch.arange(count) % num_classes


def around(spread: float, count: int = 120, num_classes: int = 4, units: int = 50) -> Tensor:
    """Create classes around means that differ by 1 in each unit."""
    labels = turns(count, num_classes)
    return normal(num_classes, units, seed=1)[labels] + spread * normal(count, units)


def coins(count: int) -> Tensor:
    return (torch.rand(count, generator=generator(3)) < 0.5).float()


def one_far_unit(count: int, units: int) -> Tensor:
    """Create activations with a unit that is 0 or 30,000, independent of the class."""
    x = 3 * normal(4, units, seed=5)[turns(count, 4)] + normal(count, units)
    x[:, 0] = 30_000 * coins(count)
    return x


def far_modes_of_a_unit() -> tuple[Tensor, Tensor]:
    """Create two modes that are 1e5 apart; classes are the lower and upper half of each mode."""
    place = torch.arange(44) // 2
    x = 1e5 * (torch.arange(44) % 2) + 1.3 * place + 5 * (place > 10) + 0.1 * normal(44)
    return x[:, None], (place > 10).long()


def far_classes() -> Tensor:
    """Create classes, half of which are 1e5 away from the others."""
    labels = turns(160, 8)
    far = 1e5 * (labels < 4)[:, None] * normal(60, seed=4)
    return 3 * normal(8, 60, seed=2)[labels] + far + normal(160, 60)


def mode_at_zero() -> tuple[Tensor, Tensor]:
    """Create samples, half of which are close to 0."""
    x = around(1)
    x[60:] *= 1e-3
    x[:60] += 1e4
    return x, torch.arange(120) // 15 % 4


def with_constant_units() -> Tensor:
    x = around(1)
    x[:, 5], x[:, 6] = 7, 1e6
    return x


def half_dead() -> Tensor:
    x = around(1).relu()
    x[torch.arange(120) // 4 % 2 == 0] = 0
    return x


def outlier() -> Tensor:
    x = normal(120, 50)
    x[3] *= 1e6
    return x


CASES: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "offset, noise 1e-3": lambda: (around(1e-3) + 1e3, turns(120, 4)),
    "offset, noise 1e-4": lambda: (around(1e-4) + 1e3, turns(120, 4)),
    "offset, more units than samples": lambda: (around(1e-3, units=130) + 1e3, turns(120, 4)),
    "a far unit": lambda: (one_far_unit(200, 51), turns(200, 4)),
    "a far unit of more than samples": lambda: (one_far_unit(100, 151), turns(100, 4)),
    "far modes of a unit": far_modes_of_a_unit,
    "far classes": lambda: (far_classes(), turns(160, 8)),
    "a mode at 0": mode_at_zero,
    "heavy tails": lambda: (
        normal(200, 40).sign() * (4 * normal(200, 40, seed=9)).exp(),
        turns(200, 4),
    ),
    "an outlier": lambda: (outlier(), turns(120, 4)),
    "collapsed": lambda: (around(1e-5), turns(120, 4)),
    "collapsed, more units than samples": lambda: (around(1e-5, units=130), turns(120, 4)),
    "tiny": lambda: (1e-11 * around(1), turns(120, 4)),
    "huge": lambda: (1e11 * around(1), turns(120, 4)),
    "duplicates": lambda: (around(1)[torch.arange(120) // 3 * 2], torch.arange(120) // 3 % 4),
    "constant units": lambda: (with_constant_units(), turns(120, 4)),
    "half dead": lambda: (half_dead(), turns(120, 4)),
}


@cache
def case(name: str) -> tuple[Tensor, ndarray, Tensor]:
    """Return activations, the same in float64 as N x channels x positions, and labels."""
    x, labels = CASES[name]()
    return x, x.double().numpy()[:, :, None], labels


@cache
def values(name: str, read: Callable[[Tensor, Tensor], Layer]) -> dict[str, float]:
    x, _, labels = case(name)
    layer = read(x, labels)
    found = evaluate([METRICS[metric] for metric in DIRECT], layer)
    return {metric: value.number for metric, value in found.items()}


def centred_means(x: ndarray, y: ndarray) -> tuple[ndarray, ndarray]:
    """Compute the centred class means, and each sample's difference from its class mean."""
    rows = x[:, :, 0]
    names, index = np.unique(y, return_inverse=True)
    means = np.stack([rows[y == name].mean(0) for name in names])
    return means - rows.mean(0), rows - means[index]


def davies_bouldin(x: ndarray, y: ndarray) -> float:
    """Compute the index; scikit-learn's distances are not exact enough for these layers."""
    means, residuals = centred_means(x, y)
    names = np.unique(y)
    spread = np.array([np.linalg.norm(residuals[y == name], axis=1).mean() for name in names])
    worst = [
        max(
            (spread[a] + spread[b]) / np.linalg.norm(means[a] - means[b])
            for b in range(len(names))
            if b != a
        )
        for a in range(len(names))
    ]
    return float(np.mean(worst))


def nc1(x: ndarray, y: ndarray) -> float:
    """Compute NC1 from singular values of the class means, because their squares are inexact."""
    means, residuals = centred_means(x, y)
    share = np.array([(y == name).mean() for name in np.unique(y)])
    _, singular, axes = np.linalg.svd(np.sqrt(share)[:, None] * means, full_matrices=False)
    kept = singular > 1e-9 * singular[0]
    along = residuals @ axes[kept].T / singular[kept]
    return (along**2).sum(1).mean() / len(share)


def participation_ratio(x: ndarray, y: ndarray) -> float:
    singular = np.linalg.svd(x[:, :, 0] - x[:, :, 0].mean(0), compute_uv=False)
    return (singular**2).sum() ** 2 / (singular**4).sum()


DIRECT = REFERENCES | {
    "davies_bouldin": davies_bouldin,
    "nc1": nc1,
    "participation_ratio": participation_ratio,
}
# Cases in which a metric is undefined, or many neighbours are equally near.
LEFT_OUT = {
    "far modes of a unit": {"hoyer", "population_sparseness", "nc2_angle"},
    "duplicates": {"intrinsic_dimension"},
    "half dead": {"knn_purity"},
}


@READ
@pytest.mark.parametrize("name", CASES)
def test_a_metric_is_that_of_float64(name: str, read: Callable[[Tensor, Tensor], Layer]) -> None:
    _, x, labels = case(name)
    for metric, value in values(name, read).items():
        if metric in LEFT_OUT.get(name, ()):
            continue
        assert value == pytest.approx(
            DIRECT[metric](x, labels.numpy()), rel=1e-3, abs=1e-9, nan_ok=True
        ), metric


@READ
@pytest.mark.parametrize("name", CASES)
def test_distances_are_those_of_float64(name: str, read: Callable[[Tensor, Tensor], Layer]) -> None:
    x, rows, labels = case(name)
    layer = read(x, labels)
    flat = torch.from_numpy(rows[:, :, 0])
    exact = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").square()
    torch.testing.assert_close(layer.squared_distances.double(), exact, rtol=1e-3, atol=0)
    assert torch.equal(layer.squared_distances, layer.squared_distances.T)
    nearest = exact.fill_diagonal_(math.inf).sort(1).values[:, :10]
    ours = exact.gather(1, layer.neighbours.indices)
    torch.testing.assert_close(ours, nearest, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        layer.neighbours.squared_distances.double(), nearest, rtol=1e-3, atol=0
    )


@READ
@pytest.mark.parametrize("name", CASES)
def test_a_similarity_is_that_of_float64(
    name: str, read: Callable[[Tensor, Tensor], Layer]
) -> None:
    x, _, labels = case(name)
    other = torch.relu(x - x.mean(0)) + normal(len(x), 1)
    layers = [read(one, labels) for one in (x, other)]
    for layer in layers:
        layer.release_activations()
    assert SIMILARITIES["cka"](*layers) == pytest.approx(kornblith(x, other), rel=1e-3)
    assert SIMILARITIES["procrustes"](*layers) == pytest.approx(nuclear_norm(x, other), abs=1e-3)


@READ
def test_clusters_in_far_modes_are_found(read: Callable[[Tensor, Tensor], Layer]) -> None:
    labels = turns(120, 6)
    x = 30 * torch.eye(6, 40)[labels] + normal(120, 40)
    x[labels < 3, 39] += 1e5
    layer = read(x, labels)
    for name in ("kmeans_purity", "kmeans_nmi", "kmeans_ari"):
        assert METRICS[name](layer) == 1
    inside = read(x, labels // 3)
    assert METRICS["intraclass_silhouette"](inside) == pytest.approx(0.78, abs=0.03)


def test_an_ordinary_layer_is_not_computed_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Layer, kind: type[ClassSums]) -> ClassSums:
        raise AssertionError(kind)

    monkeypatch.setattr(Layer, "in_float64", refuse)
    x, labels = around(1, count=200, units=300).relu(), turns(200, 4)
    layer = Layer(x, labels)
    found = evaluate(METRICS.values(), layer)
    assert found["effective_rank"].reason is None


@pytest.mark.parametrize("count", [60, 300])
def test_a_layer_read_in_blocks_is_read_again_where_that_is_needed(count: int) -> None:
    x = one_far_unit(count, 80)
    network = nn.Sequential(nn.Unflatten(1, (80, 1)), nn.Identity())
    batches = list(zip(x.split(70), turns(count, 4).split(70), strict=True))
    room = 6 * 4 * count**2 + 2 * 4 * 2**24 + 35 * 4 * count
    (layer,) = capture(network, batches, ["1"], memory_budget=room / 2**30)
    assert layer.activations is None
    exact = REFERENCES["knn_purity"](x.double().numpy()[:, :, None], turns(count, 4).numpy())
    assert METRICS["knn_purity"](layer) == pytest.approx(exact)
    assert isinstance(layer.in_float64(Products), Products)


@READ
@pytest.mark.parametrize("offset", [0.0, 0.1, 1e3])
def test_classes_without_any_spread_have_none_for_every_metric(
    offset: float, read: Callable[[Tensor, Tensor], Layer]
) -> None:
    labels = turns(300, 3)
    x = normal(3, 40)[labels] + offset
    found = evaluate(METRICS.values(), read(x, labels))
    for name in ("calinski_harabasz", "dunn"):
        assert found[name].reason == "no class has any spread: the index is infinite"
    for name in ("davies_bouldin", "nc1", "within_between_ratio"):
        assert found[name].number == 0, name
    assert found["silhouette"].number == 1


@READ
@pytest.mark.parametrize(("scale", "offset"), [(1e-6, 0.0), (1.0, 0.0), (1.0, 1e3), (1e-3, 1e3)])
def test_class_means_that_agree_to_rounding_are_the_same(
    scale: float, offset: float, read: Callable[[Tensor, Tensor], Layer]
) -> None:
    half = scale * normal(60, 30) + offset
    order = torch.randperm(60, generator=generator(1))
    x, labels = torch.cat([half, half[order]]), torch.arange(120) // 60
    found = evaluate(METRICS.values(), read(x, labels))
    assert found["davies_bouldin"].reason == (
        "the means of two classes are the same: the index is infinite"
    )
    for name in ("nc1", "nc2_norm", "nc2_angle"):
        assert found[name].reason == "all class means are the same"
    assert found["calinski_harabasz"].number == pytest.approx(0, abs=1e-6)


def test_two_of_three_class_means_that_agree_to_rounding_are_the_same() -> None:
    half = normal(60, 30)
    order = torch.randperm(60, generator=generator(1))
    x = torch.cat([half, half[order], half + 5])
    found = evaluate(METRICS.values(), Layer(x, torch.arange(180) // 60))
    assert "means of two classes" in str(found["davies_bouldin"].reason)
    assert found["nc1"].number == pytest.approx(
        nc1(x.double().numpy()[:, :, None], np.arange(180) // 60), rel=1e-3
    )


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e5])
def test_norms_and_moments_under_an_offset_are_those_of_float64(offset: float) -> None:
    x = normal(200, 3, 16) + offset
    layer, rows = Layer(x, turns(200, 2)), x.double().numpy()
    for name in ("norm_cv", "hoyer", "population_sparseness", "lifetime_sparseness", "variance"):
        expected = REFERENCES[name](rows, np.zeros(200))
        assert METRICS[name](layer) == pytest.approx(expected, rel=1e-3), name
    for name in ("skewness", "kurtosis"):
        expected = REFERENCES[name](rows, np.zeros(200))
        assert METRICS[name](layer) == pytest.approx(expected, rel=1e-5), name


@pytest.mark.parametrize("scale", [1e-20, 1e15])
def test_beyond_the_range_of_squares_a_metric_is_right_or_undefined(scale: float) -> None:
    x, labels = scale * around(1), turns(120, 4)
    for name, value in evaluate(METRICS.values(), Layer(x, labels)).items():
        if value.reason is None:
            expected = REFERENCES[name](x.double().numpy()[:, :, None], labels.numpy())
            assert value.number == pytest.approx(expected, rel=1e-3), name
        else:
            assert math.isnan(value.number)


def test_differences_too_small_for_their_squares_are_no_distances() -> None:
    x = 1e-22 * normal(60, 5)
    x[:, 0] = 1
    found = evaluate(METRICS.values(), Layer(x, turns(60, 3)))
    for name in ("silhouette", "knn_purity", "davies_bouldin", "participation_ratio"):
        assert "too small for float32" in str(found[name].reason)


@READ
@pytest.mark.parametrize("apart", [1e4, 3e4, 1e5])
def test_nc1_is_right_for_class_means_that_differ_little_beside_far_modes(
    apart: float, read: Callable[[Tensor, Tensor], Layer]
) -> None:
    labels = turns(260, 3)
    x = normal(260, 10)
    x[:, 0] = apart * torch.randint(2, (260,), generator=generator(1))
    expected = nc1(x.double().numpy()[:, :, None], labels.numpy())
    (found,) = evaluate([METRICS["nc1"]], read(x, labels)).values()
    assert found.number == pytest.approx(expected, rel=2e-3)
