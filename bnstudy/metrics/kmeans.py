"""k-means that reads squared distances alone: every k and all restarts at once."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from bnstudy.randomness import generator_for

ITERATIONS = 100
CACHED = 2**20  # numbers


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
    nearest = torch.stack(
        [_plus_plus(squared_distances, most, generator) for _ in range(restarts)], 1
    )
    found = []
    for some in _groups(ks, restarts * len(squared_distances)):
        starts = torch.cat([nearest[k - 1] for k in some])
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
    clusters = clusters.clone()
    start, sample = torch.ones_like(clusters).nonzero(as_tuple=True)
    bags = start * k + clusters.flatten()
    # Of each sample's distances to those of a cluster: (starts k) x N.
    sums = _sums_of_rows(squared_distances, sample, bags, len(clusters) * k)
    for iteration in range(ITERATIONS):
        sums_by_start = sums.unflatten(0, (-1, k))
        sizes = sums.new_zeros(len(clusters), k)
        sizes.scatter_add_(1, clusters, sizes.new_ones(clusters.shape))
        own = sums_by_start.gather(1, clusters[:, None]).squeeze(1)
        spread = torch.zeros_like(sizes).scatter_add_(1, clusters, own) / (2 * sizes**2)
        # An empty cluster is infinitely far: 0 / 0 + inf.
        offset = torch.where(sizes > 0, -spread, math.inf)
        to_means = (sums_by_start / sizes.clamp_min(1)[:, :, None]).add_(offset[:, :, None])
        least = to_means.amin(1)  # many times as fast as argmin, which only few samples need
        moved = to_means.gather(1, clusters[:, None]).squeeze(1) > least
        start, sample = moved.nonzero(as_tuple=True)
        before = clusters[start, sample]
        after = to_means[start, :, sample].argmin(1)
        clusters[start, sample] = after
        done = ~moved.any(1) | (iteration == ITERATIONS - 1)
        if done.any():
            found[going[done]] = clusters[done]
            spreads[going[done]] = least[done].double().sum(1)
            if done.all():
                break
            going, clusters = going[~done], clusters[~done]
            sums = sums_by_start[~done].flatten(0, 1)
            start = (~done).cumsum(0)[start] - 1
        # Only the moved samples' part of the sums is brought up to date.
        bags = start * k
        sums += _sums_of_rows(squared_distances, sample, bags + after, len(sums))
        sums -= _sums_of_rows(squared_distances, sample, bags + before, len(sums))
    return found, spreads


def _sums_of_rows(matrix: Tensor, rows: Tensor, bags: Tensor, count: int) -> Tensor:
    """For each of so many bags, the sum of the rows that are in it: count x columns."""
    order = bags.argsort()
    first = torch.searchsorted(bags[order], torch.arange(count, device=bags.device))
    return embedding_bag(rows[order], matrix, first, mode="sum")


def _plus_plus(squared_distances: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++: of a few candidates each time the one that helps most.

    Returns:
        For the first centre, the first two, ... the first k, which one is nearest: int64, k x N.
    """
    count = len(squared_distances)
    candidates = 2 + int(math.log(k))
    # Drawn on the CPU, so that every device draws the same.
    draws = torch.rand(k, candidates, generator=generator, dtype=torch.float64)
    draws = draws.to(squared_distances.device)
    nearest = squared_distances.new_zeros(k, count, dtype=torch.int64)
    closest = squared_distances[(draws[0, 0] * count).long()]
    for number in range(1, k):
        total = closest.double().cumsum(0)
        drawn = torch.searchsorted(total, draws[number] * total[-1]).clamp_max(count - 1)
        improved = torch.minimum(closest, squared_distances[drawn])
        best = improved[improved.double().sum(1).argmin()]
        nearest[number] = torch.where(best < closest, number, nearest[number - 1])
        closest = best
    return nearest
