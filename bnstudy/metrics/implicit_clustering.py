"""The clusters that representations form by themselves, against the classes."""

from torch import Tensor

from bnstudy.metrics.class_clustering import DISTANCES, NEEDS
from bnstudy.metrics.kmeans import kmeans
from bnstudy.metrics.registry import Undefined, metric
from bnstudy.representations import Layer

RESTARTS = 5


def _contingency(layer: Layer) -> Tensor:
    """Samples of each class in each of C clusters of k-means: float64, C x C."""
    if layer.num_classes == layer.num_samples:
        raise Undefined("every sample is a class of its own")
    clusters = kmeans(layer.squared_distances, layer.num_classes, RESTARTS)
    in_cluster = layer.membership.new_zeros(layer.num_samples, layer.num_classes)
    in_cluster.scatter_(1, clusters[:, None], 1)
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
    invariant_to=DISTANCES,
    needs=NEEDS,
    source="k-means with k = number of classes; Manning et al. 2008, chapter 16.3",
)
def kmeans_purity(layer: Layer) -> float:
    """Share of samples whose class is the most frequent one of their k-means cluster."""
    return purity(layer.shared(_contingency))


@metric(
    direction="higher",
    bounds=(0, 1),
    invariant_to=DISTANCES,
    needs=NEEDS,
    source="k-means with k = number of classes; Strehl and Ghosh 2002, arithmetic normalization",
)
def kmeans_nmi(layer: Layer) -> float:
    """Normalized mutual information of the k-means clusters and the classes."""
    return normalized_mutual_information(layer.shared(_contingency))


@metric(
    direction="higher",
    bounds=(-0.5, 1),
    invariant_to=DISTANCES,
    needs=NEEDS,
    source="k-means with k = number of classes; Hubert and Arabie 1985, doi 10.1007/BF01908075",
)
def kmeans_ari(layer: Layer) -> float:
    """Adjusted Rand index of the k-means clusters and the classes."""
    return adjusted_rand_index(layer.shared(_contingency))
