"""Representations for the tests of metrics, and transformations of them."""

import torch
from torch import Tensor, nn

from bnstudy.metrics import METRICS
from bnstudy.representations import Layer, capture
from bnstudy.representations.sums import Activity, Classes, Moments, Products

NETWORK = {name for name, metric in METRICS.items() if "network" in metric.needs}
ALONE = [name for name in METRICS if name not in NETWORK]  # metrics that need no network


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def classes(count: int, num_classes: int, seed: int = 0) -> Tensor:
    """Create labels of classes with different sizes, of at least 2 samples if possible."""
    drawn = torch.randint(num_classes, (count,), generator=generator(seed))
    twice = torch.cat([torch.arange(num_classes).repeat(2), drawn])[:count]
    return twice[torch.randperm(count, generator=generator(seed + 1))]


def sample(
    num_classes: int,
    spread: float,
    count: int = 400,
    offset: float = 0.0,
    seed: int = 0,
    shape: tuple[int, ...] = (6, 5, 5),
) -> tuple[Tensor, Tensor]:
    """Create activations around a centre for each class, after a ReLU, and their labels."""
    random = generator(seed)
    labels = classes(count, num_classes, seed)
    centres = torch.randn(num_classes, *shape, generator=random)
    noise = torch.randn(count, *shape, generator=random)
    return torch.relu(centres[labels] + spread * noise) + offset, labels


def partly_dead(seed: int) -> tuple[Tensor, Tensor]:
    """Create activations with a channel that is always 0, and one that is 0 on one class."""
    activations, labels = sample(4, 0.3, count=90, seed=seed % 1000, shape=(6, 4, 4))
    activations[:, 5] = 0
    activations[labels == 0, 4] = 0
    return activations, labels


def rotate(x: Tensor, seed: int) -> Tensor:
    flat = x.flatten(1).double()
    square = torch.randn(flat.shape[1], flat.shape[1], generator=generator(seed)).double()
    return (flat @ torch.linalg.qr(square).Q).float().view_as(x)


def scale(x: Tensor, seed: int) -> Tensor:
    return x * 10 ** (20 * torch.rand((), generator=generator(seed)) - 10)


def translate(x: Tensor, seed: int) -> Tensor:
    return x + torch.randn(x.shape[1:], generator=generator(seed))


def streamed(activations: Tensor, labels: Tensor, channels: int = 1) -> Layer:
    """Create a layer that was read a few channels at a time, without holding activations."""
    x = activations.contiguous().reshape(*activations.shape[:2], activations.shape[2:].numel())
    blocks = list(zip(x.split(channels, 1), range(0, x.shape[1], channels), strict=True))
    sums = [kind(tuple(x.shape), Classes(labels)) for kind in (Activity, Moments, Products)]
    for one in sums:
        for block, first in blocks:
            one.add_all(block, first)
    return Layer.from_sums(sums, labels, None, None, lambda: blocks)


def read_from_a_network(activations: Tensor, labels: Tensor, num_classes: int = 5) -> Layer:
    """Read a layer of a network that computes logits from it."""
    torch.manual_seed(0)
    units = activations.shape[1:].numel()
    network = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(units, num_classes))
    halves = list(zip(activations.split(30), labels.split(30), strict=True))
    (layer,) = capture(network, halves, ["0"])
    return layer
