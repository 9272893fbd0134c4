"""k-means that reads squared distances alone: every k and all restarts at once."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bnstudy.randomness import generator_for

ITERATIONS = 100
CACHED = 2**19  # numbers


def kmeans(squared_distances: Tensor, ks: Sequence[int], restarts: int) -> list[Tensor]:
    """Clusters of Lloyd's algorithm for each number of clusters, the best of several starts.

    The distance of a sample to a cluster's mean follows from the distances between samples:
    |x_i - m_c|^2 = mean over j in c of d_ij^2 - half the mean over j, l in c of d_jl^2. Starts are
    those of greedy k-means++ (Arthur and Vassilvitskii 2007), drawn the same way at every call; the
    first k of a longer sequence of centres are a start for k.

    Args:
        squared_distances: Between N samples, N x N, symmetric.
        ks: Each at most N. Where there are fewer different samples, some clusters stay empty.
        restarts: How many starts; the one with the least sum of squared distances is taken.

    Returns:
        For each k the cluster of each sample: int64, N.
    """
    generator = generator_for("k-means")
    most = max(ks)
    centres = [_plus_plus(squared_distances, most, generator) for _ in range(restarts)]
    found = []
    for some in _groups(ks, restarts * len(squared_distances)):
        starts = torch.stack(
            [squared_distances[one[:k]].argmin(0) for k in some for one in centres]
        )
        clusters, spreads = lloyd(squared_distances, starts, max(some))
        best = spreads.view(len(some), restarts).argmin(1)
        found += list(clusters.view(len(some), restarts, -1)[range(len(some)), best])
    return found


def _groups(ks: Sequence[int], times: int) -> Iterator[list[int]]:
    """Consecutive ks that are worked on at once: as many as stay in the processor's cache."""
    group: list[int] = []
    for k in ks:
        if group and (len(group) + 1) * k * times > CACHED:
            yield group
            group = []
        group.append(k)
    yield group


def lloyd(squared_distances: Tensor, clusters: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from given clusters until none changes.

    Args:
        squared_distances: Between N samples, N x N, symmetric.
        clusters: Of each start, int64, starts x N, from 0 to k - 1. Empty ones stay empty.
        k: How many clusters, at most.

    Returns:
        The clusters that each start leads to, int64, starts x N; and the sum of the samples'
        squared distances to their clusters' means, float64, starts.
    """
    found = clusters.clone()
    spreads = clusters.new_empty(len(clusters), dtype=torch.float64)
    going = torch.arange(len(clusters), device=clusters.device)
    change = squared_distances.new_zeros(len(clusters), k, clusters.shape[1])
    change.scatter_(1, clusters[:, None], 1)
    sums = (change.flatten(0, 1) @ squared_distances).view_as(change)  # of distances to a cluster
    for iteration in range(ITERATIONS):
        sizes = sums.new_zeros(sums.shape[:2])
        sizes.scatter_add_(1, clusters, sizes.new_ones(clusters.shape))
        own = sums.gather(1, clusters[:, None]).squeeze(1)
        spread = torch.zeros_like(sizes).scatter_add_(1, clusters, own) / (2 * sizes**2)
        # An empty cluster is infinitely far: 0 / 0 + inf.
        offset = torch.where(sizes > 0, -spread, math.inf)[:, :, None]
        least, nearest = torch.addcmul(offset, sums, 1 / sizes.clamp_min(1)[:, :, None]).min(1)
        moved = nearest != clusters
        done = ~moved.any(1) | (iteration == ITERATIONS - 1)
        found[going[done]] = nearest[done]
        spreads[going[done]] = least[done].double().sum(1)
        if done.all():
            break
        going, moved = going[~done], moved[~done]
        clusters_before, clusters = clusters[~done], nearest[~done]
        # Late iterations move few samples: only their part of the sums is brought up to date.
        columns = moved.any(0).nonzero().flatten()
        change = sums.new_zeros(len(clusters), k, len(columns))
        change.scatter_(1, clusters[:, None, columns], 1)
        change.scatter_add_(
            1,
            clusters_before[:, None, columns],
            change.new_full((1,), -1).expand(len(clusters), 1, len(columns)),
        )
        sums = torch.addmm(
            sums[~done].flatten(0, 1), change.flatten(0, 1), squared_distances[columns]
        ).view(len(clusters), k, -1)
    return found, spreads


def _plus_plus(squared_distances: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++: of a few candidates each time the one that helps most; int64, k."""
    count = len(squared_distances)
    candidates = 2 + int(math.log(k))
    # Drawn on the CPU, so that every device draws the same.
    draws = torch.rand(k, candidates, generator=generator, dtype=torch.float64)
    draws = draws.to(squared_distances.device)
    centres = squared_distances.new_empty(k, dtype=torch.int64)
    centres[0] = (draws[0, 0] * count).long()
    closest = squared_distances[centres[0]]
    for number in range(1, k):
        total = closest.double().cumsum(0)
        drawn = torch.searchsorted(total, draws[number] * total[-1]).clamp_max(count - 1)
        improved = torch.minimum(closest, squared_distances[drawn])
        best = improved.double().sum(1).argmin()
        centres[number] = drawn[best]
        closest = improved[best]
    return centres
