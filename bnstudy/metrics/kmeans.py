"""k-means that reads squared distances alone, all restarts at once."""

import math

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
    restarts, count = clusters.shape
    clusters = clusters.clone()
    members = squared_distances.new_zeros(restarts, k, count)
    members.scatter_(1, clusters[:, None], 1)
    sums = (members.view(-1, count) @ squared_distances).view_as(members)
    for _ in range(ITERATIONS):
        sizes = members.sum(2, keepdim=True)
        pairs = (sums * members).sum(2, keepdim=True)
        to_mean = (sums / sizes - pairs / (2 * sizes**2)).nan_to_num(math.inf, math.inf)
        nearest = to_mean.argmin(1)
        changed = (nearest != clusters).any(0).nonzero().flatten()
        if len(changed) == 0:
            break
        # Late iterations move few samples: only their part of the sums is brought up to date.
        before = members[:, :, changed]
        members.zero_().scatter_(1, nearest[:, None], 1)
        difference = (members[:, :, changed] - before).view(-1, len(changed))
        sums.view(-1, count).addmm_(difference, squared_distances[changed])
        clusters = nearest
    inertia = to_mean.gather(1, clusters[:, None]).sum((1, 2))
    return clusters[inertia.argmin()]


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
