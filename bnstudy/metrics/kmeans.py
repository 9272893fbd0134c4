"""k-means that reads squared distances alone, all restarts at once."""

import math
from operator import itemgetter

import torch
from torch import Tensor

from bnstudy.randomness import generator_for

ITERATIONS = 100


def kmeans(squared_distances: Tensor, k: int, restarts: int) -> Tensor:
    """Clusters of Lloyd's algorithm, the best of several starts.

    The distance of a sample to a cluster's mean follows from the distances between samples:
    |x_i - m_c|^2 = mean over j in c of d_ij^2 - half the mean over j, l in c of d_jl^2. Starts are
    those of greedy k-means++ (Arthur and Vassilvitskii 2007), drawn the same way at every call.

    Args:
        squared_distances: Between N samples, N x N, symmetric.
        k: At most N. Where there are fewer different samples, some clusters stay empty.
        restarts: How many starts; the one with the least sum of squared distances is taken.

    Returns:
        The cluster of each sample, int64, N.
    """
    generator = generator_for("k-means")
    centres = torch.stack([_plus_plus(squared_distances, k, generator) for _ in range(restarts)])
    start = squared_distances[centres].argmin(1)
    return lloyd(squared_distances, start, k)


def lloyd(squared_distances: Tensor, clusters: Tensor, k: int) -> Tensor:
    """Lloyd's algorithm from given clusters until none changes; the best of the starts.

    Args:
        squared_distances: Between N samples, N x N, symmetric.
        clusters: Of each start, int64, restarts x N, from 0 to k - 1.
        k: How many clusters.

    Returns:
        The clusters of the start with the least sum of squared distances, int64, N.
    """
    best = (math.inf, clusters[0])
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
        to_mean = torch.addcmul(offset, sums, 1 / sizes.clamp_min(1)[:, :, None])
        least, nearest = to_mean.min(1)
        moved = nearest != clusters
        done = ~moved.any(1) | (iteration == ITERATIONS - 1)
        for start in done.nonzero().flatten():
            best = min(
                best, (least[start].double().sum().item(), nearest[start]), key=itemgetter(0)
            )
        if done.all():
            break
        clusters_before, clusters, moved = clusters[~done], nearest[~done], moved[~done]
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
    return best[1]


def _plus_plus(squared_distances: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++: of a few candidates each time the one that helps most; int64, k."""
    count = len(squared_distances)
    candidates = 2 + int(math.log(k))
    centres = [int(torch.randint(count, (), generator=generator))]
    closest = squared_distances[centres[0]]
    for _ in range(1, k):
        # Drawn on the CPU, so that every device draws the same.
        total = closest.double().cumsum(0)
        draws = torch.rand(candidates, generator=generator, dtype=torch.float64)
        drawn = torch.searchsorted(total, draws.to(total.device) * total[-1]).clamp_max(count - 1)
        improved = torch.minimum(closest, squared_distances[drawn])
        best = int(improved.double().sum(1).argmin())
        centres.append(int(drawn[best]))
        closest = improved[best]
    return torch.tensor(centres, device=squared_distances.device)
