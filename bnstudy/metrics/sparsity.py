"""How much of a layer is silent."""

import torch
from torch import Tensor

from bnstudy.metrics.registry import metric
from bnstudy.representations import Layer

PAPER = "Potgieter, Mouton and Davel 2025, arXiv 2501.14441"


def _zeros(layer: Layer) -> Tensor:
    """Zeros in each channel's map of each sample: int64, N x C; a unit of N x D is a channel."""
    # By parts of a few samples: what == allocates stays in the processor's cache.
    return torch.cat(
        [
            (part == 0).sum(tuple(range(2, part.ndim)))
            for part in _maps(layer).split(_samples_at_once(layer))
        ]
    )


def _maps(layer: Layer) -> Tensor:
    return layer.activations if layer.activations.ndim > 2 else layer.activations.unsqueeze(2)


def _samples_at_once(layer: Layer) -> int:
    return max(1, 2**20 // max(1, layer.activations[0].numel()))


def _silent_maps(layer: Layer) -> Tensor:
    """Whether a channel's whole map is 0: bool, N x C."""
    return layer.shared(_zeros) == _maps(layer)[0, 0].numel()


@metric(direction=None, bounds=(0, 1), invariant_to=["scale"], source=PAPER)
def unit_sparsity(layer: Layer) -> float:
    """Share of activations that are exactly 0."""
    return layer.shared(_zeros).sum().item() / layer.activations.numel()


@metric(direction=None, bounds=(0, 1), invariant_to=["scale"], source=PAPER)
def channel_sparsity(layer: Layer) -> float:
    """Share of the channels whose whole map is 0 for a sample, mean over samples."""
    return layer.shared(_silent_maps).double().mean().item()


@metric(
    direction=None, bounds=(0, 1), invariant_to=["scale"], source="Lu et al. 2019, arXiv 1903.06733"
)
def dead_channels(layer: Layer) -> float:
    """Share of the channels that are 0 everywhere on every sample."""
    return layer.shared(_silent_maps).all(0).double().mean().item()
