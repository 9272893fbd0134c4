"""Similarities of two layers: comparison with naive formulas, and properties."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.spatial
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnstudy.errors import UserError
from bnstudy.metrics import SIMILARITIES, Similarity
from bnstudy.representations import Layer, capture
from tests.metrics.samples import generator, rotate, sample, streamed, translate

SEEDS = st.integers(0, 2**31)


def layer(values: Tensor) -> Layer:
    return Layer(values, torch.arange(len(values)) % 10)


def of_the_same_samples(count: int, units: int, others: int, seed: int) -> tuple[Tensor, Tensor]:
    """Create two representations that share some of their dimensions."""
    random = generator(seed)
    common = torch.randn(count, 5, generator=random)
    return tuple(  # type: ignore[return-value]
        common @ torch.randn(5, size, generator=random)
        + torch.randn(count, size, generator=random)
        + 3
        for size in (units, others)
    )


def scaled(x: Tensor, seed: int) -> Tensor:
    """Scale by a random factor between 1e-4 and 1e4."""
    return x * 10 ** (8 * torch.rand((), generator=generator(seed)) - 4)


def centred(x: Tensor) -> ndarray:
    values = x.double().numpy()
    return values - values.mean(0)


def kornblith(x: Tensor, y: Tensor) -> float:
    a, b = centred(x), centred(y)
    norms = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(np.linalg.norm(a.T @ b) ** 2 / norms)


def hsic_1(x: Tensor, y: Tensor) -> float:
    """Compute equation 3 of Nguyen et al. 2021."""
    k, m = (values @ values.T for values in (x.double().numpy(), y.double().numpy()))
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    n, one = len(k), np.ones(len(k))
    second = one @ k @ one * (one @ m @ one) / ((n - 1) * (n - 2))
    third = 2 / (n - 2) * (one @ k @ m @ one)
    return float((np.trace(k @ m) + second - third) / (n * (n - 3)))


def u_statistic(x: Tensor, y: Tensor) -> float:
    """Compute HSIC as the mean over all quadruples of different samples."""
    k, m = (x @ x.T).double(), (y @ y.T).double()
    terms = [
        k[i, j] * m[i, j] + k[i, j] * m[q, r] - 2 * k[i, j] * m[i, q]
        for i, j, q, r in itertools.permutations(range(len(x)), 4)
    ]
    return torch.stack(terms).mean().item()


def debiased(hsic: Callable[[Tensor, Tensor], float]) -> Callable[[Tensor, Tensor], float]:
    return lambda x, y: hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))


def scipys_procrustes(x: Tensor, y: Tensor) -> float:
    """Compute the angle from SciPy's disparity, its squared sine."""
    units = max(x.shape[1], y.shape[1])
    padded = [np.pad(centred(one), ((0, 0), (0, units - one.shape[1]))) for one in (x, y)]
    disparity = scipy.spatial.procrustes(*padded)[2]
    return math.asin(math.sqrt(min(1.0, disparity)))


def nuclear_norm(x: Tensor, y: Tensor) -> float:
    """Compute equation 8 of Williams et al. 2021, as in netrep."""
    a, b = (centred(one) / np.linalg.norm(centred(one)) for one in (x, y))
    return math.acos(min(1.0, np.linalg.svd(a.T @ b, compute_uv=False).sum()))


