"""Each metric against scikit-learn or a naive formula, at 10 and at 100 classes."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from bnstudy.metrics import METRICS
from bnstudy.metrics.implicit_clustering import (
    adjusted_rand_index,
    normalized_mutual_information,
    purity,
)
from bnstudy.metrics.kmeans import kmeans, lloyd
from bnstudy.representations import Layer


def sample(
    num_classes: int, spread: float, count: int = 1200, offset: float = 0.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Images of activations after a ReLU, N x 6 x 5 x 5, around a centre for each class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (count,), generator=generator)
    centres = torch.randn(num_classes, 6, 5, 5, generator=generator)
    noise = torch.randn(count, 6, 5, 5, generator=generator)
    return torch.relu(centres[labels] + spread * noise) + offset, labels


def naive_within_between(x: np.ndarray, y: np.ndarray) -> float:
    distances = sklearn_metrics.pairwise_distances(x)
    same = y[:, None] == y
    pairs = ~np.eye(len(y), dtype=bool)
    return float(distances[same & pairs].mean() / distances[~same].mean())


def naive_knn_purity(x: np.ndarray, y: np.ndarray) -> float:
    neighbours = NearestNeighbors(n_neighbors=10).fit(x).kneighbors(return_distance=False)
    return float((y[neighbours] == y[:, None]).mean())


REFERENCES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "silhouette": sklearn_metrics.silhouette_score,
    "davies_bouldin": sklearn_metrics.davies_bouldin_score,
    "calinski_harabasz": sklearn_metrics.calinski_harabasz_score,
    "within_between_ratio": naive_within_between,
    "knn_purity": naive_knn_purity,
}


@pytest.mark.parametrize("num_classes", [2, 10, 100])
@pytest.mark.parametrize(
    ("spread", "offset"),
    [(1.0, 0.0), (0.01, 0.0), (0.01, 100.0)],
    ids=["loose", "tight", "tight-and-far-off"],
)
@pytest.mark.parametrize("name", REFERENCES)
def test_class_clustering(name: str, num_classes: int, spread: float, offset: float) -> None:
    activations, labels = sample(num_classes, spread, offset=offset)
    ours = METRICS[name](Layer(activations, labels))
    theirs = REFERENCES[name](activations.flatten(1).double().numpy(), labels.numpy())
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_class_numbers_need_not_be_dense_nor_every_class_large() -> None:
    activations, labels = sample(5, 1.0, count=60)
    labels = labels * 7 + 3
    labels[0] = 1000  # alone in its class
    x, y = activations.flatten(1).double().numpy(), labels.numpy()
    layer = Layer(activations, labels)
    for name in ("silhouette", "davies_bouldin", "calinski_harabasz"):
        assert METRICS[name](layer) == pytest.approx(REFERENCES[name](x, y), rel=1e-4)


def test_sparsity_is_counted_as_defined() -> None:
    activations, labels = sample(3, 1.0, count=200)
    activations[:, 2] = 0  # a dead channel
    activations[:50, 4] = 0
    x = activations.numpy()
    maps = (x == 0).all((2, 3))
    layer = Layer(activations, labels)
    assert METRICS["unit_sparsity"](layer) == pytest.approx((x == 0).mean())
    assert METRICS["channel_sparsity"](layer) == pytest.approx(maps.mean())
    assert METRICS["dead_channels"](layer) == pytest.approx(maps.all(0).mean()) == 1 / 6

    flat = Layer(activations[:, :, 0, 0], labels)  # a fully connected layer: units are channels
    assert METRICS["channel_sparsity"](flat) == METRICS["unit_sparsity"](flat)


def test_sparsity_does_not_depend_on_the_memory_format() -> None:
    activations, labels = sample(3, 1.0, count=100)
    last = activations.to(memory_format=torch.channels_last)
    for name in METRICS:
        assert METRICS[name](Layer(last, labels)) == pytest.approx(
            METRICS[name](Layer(activations, labels)), rel=1e-5
        )


@pytest.mark.parametrize("num_classes", [10, 100])
def test_scores_of_a_clustering(num_classes: int) -> None:
    generator = np.random.default_rng(0)
    classes = generator.integers(num_classes, size=3000)
    clusters = np.where(generator.random(3000) < 0.5, classes, generator.integers(7, size=3000))
    table = torch.tensor(sklearn_metrics.cluster.contingency_matrix(classes, clusters)).double()
    assert normalized_mutual_information(table) == pytest.approx(
        sklearn_metrics.normalized_mutual_info_score(classes, clusters)
    )
    assert adjusted_rand_index(table) == pytest.approx(
        sklearn_metrics.adjusted_rand_score(classes, clusters)
    )
    assert purity(table) == pytest.approx(
        sum(np.bincount(classes[clusters == c]).max() for c in set(clusters)) / 3000
    )


@pytest.mark.parametrize("k", [3, 10, 40])
def test_lloyd_goes_where_scikit_learn_goes(k: int) -> None:
    activations, _ = sample(10, 0.7, count=800, seed=k)
    x = activations.flatten(1).double()
    squared = torch.cdist(x, x).square()
    chosen = torch.arange(k) * 17
    start = squared[chosen].argmin(0)
    means = torch.stack([x[start == c].mean(0) for c in range(k)])
    reference = KMeans(k, init=means.numpy(), n_init=1, tol=0, max_iter=100).fit(x.numpy())
    ours = lloyd(squared.float(), start[None], k)
    assert sklearn_metrics.adjusted_rand_score(reference.labels_, ours.numpy()) == 1


def test_kmeans_is_as_good_as_scikit_learns() -> None:
    activations, _ = sample(10, 1.0, count=1000)
    x = activations.flatten(1).double()
    clusters = kmeans(torch.cdist(x, x).square().float(), 10, restarts=5)
    inertia = sum(
        ((x[clusters == c] - x[clusters == c].mean(0)) ** 2).sum().item() for c in range(10)
    )
    reference = KMeans(10, n_init=5, random_state=0).fit(x.numpy())
    assert inertia <= 1.01 * reference.inertia_


@pytest.mark.parametrize("num_classes", [10, 100])
def test_kmeans_metrics_of_separated_classes(num_classes: int) -> None:
    activations, labels = sample(num_classes, 0.01, count=1500)
    layer = Layer(activations, labels)
    found = KMeans(num_classes, n_init=10, random_state=0).fit_predict(activations.flatten(1))
    reference = sklearn_metrics.adjusted_rand_score(labels, found)
    if num_classes == 10:
        assert METRICS["kmeans_ari"](layer) == pytest.approx(1)
        assert METRICS["kmeans_nmi"](layer) == pytest.approx(1)
        assert METRICS["kmeans_purity"](layer) == 1
    assert METRICS["kmeans_ari"](layer) > reference - 0.05


def test_nothing_is_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    from bnstudy.representations import layer as module

    calls = []
    gram = module._gram
    monkeypatch.setattr(module, "_gram", lambda x: calls.append(len(x)) or gram(x))
    layer = Layer(*sample(10, 1.0, count=200))
    values = [metric(layer) for metric in METRICS.values()]
    assert not any(map(math.isnan, values))
    assert calls == [200]
