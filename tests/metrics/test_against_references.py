"""Each metric against scikit-learn, SciPy or a naive formula, at 2, 10 and 100 classes."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import scipy.stats
import torch
from numpy import ndarray
from scipy.optimize import curve_fit
from scipy.spatial.distance import cdist
from sklearn import metrics as sklearn_metrics
from sklearn.cluster import KMeans
from sklearn.linear_model import RidgeClassifier, RidgeClassifierCV
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import NearestNeighbors

from bnstudy.metrics import METRICS
from bnstudy.metrics.implicit_clustering import (
    adjusted_rand_index,
    normalized_mutual_information,
    purity,
)
from bnstudy.metrics.kmeans import kmeans, lloyd
from bnstudy.representations import Layer
from tests.metrics.samples import ALONE, sample, streamed

CASES = {
    "loose": {"spread": 1.0},
    "tight": {"spread": 0.01},
    "tight and far off": {"spread": 0.01, "offset": 100.0},
    "more units than samples": {"spread": 1.0, "count": 220, "shape": (7, 6, 6)},
    "few units": {"spread": 0.5, "shape": (15,)},
}


@cache
def layer_of(case: str, num_classes: int, stream: bool = False) -> tuple[Layer, ndarray, ndarray]:
    """Create a layer; return it, its activations as N x channels x positions, and its labels."""
    activations, labels = sample(num_classes, **CASES[case])  # type: ignore[arg-type]
    layer = (streamed if stream else Layer)(activations, labels)
    x = activations.reshape(*activations.shape[:2], -1).double().numpy()
    return layer, x, labels.numpy()


def flat(x: ndarray) -> ndarray:
    return x.reshape(len(x), -1)


def of_channels(x: ndarray) -> ndarray:
    return x.swapaxes(0, 1).reshape(x.shape[1], -1)


def varying(x: ndarray) -> ndarray:
    channels = of_channels(x)
    return channels[channels.std(1) > 0]


def hoyer(x: ndarray, y: ndarray) -> float:
    rows = flat(x)[flat(x).any(1)]
    root = math.sqrt(rows.shape[1])
    ratio = np.linalg.norm(rows, 1, axis=1) / np.linalg.norm(rows, axis=1)
    return ((root - ratio) / (root - 1)).mean()


def treves_rolls(x: ndarray) -> float:
    """Compute the mean sparseness of the rows that are not all 0."""
    scores = []
    for row in x[x.any(1)]:
        density = np.mean(np.abs(row)) ** 2 / np.mean(row**2)
        scores.append((1 - density) / (1 - 1 / len(row)))
    return float(np.mean(scores))


def within_between(x: ndarray, y: ndarray) -> float:
    distances = cdist(flat(x), flat(x))
    same = y[:, None] == y
    return distances[same & ~np.eye(len(y), dtype=bool)].mean() / distances[~same].mean()


def dunn(x: ndarray, y: ndarray) -> float:
    distances = cdist(flat(x), flat(x))
    same = y[:, None] == y
    return distances[~same].min() / distances[same].max()


def knn_purity(x: ndarray, y: ndarray) -> float:
    neighbours = NearestNeighbors(n_neighbors=10).fit(flat(x)).kneighbors(return_distance=False)
    return (y[neighbours] == y[:, None]).mean()


def variances(x: ndarray) -> ndarray:
    return np.linalg.eigvalsh(np.cov(flat(x).T))


def participation_ratio(x: ndarray, y: ndarray) -> float:
    return variances(x).sum() ** 2 / (variances(x) ** 2).sum()


def effective_rank(x: ndarray, y: ndarray) -> float:
    singular = np.linalg.svd(flat(x) - flat(x).mean(0), compute_uv=False)
    return math.exp(scipy.stats.entropy(singular / singular.sum()))


def stable_rank(x: ndarray, y: ndarray) -> float:
    centred = flat(x) - flat(x).mean(0)
    return float(np.linalg.norm(centred) ** 2 / np.linalg.norm(centred, 2) ** 2)


def soft_rank(x: ndarray, y: ndarray) -> float:
    gram = flat(x) @ flat(x).T
    return np.trace(gram) ** 2 / (gram**2).sum()


def mu(x: ndarray) -> ndarray:
    """Compute r2 / r1 of Facco et al. for each sample without duplicates, sorted."""
    distances = np.sort(cdist(flat(x), flat(x)), axis=1)
    distances = distances[distances[:, 1] > 0]
    return np.sort(distances[:, 2] / distances[:, 1])


def facco(ratios: ndarray) -> float:
    """Fit the line through the origin to the points (log mu, -log(1 - F)), F = i / N."""
    count = len(ratios)
    kept = int(0.9 * count)
    empirical = np.arange(1, count + 1) / count
    points = np.log(ratios[:kept]), -np.log(1 - empirical[:kept])
    (slope,), _ = curve_fit(lambda log_mu, d: d * log_mu, *points)
    return float(slope)


def anisotropy(x: ndarray, y: ndarray) -> float:
    rows = flat(x)[flat(x).any(1)]
    cosines = 1 - cdist(rows, rows, "cosine")
    return cosines[~np.eye(len(rows), dtype=bool)].mean()


def norms(x: ndarray) -> ndarray:
    return np.linalg.norm(flat(x), axis=1)


def class_means(x: ndarray, y: ndarray) -> ndarray:
    """Compute the class means minus the mean of all samples: C x D."""
    return np.stack([flat(x)[y == c].mean(0) for c in np.unique(y)]) - flat(x).mean(0)


def nc1(x: ndarray, y: ndarray) -> float:
    rows, count = flat(x), len(np.unique(y))
    within = np.zeros((rows.shape[1], rows.shape[1]))
    between = np.zeros_like(within)
    for label, mean in zip(np.unique(y), class_means(x, y), strict=True):
        own = rows[y == label]
        away = own - own.mean(0)
        within += away.T @ away / len(rows)
        between += len(own) / len(rows) * np.outer(mean, mean)
    return np.trace(within @ np.linalg.pinv(between, rcond=1e-9, hermitian=True)) / count


def nc2_norm(x: ndarray, y: ndarray) -> float:
    lengths = np.linalg.norm(class_means(x, y), axis=1)
    return lengths.std() / lengths.mean()


def nc2_angle(x: ndarray, y: ndarray) -> float:
    means = class_means(x, y)
    cosines = 1 - cdist(means, means, "cosine")
    count = len(means)
    return np.abs(cosines[~np.eye(count, dtype=bool)] + 1 / (count - 1)).mean()


def penalty_of(x: ndarray) -> float:
    return 0.1 * flat(x).var(0).sum()


def linear_probe(x: ndarray, y: ndarray) -> float:
    ridge = RidgeClassifierCV([penalty_of(x)], scoring="accuracy", store_cv_results=True)
    predictions = ridge.fit(flat(x), y).cv_results_[..., 0]
    if predictions.ndim == 1 or predictions.shape[1] == 1:
        return ((predictions.ravel() > 0) == (y > 0)).mean()
    return (predictions.argmax(1) == y).mean()


REFERENCES: dict[str, Callable[[ndarray, ndarray], float]] = {
    "unit_sparsity": lambda x, y: (x == 0).mean(),
    "channel_sparsity": lambda x, y: (x == 0).all(2).mean(),
    "unit_sparsity_channel_std": lambda x, y: (x == 0).mean((0, 2)).std(),
    "dead_channels": lambda x, y: (x == 0).all((0, 2)).mean(),
    "dead_units": lambda x, y: (x == 0).all(0).mean(),
    "hoyer": hoyer,
    "population_sparseness": lambda x, y: treves_rolls(flat(x)),
    "lifetime_sparseness": lambda x, y: treves_rolls(flat(x).T),
    "silhouette": lambda x, y: sklearn_metrics.silhouette_score(flat(x), y),
    "davies_bouldin": lambda x, y: sklearn_metrics.davies_bouldin_score(flat(x), y),
    "calinski_harabasz": lambda x, y: sklearn_metrics.calinski_harabasz_score(flat(x), y),
    "dunn": dunn,
    "within_between_ratio": within_between,
    "knn_purity": knn_purity,
    "participation_ratio": participation_ratio,
    "effective_rank": effective_rank,
    "stable_rank": stable_rank,
    "soft_rank": soft_rank,
    "intrinsic_dimension": lambda x, y: facco(mu(x)),
    "anisotropy": anisotropy,
    "norm_mean": lambda x, y: norms(x).mean(),
    "norm_cv": lambda x, y: norms(x).std() / norms(x).mean(),
    "nc1": nc1,
    "nc2_norm": nc2_norm,
    "nc2_angle": nc2_angle,
    "linear_probe": linear_probe,
    "mean": lambda x, y: of_channels(x).mean(),
    "variance": lambda x, y: of_channels(x).var(1).mean(),
    "skewness": lambda x, y: scipy.stats.skew(varying(x), axis=1).mean(),
    "kurtosis": lambda x, y: scipy.stats.kurtosis(varying(x), axis=1).mean(),
    "saturation": lambda x, y: (x <= 0).mean(),
}
# Tested separately, because k-means depends on its starts and the bootstrap on its draws.
APART = {
    "kmeans_purity",
    "kmeans_nmi",
    "kmeans_ari",
    "best_k",
    "best_k_silhouette",
    "intraclass_silhouette",
    "intrinsic_dimension_error",
}


def test_every_metric_has_a_reference() -> None:
    assert set(ALONE) == {*REFERENCES, *APART}


@pytest.mark.parametrize("num_classes", [2, 10, 100])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", REFERENCES)
def test_a_metric_agrees_with_its_reference(name: str, case: str, num_classes: int) -> None:
    layer, x, y = layer_of(case, num_classes)
    theirs = REFERENCES[name](x, y)
    assert METRICS[name](layer) == pytest.approx(theirs, rel=2e-5, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ALONE)
def test_a_layer_read_in_blocks_has_the_same_numbers(name: str, case: str) -> None:
    (whole, _, _), (blocks, _, _) = layer_of(case, 10), layer_of(case, 10, stream=True)
    assert blocks.activations is None
    assert METRICS[name](blocks) == pytest.approx(METRICS[name](whole), rel=2e-4, abs=1e-6)


def test_class_numbers_need_not_be_dense_nor_every_class_large() -> None:
    activations, labels = sample(5, 1.0, count=60)
    labels = labels * 7 + 3
    labels[0] = 1000  # alone in its class
    x, y = activations.flatten(2).double().numpy(), labels.numpy()
    layer = Layer(activations, labels)
    for name in ("silhouette", "davies_bouldin", "calinski_harabasz", "nc1", "dunn", "knn_purity"):
        assert METRICS[name](layer) == pytest.approx(REFERENCES[name](x, y), rel=1e-4)


def test_channels_and_samples_of_zeros_count_as_in_the_references() -> None:
    activations, labels = sample(3, 1.0, count=200)
    activations[:, 2] = 0  # a dead channel
    activations[:50, 4] = 0  # a channel that is 0 in some samples
    activations[:7] = 0  # samples without any activation
    x, y = activations.flatten(2).double().numpy(), labels.numpy()
    layer = Layer(activations, labels)
    for name in (name for name in REFERENCES if METRICS[name].family in ("sparsity", "statistics")):
        assert METRICS[name](layer) == pytest.approx(REFERENCES[name](x, y), rel=1e-4)
    assert METRICS["anisotropy"](layer) == pytest.approx(anisotropy(x, y), rel=1e-4)
    assert METRICS["dead_channels"](layer) == pytest.approx(1 / 6)

    fully_connected = Layer(activations[:, :, 0, 0], labels)  # units are channels
    assert METRICS["channel_sparsity"](fully_connected) == pytest.approx(
        METRICS["unit_sparsity"](fully_connected)
    )


@pytest.mark.parametrize("offset", [0.0, 100.0, -1e4])
def test_moments_are_right_for_a_narrow_channel_far_from_zero(offset: float) -> None:
    draws = np.random.default_rng(0).gamma(2.0, 1.0, size=(500, 3, 16))
    activations = torch.from_numpy(draws).float() + offset
    layer, x = (
        Layer(activations, torch.zeros(500).long()),
        of_channels(activations.double().numpy()),
    )
    assert METRICS["variance"](layer) == pytest.approx(x.var(1).mean(), rel=1e-4)
    assert METRICS["skewness"](layer) == pytest.approx(scipy.stats.skew(x, 1).mean(), rel=5e-3)
    assert METRICS["kurtosis"](layer) == pytest.approx(scipy.stats.kurtosis(x, 1).mean(), rel=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("num_classes", "shape"), [(2, (40,)), (10, (150,)), (25, (20,))])
def test_linear_probe_agrees_with_a_refit_without_each_sample(
    num_classes: int, shape: tuple[int, ...]
) -> None:
    activations, labels = sample(num_classes, 2.0, count=100, shape=shape)
    x, y = activations.double().numpy(), labels.numpy()
    left_out = cross_val_predict(RidgeClassifier(penalty_of(x)), x, y, cv=LeaveOneOut())
    assert METRICS["linear_probe"](Layer(activations, labels)) == pytest.approx(
        (left_out == y).mean()
    )


@pytest.mark.parametrize("num_classes", [10, 100])
def test_the_error_of_the_intrinsic_dimension_agrees_with_a_bootstrap(num_classes: int) -> None:
    layer, x, _ = layer_of("loose", num_classes)
    random = np.random.default_rng(0)
    ratios = mu(x)
    fits = [facco(np.sort(random.choice(ratios, len(ratios)))) for _ in range(300)]
    assert METRICS["intrinsic_dimension_error"](layer) == pytest.approx(np.std(fits), rel=0.3)


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_scores_of_a_clustering_agree_with_scikit_learn(num_classes: int) -> None:
    random = np.random.default_rng(0)
    truth = random.integers(num_classes, size=3000)
    clusters = np.where(random.random(3000) < 0.5, truth, random.integers(7, size=3000))
    table = torch.tensor(sklearn_metrics.cluster.contingency_matrix(truth, clusters)).double()
    assert normalized_mutual_information(table) == pytest.approx(
        sklearn_metrics.normalized_mutual_info_score(truth, clusters)
    )
    assert adjusted_rand_index(table) == pytest.approx(
        sklearn_metrics.adjusted_rand_score(truth, clusters)
    )
    assert purity(table) == pytest.approx(
        sum(np.bincount(truth[clusters == c]).max() for c in set(clusters)) / 3000
    )


def test_scores_of_a_clustering_agree_with_a_published_example() -> None:
    # Manning, Raghavan and Schuetze 2008, figure 16.4 and table 16.2: purity 0.71, NMI 0.36.
    table = torch.tensor([[5, 1, 2], [1, 4, 0], [0, 1, 3]]).double()
    assert purity(table) == pytest.approx(0.71, abs=0.005)
    assert normalized_mutual_information(table) == pytest.approx(0.36, abs=0.005)


@pytest.mark.parametrize("k", [3, 10, 40])
def test_lloyd_goes_where_scikit_learn_goes(k: int) -> None:
    activations, _ = sample(10, 0.7, count=800, seed=k)
    x = activations.flatten(1).double()
    squared = torch.cdist(x, x).square()
    start = squared[torch.arange(k) * 17].argmin(0)
    means = torch.stack([x[start == c].mean(0) for c in range(k)])
    reference = KMeans(k, init=means.numpy(), n_init=1, tol=0, max_iter=100).fit(x.numpy())
    clusters, spreads = lloyd(squared.float(), start[None], k)
    assert sklearn_metrics.adjusted_rand_score(reference.labels_, clusters[0].numpy()) == 1
    assert spreads.item() == pytest.approx(reference.inertia_, rel=1e-4)


def test_many_starts_of_lloyd_go_where_each_goes_alone() -> None:
    activations, _ = sample(10, 0.7, count=300)
    squared = Layer(activations, torch.zeros(300)).squared_distances
    starts = torch.randint(12, (9, 300), generator=torch.Generator().manual_seed(0))
    starts[3] = starts[3] % 4  # some clusters are empty
    together, spreads = lloyd(squared, starts, 12)
    for start, clusters, spread in zip(starts, together, spreads, strict=True):
        alone, its_spread = lloyd(squared, start[None], 12)
        assert (alone[0] == clusters).double().mean() > 0.98  # sums may round in another order
        assert its_spread.item() == pytest.approx(spread.item(), rel=1e-5)


@pytest.mark.parametrize("num_classes", [10, 100])
def test_kmeans_is_as_good_as_scikit_learns(num_classes: int) -> None:
    layer, x, _ = layer_of("loose", num_classes)
    ks = [2, num_classes, 30]
    for k, clusters in zip(ks, kmeans(layer.squared_distances, ks, restarts=5), strict=True):
        groups = [flat(x)[clusters.numpy() == c] for c in range(k)]
        inertia = sum(((group - group.mean(0)) ** 2).sum() for group in groups if len(group))
        reference = KMeans(k, n_init=5, random_state=0).fit(flat(x))
        assert inertia <= 1.02 * reference.inertia_


@pytest.mark.parametrize("case", ["tight", "loose"])
@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_kmeans_metrics_agree_with_scikit_learn(num_classes: int, case: str) -> None:
    layer, x, y = layer_of(case, num_classes)
    found = KMeans(num_classes, n_init=10, random_state=0).fit_predict(flat(x))
    table = sklearn_metrics.cluster.contingency_matrix(y, found)
    room = 0.02 if case == "tight" else 0.06  # another local optimum
    ours = {name: METRICS[name](layer) for name in ("kmeans_purity", "kmeans_nmi", "kmeans_ari")}
    assert ours["kmeans_purity"] == pytest.approx(table.max(0).sum() / len(y), abs=room)
    assert ours["kmeans_nmi"] == pytest.approx(
        sklearn_metrics.normalized_mutual_info_score(y, found), abs=room
    )
    assert ours["kmeans_ari"] == pytest.approx(
        sklearn_metrics.adjusted_rand_score(y, found), abs=room
    )


def best_silhouette(x: ndarray, ks: range) -> float:
    """Compute the highest silhouette of k-means clusters."""
    found = [KMeans(k, n_init=2, random_state=0).fit_predict(x) for k in ks]
    return max(sklearn_metrics.silhouette_score(x, clusters) for clusters in found)


@pytest.mark.parametrize("case", ["tight", "loose"])
def test_the_best_k_has_the_highest_silhouette(case: str) -> None:
    activations, labels = sample(10, **CASES[case] | {"count": 120})  # type: ignore[arg-type]
    layer, x = Layer(activations, labels), activations.flatten(1).double().numpy()
    k, score = METRICS["best_k"](layer), METRICS["best_k_silhouette"](layer)
    found = KMeans(int(k), n_init=10, random_state=0).fit_predict(x)
    assert sklearn_metrics.silhouette_score(x, found) == pytest.approx(score, abs=0.03)
    assert score >= best_silhouette(x, range(2, 31)) - 0.02


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_the_silhouette_inside_classes_is_the_mean_of_their_best(num_classes: int) -> None:
    activations, labels = sample(num_classes, 0.3, count=50 + 3 * num_classes, shape=(10,))
    x, y = activations.double().numpy(), labels.numpy()
    classes = [x[y == c] for c in range(num_classes) if (y == c).sum() > 2]
    scores = [best_silhouette(one, range(2, min(8, len(one) - 1) + 1)) for one in classes]
    ours = METRICS["intraclass_silhouette"](Layer(activations, labels))
    assert ours == pytest.approx(np.mean(scores), abs=0.01)