REFERENCES = [
    ("cka", kornblith),
    ("cka_debiased", debiased(hsic_1)),
    ("procrustes", scipys_procrustes),
    ("procrustes", nuclear_norm),
]
SHAPES = [(200, 30, 30), (200, 30, 80), (60, 100, 20), (60, 100, 200)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "reference"), REFERENCES)
def test_a_similarity_is_what_it_says(
    name: str, reference: Callable[[Tensor, Tensor], float], shape: tuple[int, int, int]
) -> None:
    x, y = of_the_same_samples(*shape, seed=0)
    expected = reference(x, y)
    similarity = SIMILARITIES[name]
    assert similarity(layer(x), layer(y)) == pytest.approx(expected, rel=1e-4)
    by_channel = streamed(x, torch.arange(len(x)) % 10)
    assert similarity(by_channel, layer(y)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("count", [4, 7])
def test_debiased_cka_is_of_u_statistics(count: int) -> None:
    x, y = of_the_same_samples(count, 6, 9, seed=1)
    ours = SIMILARITIES["cka_debiased"](layer(x), layer(y))
    assert ours == pytest.approx(debiased(u_statistic)(x, y), rel=1e-3)


CHANGES = {"rotation": rotate, "scale": scaled, "translation": translate}


@pytest.mark.parametrize("name", SIMILARITIES)
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS)
def test_a_similarity_has_exactly_the_declared_invariances(name: str, seed: int) -> None:
    x, y = of_the_same_samples(50, 20, 70, seed)
    similarity = SIMILARITIES[name]
    expected = similarity(layer(x), layer(y))
    order = torch.randperm(50, generator=generator(seed))
    assert similarity(layer(x[order]), layer(y[order])) == pytest.approx(expected, rel=1e-3)
    for invariance, change in CHANGES.items():
        changed = (
            similarity(layer(change(x, seed)), layer(y)),
            similarity(layer(x), layer(change(y, seed))),
        )
        unchanged = changed == pytest.approx((expected, expected), rel=1e-3)
        assert unchanged == (invariance in similarity.invariant_to), invariance
        if unchanged:
            itself = similarity(layer(x), layer(change(x, seed)))
            assert itself == pytest.approx(best(similarity), abs=2e-3)


def best(similarity: Similarity) -> float:
    """Value of a layer and itself."""
    return similarity.bounds[1] if similarity.direction == "higher" else 0


@pytest.mark.parametrize("name", SIMILARITIES)
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, near=st.floats(0.01, 2))
def test_a_similarity_is_symmetric_and_a_metric_if_it_declares_it(
    name: str, seed: int, near: float
) -> None:
    random = generator(seed)
    x, noise = torch.randn(2, 40, 12, generator=random)
    y = x + near * noise
    z = torch.relu(y + near * torch.randn(40, 12, generator=random))
    layers = [layer(values) for values in (x, y, z)]
    value = np.array([[SIMILARITIES[name](one, other) for other in layers] for one in layers])
    is_symmetric = np.allclose(value, value.T, rtol=1e-5)
    is_metric = (
        is_symmetric
        and np.allclose(value.diagonal(), 0, atol=2e-3)
        and (value[~np.eye(3, dtype=bool)] > 1e-3).all()
        and all(value[a, c] <= value[a, b] + value[b, c] + 1e-4 for a, b, c in ORDERS)
    )
    assert is_symmetric == SIMILARITIES[name].is_symmetric
    assert is_metric == SIMILARITIES[name].is_metric


ORDERS = list(itertools.permutations(range(3)))


@pytest.mark.parametrize("units", [20, 70])
@pytest.mark.parametrize("factor", [1e-10, 1e9, 1e10])
@pytest.mark.parametrize("name", SIMILARITIES)
def test_neither_tiny_nor_large_activations_matter(name: str, factor: float, units: int) -> None:
    x, y = of_the_same_samples(50, units, units, seed=0)
    expected = SIMILARITIES[name](layer(x), layer(y))
    assert SIMILARITIES[name](layer(factor * x), layer(y)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", SIMILARITIES)
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, count=st.integers(4, 60), units=st.integers(1, 40))
def test_the_bounds_are_kept(name: str, seed: int, count: int, units: int) -> None:
    x = torch.randn(count, units, generator=generator(seed))
    y = torch.relu(torch.randn(count, 20, generator=generator(seed + 1)))
    similarity = SIMILARITIES[name]
    low, high = similarity.bounds
    value = similarity(layer(x), layer(y))
    assert math.isnan(value) or low - 1e-6 <= value <= high + 1e-6


def test_noise_is_like_noise_to_cka_but_not_to_the_debiased_one() -> None:
    noise = torch.randn(10, 2, 60, 200, generator=generator(0))
    pairs = [(layer(x), layer(y)) for x, y in noise]
    biased = [SIMILARITIES["cka"](*pair) for pair in pairs]
    unbiased = [SIMILARITIES["cka_debiased"](*pair) for pair in pairs]
    assert min(biased) > 0.6
    assert abs(np.mean(unbiased)) < 0.02
    assert max(map(abs, unbiased)) < 0.15


