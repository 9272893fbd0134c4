"""k-means on squared distances, for several numbers of clusters and restarts at once.

Example:
    >>> points = torch.tensor([0.0, 1.0, 7.0, 8.0])
    >>> (clusters,) = kmeans((points[:, None] - points) ** 2, ks=[2], restarts=3)
    >>> bool(clusters[0] == clusters[1] != clusters[2] == clusters[3])
    True
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from bnstudy.randomness import generator_for

MAX_ITERATIONS = 100
CACHE_NUMEL = 2**20  # values, small enough for the processor's cache


def kmeans(squared_distances: Tensor, ks: Sequence[int], restarts: int) -> list[Tensor]:
    """Compute k-means clusters with Lloyd's algorithm, for each of several numbers of clusters.

    The distance of a sample to a cluster mean follows from the distances between samples:
    |x_i - m_c|^2 = mean over j in c of d_ij^2 - half the mean over j, l in c of d_jl^2. The starts
    are chosen by greedy k-means++ (Arthur and Vassilvitskii 2007) with the same seed at every call.
    A restart draws one sequence of centres; k clusters start from its first k.

    Args:
        squared_distances: Squared distances between N samples: N x N, symmetric.
        ks: Numbers of clusters, each at most N. If there are fewer distinct samples, some clusters
            stay empty.
        restarts: Number of starts. The result with the smallest sum of squared distances is kept.

    Returns:
        Cluster of each sample, for each k: int64, N.
    """
    generator = generator_for("k-means")
    # Clusters by the nearest of the first k centres, for k = 1 to max(ks): max(ks) x restarts x N.
    initial = torch.stack(
        [_choose_centres(squared_distances, max(ks), generator) for _ in range(restarts)], 1
    )
    results = []
    for group in _group(ks, restarts * len(squared_distances)):
        starts = torch.cat([initial[k - 1] for k in group])
        clusters, inertias = lloyd(squared_distances, starts, max(group))
        best = inertias.view(len(group), restarts).argmin(1)
        results += list(clusters.view(len(group), restarts, -1)[range(len(group)), best])
    return results


def _group(ks: Sequence[int], numel: int) -> Iterator[list[int]]:
    """Yield groups of consecutive ks that are small enough for the processor's cache.

    The clusterings of a group are stored with as many clusters as its largest k.

    Args:
        ks: Numbers of clusters.
        numel: Number of values per k and cluster: restarts x N.
    """
    group: list[int] = []
    for k in ks:
        if group and (len(group) + 1) * k * numel > CACHE_NUMEL:
            yield group
            group = []
        group.append(k)
    yield group


def lloyd(squared_distances: Tensor, clusters: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Run Lloyd's algorithm from given clusters until no sample moves, or `MAX_ITERATIONS` times.

    Args:
        squared_distances: Squared distances between N samples: N x N, symmetric.
        clusters: Initial clusters of each start, from 0 to k - 1: int64, starts x N. Empty clusters
            stay empty.
        k: Maximum number of clusters.

    Returns:
        Final clusters of each start: int64, starts x N; and the sum of the samples' squared
        distances to the nearest cluster means, as they are before the last iteration's moves:
        float64, starts.
    """
    final = clusters.clone()
    inertias = clusters.new_empty(len(clusters), dtype=torch.float64)
    active = torch.arange(len(clusters), device=clusters.device)
    clusters = clusters.clone()
    start, sample = torch.ones_like(clusters).nonzero(as_tuple=True)
    bags = start * k + clusters.flatten()
    # Sums of each sample's squared distances to the samples of each cluster: (starts x k) x N.
    sums = _sum_rows(squared_distances, sample, bags, len(clusters) * k)
    for iteration in range(MAX_ITERATIONS):
        sums_by_start = sums.unflatten(0, (-1, k))
        sizes = sums.new_zeros(len(clusters), k)
        sizes.scatter_add_(1, clusters, sizes.new_ones(clusters.shape))
        own = sums_by_start.gather(1, clusters[:, None]).squeeze(1)
        spread = torch.zeros_like(sizes).scatter_add_(1, clusters, own) / (2 * sizes**2)
        # An empty cluster is infinitely far away.
        offset = torch.where(sizes > 0, -spread, math.inf)
        to_means = (sums_by_start / sizes.clamp_min(1)[:, :, None]).add_(offset[:, :, None])
        nearest = to_means.amin(1)  # much faster than argmin, which only moved samples need
        is_moved = to_means.gather(1, clusters[:, None]).squeeze(1) > nearest
        start, sample = is_moved.nonzero(as_tuple=True)
        before = clusters[start, sample]
        after = to_means[start, :, sample].argmin(1)
        clusters[start, sample] = after
        is_done = ~is_moved.any(1) | (iteration == MAX_ITERATIONS - 1)
        if is_done.any():
            final[active[is_done]] = clusters[is_done]
            inertias[active[is_done]] = nearest[is_done].double().sum(1)
            if is_done.all():
                break
            active, clusters = active[~is_done], clusters[~is_done]
            sums = sums_by_start[~is_done].flatten(0, 1)
            start = (~is_done).cumsum(0)[start] - 1
        # Update the sums for the moved samples only.
        bags = start * k
        sums += _sum_rows(squared_distances, sample, bags + after, len(sums))
        sums -= _sum_rows(squared_distances, sample, bags + before, len(sums))
    return final, inertias


def _sum_rows(matrix: Tensor, rows: Tensor, bags: Tensor, count: int) -> Tensor:
    """Sum the rows in each of `count` bags: count x columns."""
    order = bags.argsort()
    first = torch.searchsorted(bags[order], torch.arange(count, device=bags.device))
    return embedding_bag(rows[order], matrix, first, mode="sum")


def _choose_centres(squared_distances: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Choose k centres by greedy k-means++, each as the best of a few random candidates.

    Returns:
        Number (from 0) of the centre nearest to each sample, among the first 1, 2, ..., k centres:
        int64, k x N.
    """
    count = len(squared_distances)
    num_candidates = 2 + int(math.log(k))
    # Draw on the CPU, so that the numbers are the same on every device.
    draws = torch.rand(k, num_candidates, generator=generator, dtype=torch.float64)
    draws = draws.to(squared_distances.device)
    nearest = squared_distances.new_zeros(k, count, dtype=torch.int64)
    to_nearest = squared_distances[(draws[0, 0] * count).long()]  # squared distances
    for number in range(1, k):
        total = to_nearest.double().cumsum(0)
        candidates = torch.searchsorted(total, draws[number] * total[-1]).clamp_max(count - 1)
        with_candidate = torch.minimum(to_nearest, squared_distances[candidates])
        best = with_candidate[with_candidate.double().sum(1).argmin()]
        nearest[number] = torch.where(best < to_nearest, number, nearest[number - 1])
        to_nearest = best
    return nearest
