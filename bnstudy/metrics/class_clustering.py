"""Cluster validity indices that treat the classes as clusters.

Example:
    >>> layer = Layer(torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1]))
    >>> round(silhouette(layer), 4), dunn(layer)
    (0.746, 3.0)
"""

import math

import torch
from torch import Tensor

from bnstudy.metrics.registry import ROTATION_SCALE_TRANSLATION, Need, Undefined, metric
from bnstudy.representations import Layer
from bnstudy.representations.layer import NUM_NEIGHBOURS

MIN_DISPERSION = 1e-36  # smaller sums of squares may have underflowed float32
NEEDS: tuple[Need, ...] = ("classes", "distances")


def silhouette_score(distance_sums: Tensor, clusters: Tensor) -> float:
    """Compute the silhouette score of any clusters (Rousseeuw 1987).

    Args:
        distance_sums: Sums of each sample's distances to the samples of each cluster: N x k.
        clusters: Cluster of each sample: int64, N. Clusters may be empty.

    Returns:
        Silhouette score, from -1 to 1; NaN if there is only one cluster.
    """
    sizes = torch.bincount(clusters, minlength=distance_sums.shape[1])
    own = clusters[:, None]
    within = distance_sums.gather(1, own) / (sizes[own] - 1).clamp_min(1)
    means = torch.where(sizes > 0, distance_sums / sizes, math.inf)
    nearest = means.scatter(1, own, math.inf).amin(1, keepdim=True)
    if nearest.isinf().any():
        return math.nan
    score = (nearest - within) / torch.maximum(nearest, within)
    # A score of 0 / 0, where nearest and within are both 0, counts as 0.
    score = score.masked_fill(sizes[own] == 1, 0).nan_to_num(0)
    return score.double().mean().item()


def _distance_sums(layer: Layer) -> Tensor:
    """Sum each sample's distances to the samples of each class: float32, N x C."""
    return layer.distances @ layer.membership


def _within_dispersion(layer: Layer) -> float:
    """Sum the squared distances of the samples to their class means.

    Raises:
        Undefined: No class has any spread.
    """
    dispersion = layer.class_sums.residual_norms_squared.double().sum().item()
    if dispersion < MIN_DISPERSION:
        raise Undefined("no class has any spread: the index is infinite")
    return dispersion


@metric(
    direction="higher",
    bounds=(-1, 1),
    invariant_to=ROTATION_SCALE_TRANSLATION,
    needs=NEEDS,
    source="Rousseeuw 1987, doi 10.1016/0377-0427(87)90125-7",
)
def silhouette(layer: Layer) -> float:
    """Mean of (b - a) / max(a, b); a, b: mean distances to the own and the nearest other class.

    For each sample, a is the mean distance to the other samples of its class, and b is the mean
    distance to the samples of the nearest other class. A sample that is alone in its class counts
    as 0.
    """
    if layer.num_classes == layer.num_samples:
        raise Undefined("every class has only one sample")
    return silhouette_score(layer.shared(_distance_sums), layer.classes)


@metric(
    direction="lower",
    bounds=(0, math.inf),
    invariant_to=ROTATION_SCALE_TRANSLATION,
    needs=["classes", "variation"],
    source="Davies and Bouldin 1979, doi 10.1109/TPAMI.1979.4766909",
)
def davies_bouldin(layer: Layer) -> float:
    """Mean over classes of max (s_a + s_b) / d_ab; s: spread of a class, d: distance of means.

    s_a is the mean distance of the samples of class a to their mean, and d_ab is the distance
    between the means of classes a and b. The maximum is over the other classes b.
    """
    sums = layer.precise_class_sums
    weights = layer.membership.double() / layer.class_sizes
    mean_distances_to_centroid = weights.T @ sums.residual_norms_squared.double().sqrt()
    is_other_class = torch.ones_like(sums.class_means_gram, dtype=torch.bool).fill_diagonal_(False)
    if not sums.class_mean_distances_squared[is_other_class].all():
        raise Undefined("the means of two classes are the same: the index is infinite")
    distances = sums.class_mean_distances_squared.sqrt().fill_diagonal_(math.inf)
    spread_sums = mean_distances_to_centroid[:, None] + mean_distances_to_centroid
    return (spread_sums / distances).amax(1).mean().item()


@metric(
    direction="higher",
    bounds=(0, math.inf),
    invariant_to=ROTATION_SCALE_TRANSLATION,
    needs=["classes", "variation"],
    source="Calinski and Harabasz 1974, doi 10.1080/03610927408827101",
)
def calinski_harabasz(layer: Layer) -> float:
    """Between-class dispersion / (C - 1), divided by within-class dispersion / (N - C)."""
    squared_norms = layer.precise_class_sums.class_means_gram.diagonal()
    between = (layer.class_sizes * squared_norms).sum().item()
    within = layer.shared(_within_dispersion)
    df_ratio = (layer.num_samples - layer.num_classes) / (layer.num_classes - 1)
    return between / within * df_ratio


@metric(
    direction="higher",
    bounds=(0, math.inf),
    invariant_to=ROTATION_SCALE_TRANSLATION,
    needs=NEEDS,
    source="Dunn 1974, doi 10.1080/01969727408546059",
)
def dunn(layer: Layer) -> float:
    """Smallest distance between samples of different classes / largest distance within a class."""
    layer.shared(_within_dispersion)  # raises Undefined if no class has any spread
    between, within = math.inf, 0.0
    for number in range(layer.num_classes):
        same = layer.classes == number
        rows = layer.squared_distances[same]
        within = max(within, rows[:, same].max().item())
        between = min(between, rows[:, ~same].min().item())
    return math.sqrt(between / within)


@metric(
    direction="lower",
    bounds=(0, math.inf),
    invariant_to=ROTATION_SCALE_TRANSLATION,
    needs=NEEDS,
    source="wb.ratio of cluster.stats in R's fpc, with equal weights of all pairs",
)
def within_between_ratio(layer: Layer) -> float:
    """Mean distance within classes / mean distance between samples of different classes."""
    sums, sizes = layer.shared(_distance_sums).double(), layer.class_sizes
    within = sums.gather(1, layer.classes[:, None]).sum().item()
    pairs_within = (sizes * (sizes - 1)).sum().item()
    pairs_between = layer.num_samples**2 - sizes.square().sum().item()
    if pairs_within == 0:
        raise Undefined("every class has only one sample")
    between = sums.sum().item() - within
    if between == 0:
        raise Undefined("samples of different classes have the same representation")
    return within / pairs_within / (between / pairs_between)


@metric(
    direction="higher",
    bounds=(0, 1),
    invariant_to=ROTATION_SCALE_TRANSLATION,
    needs=NEEDS,
    source="Cover and Hart 1967, doi 10.1109/TIT.1967.1053964; leave-one-out",
)
def knn_purity(layer: Layer) -> float:
    """Share of a sample's 10 nearest neighbours that are of its class, mean over samples."""
    if layer.num_samples <= NUM_NEIGHBOURS:
        raise Undefined(f"there are fewer than {NUM_NEIGHBOURS + 1} samples")
    same = layer.classes[layer.neighbours.indices] == layer.classes[:, None]
    return same.double().mean().item()