def test_the_bounds_are_reached() -> None:
    basis = torch.eye(8) - 1 / 8
    halves = torch.linalg.svd(basis).U[:, :4], torch.linalg.svd(basis).U[:, 4:7]
    x, y = (layer(half) for half in halves)  # in orthogonal subspaces
    assert SIMILARITIES["cka"](x, y) == pytest.approx(0, abs=1e-6)
    assert SIMILARITIES["cka"](x, x) == pytest.approx(1)
    assert SIMILARITIES["procrustes"](x, y) == pytest.approx(math.pi / 2, abs=1e-6)
    assert SIMILARITIES["procrustes"](x, x) == pytest.approx(0, abs=1e-3)


def test_an_image_and_a_vector_can_be_compared() -> None:
    activations, labels = sample(10, 1.0, count=100)
    image, vector = Layer(activations, labels), Layer(activations.flatten(1), labels)
    assert SIMILARITIES["cka"](image, vector) == pytest.approx(1)


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(50, 20),
        torch.full((50, 20), 0.1),
        torch.full((50, 20), math.nan),
        torch.full((50, 20), 1e30),
    ],
    ids=["dead", "constant", "NaN", "huge"],
)
def test_a_degenerate_layer_is_like_nothing(name: str, values: Tensor) -> None:
    other = layer(torch.randn(50, 30, generator=generator(0)))
    assert math.isnan(SIMILARITIES[name](layer(values), other))
    assert math.isnan(SIMILARITIES[name](other, layer(values)))


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_few_samples_give_a_number_or_none(name: str, count: int) -> None:
    x, y = torch.randn(2, count, 7, generator=generator(0))
    value = SIMILARITIES[name](layer(x), layer(y))
    assert math.isnan(value) == (count < 2 or (count < 4 and name == "cka_debiased"))


@pytest.mark.parametrize("name", SIMILARITIES)
def test_different_samples_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="50 samples and 40"):
        SIMILARITIES[name](layer(torch.zeros(50, 3)), layer(torch.zeros(40, 3)))


@pytest.mark.parametrize("name", SIMILARITIES)
def test_other_labels_are_refused(name: str) -> None:
    x = torch.randn(40, 6, generator=generator(0))
    labels = torch.arange(40) % 4
    order = torch.randperm(40, generator=generator(1))
    differing = int((labels != labels[order]).sum())
    with pytest.raises(UserError, match=f"labels differ at {differing} of 40 samples.*shuffle"):
        SIMILARITIES[name](Layer(x, labels), Layer(x[order], labels[order]))
    assert not math.isnan(SIMILARITIES[name](Layer(x, labels), Layer(x, labels.to(torch.int32))))


def read(images: Tensor, labels: Tensor, shuffle: bool = False, scale: float = 1) -> Layer:
    """Read a layer of a network for images of 8 x 8 pixels."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    data = TensorDataset(scale * images, labels)
    (layer,) = capture(network, DataLoader(data, 16, shuffle=shuffle))
    return layer


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("name", SIMILARITIES)
def test_a_network_read_from_a_shuffling_loader_is_refused(name: str, num_classes: int) -> None:
    images, labels = torch.randn(40, 1, 8, 8, generator=generator(0)), torch.arange(40)
    one = read(images, labels % num_classes)
    same = read(images, labels % num_classes)
    assert SIMILARITIES[name](one, same) == pytest.approx(best(SIMILARITIES[name]), abs=2e-3)
    with pytest.raises(ValueError, match=r"of 40 samples.*same order.*shuffle=False"):
        SIMILARITIES[name](one, read(images, labels % num_classes, shuffle=True))


def test_the_same_samples_may_be_scaled_differently() -> None:
    images, labels = torch.randn(40, 1, 8, 8, generator=generator(0)), torch.arange(40) % 3
    images[::10] = 0  # equal at every scale, and to each other
    assert 0.9 < SIMILARITIES["cka"](read(images, labels), read(images, labels, scale=3)) <= 1


@pytest.mark.parametrize("name", SIMILARITIES)
def test_every_similarity_says_where_it_is_from(name: str) -> None:
    similarity = SIMILARITIES[name]
    assert similarity.source
    assert similarity.function.__doc__
    assert similarity.direction in ("lower", "higher")
