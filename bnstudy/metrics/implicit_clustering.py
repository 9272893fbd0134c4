"""The clusters that representations form by themselves, against the classes or on their own."""

import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from bnstudy.metrics.class_clustering import MOTIONS, NEEDS, silhouette_score
from bnstudy.metrics.kmeans import kmeans
from bnstudy.metrics.registry import Undefined, metric
from bnstudy.representations import Layer

RESTARTS = 5
RESTARTS_OF_EACH_K = 3  # where many numbers of clusters are tried
MOST_CLUSTERS = 30
MOST_GROUPS = 8  # inside a class


def _contingency(layer: Layer) -> Tensor:
    """Samples of each class in each of C clusters of k-means: float64, C x C."""
    if layer.num_classes == layer.num_samples:
        raise Undefined("every sample is a class of its own")
    (clusters,) = kmeans(layer.squared_distances, [layer.num_classes], RESTARTS)
    in_cluster = one_hot(clusters, layer.num_classes).float()
    return (layer.membership.T @ in_cluster).double()


def purity(contingency: Tensor) -> float:
    """Share of samples whose class is the most frequent one of their cluster."""
    return (contingency.amax(0).sum() / contingency.sum()).item()


def normalized_mutual_information(contingency: Tensor) -> float:
    """Mutual information over the arithmetic mean of the two entropies; 0 for a single cluster."""
    joint = contingency / contingency.sum()
    rows, columns = joint.sum(1), joint.sum(0)
    independent = rows[:, None] * columns
    information = (joint * (joint / independent).log()).nansum()
    entropy = -(rows.xlogy(rows).sum() + columns.xlogy(columns).sum()) / 2
    return (information / entropy).clamp(0, 1).item()


def adjusted_rand_index(contingency: Tensor) -> float:
    """Rand index corrected for chance (Hubert and Arabie 1985): 0 expected for random clusters."""
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
    invariant_to=MOTIONS,
    needs=NEEDS,
    source="k-means with k = number of classes; Manning et al. 2008, chapter 16.3",
)
def kmeans_purity(layer: Layer) -> float:
    """Share of samples whose class is the most frequent one of their k-means cluster."""
    return purity(layer.shared(_contingency))


@metric(
    direction="higher",
    bounds=(0, 1),
    invariant_to=MOTIONS,
    needs=NEEDS,
    source="k-means with k = number of classes; Strehl and Ghosh 2002, arithmetic normalization",
)
def kmeans_nmi(layer: Layer) -> float:
    """Normalized mutual information of the k-means clusters and the classes."""
    return normalized_mutual_information(layer.shared(_contingency))


@metric(
    direction="higher",
    bounds=(-0.5, 1),
    invariant_to=MOTIONS,
    needs=NEEDS,
    source="k-means with k = number of classes; Hubert and Arabie 1985, doi 10.1007/BF01908075",
)
def kmeans_ari(layer: Layer) -> float:
    """Adjusted Rand index of the k-means clusters and the classes."""
    return adjusted_rand_index(layer.shared(_contingency))


def _best_k(layer: Layer) -> tuple[int, float]:
    """The number of clusters of k-means with the highest silhouette, and that silhouette."""
    if layer.num_samples <= 2:
        raise Undefined("there are fewer than 3 samples")
    most = min(MOST_CLUSTERS, layer.num_samples - 1)
    return best_number_of_clusters(layer.squared_distances, layer.distances, most)


def best_number_of_clusters(
    squared_distances: Tensor, distances: Tensor, most: int
) -> tuple[int, float]:
    """The k from 2 to `most` whose k-means clusters have the highest silhouette, and that one.

    Args:
        squared_distances: Between N samples, N x N; not all 0.
        distances: Their square roots.
        most: Below N.
    """
    ks = range(2, most + 1)
    clusterings = kmeans(squared_distances, ks, RESTARTS_OF_EACH_K)
    members = [one_hot(found, k) for k, found in zip(ks, clusterings, strict=True)]
    sums = (distances @ torch.cat(members, 1).to(distances.dtype)).split(list(ks), dim=1)
    scores = [silhouette_score(*one) for one in zip(sums, clusterings, strict=True)]
    best = max(range(len(ks)), key=lambda i: -math.inf if math.isnan(scores[i]) else scores[i])
    return ks[best], scores[best]


@metric(
    direction=None,
    bounds=(2, MOST_CLUSTERS),
    invariant_to=MOTIONS,
    needs=["distances"],
    source=f"k-means, k = 2 to {MOST_CLUSTERS}; Rousseeuw 1987",
)
def best_k(layer: Layer) -> float:
    """Number of k-means clusters, from 2 to 30, with the highest silhouette."""
    return layer.shared(_best_k)[0]


@metric(
    direction="higher",
    bounds=(-1, 1),
    invariant_to=MOTIONS,
    needs=["distances"],
    source=f"k-means, k = 2 to {MOST_CLUSTERS}; Rousseeuw 1987",
)
def best_k_silhouette(layer: Layer) -> float:
    """Highest silhouette of k-means clusters, for 2 to 30 of them."""
    return layer.shared(_best_k)[1]


@metric(
    direction="higher",
    bounds=(-1, 1),
    invariant_to=MOTIONS,
    needs=["distances"],
    source="after Carbonnelle and De Vleeschouwer 2021",
)
def intraclass_silhouette(layer: Layer) -> float:
    """Highest silhouette of 2 to 8 k-means clusters inside a class, mean over classes.

    High where classes split into groups. Classes of fewer than 3 samples, or whose samples are all
    the same, are left out.
    """
    scores = []
    for number, size in enumerate(layer.class_sizes.tolist()):
        members = (layer.classes == number).nonzero().flatten()
        inside = layer.squared_distances[members][:, members]
        if size > 2 and inside.any():
            most = min(MOST_GROUPS, size - 1)
            scores.append(best_number_of_clusters(inside, inside.sqrt(), most)[1])
    if not scores:
        raise Undefined("no class has 3 samples that are not all the same")
    return sum(scores) / len(scores)
