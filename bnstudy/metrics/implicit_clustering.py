"""Clusters that k-means finds in the representations, and their agreement with the classes.

Example:
    >>> layer = Layer(torch.tensor([[0.0], [1.0], [7.0], [8.0]]), torch.tensor([0, 0, 1, 1]))
    >>> kmeans_purity(layer), best_k(layer)
    (1.0, 2)
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from bnstudy.metrics.class_clustering import NEEDS, silhouette_score
from bnstudy.metrics.kmeans import kmeans
from bnstudy.metrics.registry import ROTATION_SCALE_TRANSLATION, Undefined, metric
from bnstudy.representations import Layer

NUM_RESTARTS = 5
NUM_RESTARTS_PER_K = 3  # if many numbers of clusters are tried
MAX_CLUSTERS = 30
MAX_CLUSTERS_WITHIN_CLASS = 8


def _contingency(layer: Layer) -> Tensor:
    """Count the samples of each class in each of C k-means clusters: float64, C x C."""
    if layer.num_classes == layer.num_samples:
        raise Undefined("every class has only one sample")
    (clusters,) = kmeans(layer.squared_distances, [layer.num_classes], NUM_RESTARTS)
    in_cluster = one_hot(clusters, layer.num_classes).float()
    return (layer.membership.T @ in_cluster).double()


def purity(contingency: Tensor) -> float:
    """Compute the share of samples whose class is the most frequent one in their cluster.

    Args:
        contingency: Number of samples of each class in each cluster: classes x clusters.

    Example:
        >>> purity(torch.tensor([[3.0, 1.0], [0.0, 4.0]]))
        0.875
    """
    return (contingency.amax(0).sum() / contingency.sum()).item()


def normalized_mutual_information(contingency: Tensor) -> float:
    """Compute mutual information / mean entropy of classes and clusters; 0 for one cluster."""
    joint = contingency / contingency.sum()
    rows, columns = joint.sum(1), joint.sum(0)
    independent = rows[:, None] * columns
    information = (joint * (joint / independent).log()).nansum()
    entropy = -(rows.xlogy(rows).sum() + columns.xlogy(columns).sum()) / 2
    return (information / entropy).clamp(0, 1).item()


def adjusted_rand_index(contingency: Tensor) -> float:
    """Compute the Rand index, corrected to 0 for random clusters (Hubert and Arabie 1985)."""
    pairs = (contingency * (contingency - 1)).sum() / 2
    rows, columns = (
        (sums * (sums - 1)).sum() / 2 for sums in (contingency.sum(1), contingency.sum(0))
    )
    count = contingency.sum()
    expected = rows * columns / (count * (count - 1) / 2)
    return ((pairs - expected) / ((rows + columns) / 2 - expected)).item()


@metric(
    direction="higher",
    bounds=(0, 1),
    invariant_to=ROTATION_SCALE_TRANSLATION,
    needs=NEEDS,
    source="k-means with k = number of classes; Manning et al. 2008, chapter 16.3",
)
def kmeans_purity(layer: Layer) -> float:
    """Share of samples whose class is the most frequent one in their k-means cluster."""
    return purity(layer.shared(_contingency))


@metric(
    direction="higher",
    bounds=(0, 1),
    invariant_to=ROTATION_SCALE_TRANSLATION,
    needs=NEEDS,
    source="k-means with k = number of classes; Strehl and Ghosh 2002, arithmetic normalization",
)
def kmeans_nmi(layer: Layer) -> float:
    """Normalized mutual information of the k-means clusters and the classes."""
    return normalized_mutual_information(layer.shared(_contingency))


@metric(
    direction="higher",
    bounds=(-0.5, 1),
    invariant_to=ROTATION_SCALE_TRANSLATION,
    needs=NEEDS,
    source="k-means with k = number of classes; Hubert and Arabie 1985, doi 10.1007/BF01908075",
)
def kmeans_ari(layer: Layer) -> float:
    """Adjusted Rand index of the k-means clusters and the classes."""
    return adjusted_rand_index(layer.shared(_contingency))


def _best_k(layer: Layer) -> tuple[int, float]:
    """Return the number of k-means clusters with the highest silhouette, and that silhouette."""
    if layer.num_samples <= 2:
        raise Undefined("there are fewer than 3 samples")
    max_clusters = min(MAX_CLUSTERS, layer.num_samples - 1)
    return best_number_of_clusters(layer.squared_distances, layer.distances, max_clusters)


def best_number_of_clusters(
    squared_distances: Tensor, distances: Tensor, max_clusters: int
) -> tuple[int, float]:
    """Find the number of k-means clusters with the highest silhouette.

    Args:
        squared_distances: Squared distances between N samples: N x N, not all 0.
        distances: Distances between the samples: N x N.
        max_clusters: Largest number of clusters to try, less than N. The smallest is 2.

    Returns:
        Number of clusters, and their silhouette.
    """
    ks = range(2, max_clusters + 1)
    clusterings = kmeans(squared_distances, ks, NUM_RESTARTS_PER_K)
    members = [one_hot(assignment, k) for k, assignment in zip(ks, clusterings, strict=True)]
    sums = (distances @ torch.cat(members, 1).to(distances.dtype)).split(list(ks), dim=1)
    scores = [silhouette_score(*pair) for pair in zip(sums, clusterings, strict=True)]
    best = max(range(len(ks)), key=lambda i: -math.inf if math.isnan(scores[i]) else scores[i])
    return ks[best], scores[best]


@metric(
    direction=None,
    bounds=(2, MAX_CLUSTERS),
    invariant_to=ROTATION_SCALE_TRANSLATION,
    needs=["distances"],
    source=f"k-means, k = 2 to {MAX_CLUSTERS}; Rousseeuw 1987",
)
def best_k(layer: Layer) -> float:
    """Number of k-means clusters, from 2 to 30, with the highest silhouette."""
    return layer.shared(_best_k)[0]


@metric(
    direction="higher",
    bounds=(-1, 1),
    invariant_to=ROTATION_SCALE_TRANSLATION,
    needs=["distances"],
    source=f"k-means, k = 2 to {MAX_CLUSTERS}; Rousseeuw 1987",
)
def best_k_silhouette(layer: Layer) -> float:
    """Highest silhouette of k-means clusterings with 2 to 30 clusters."""
    return layer.shared(_best_k)[1]


@metric(
    direction="higher",
    bounds=(-1, 1),
    invariant_to=ROTATION_SCALE_TRANSLATION,
    needs=["distances"],
    source="after Carbonnelle and De Vleeschouwer 2021",
)
def intraclass_silhouette(layer: Layer) -> float:
    """Highest silhouette of k-means with 2 to 8 clusters within a class, mean over classes.

    The value is high if classes split into groups. Classes with fewer than 3 samples, and classes
    whose samples are all the same, are left out.
    """
    scores = []
    for number, size in enumerate(layer.class_sizes.tolist()):
        members = (layer.classes == number).nonzero().flatten()
        inside = layer.squared_distances[members][:, members]
        if size > 2 and inside.any():
            max_clusters = min(MAX_CLUSTERS_WITHIN_CLASS, size - 1)
            scores.append(best_number_of_clusters(inside, inside.sqrt(), max_clusters)[1])
    if not scores:
        raise Undefined("no class has 3 samples that are not all the same")
    return sum(scores) / len(scores)
