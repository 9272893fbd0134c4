"""How much of a layer is silent, and how few units speak at a time."""

import torch
from torch import Tensor

from bnstudy.metrics.registry import Undefined, metric
from bnstudy.representations import Layer

PAPER = "Potgieter, Mouton and Davel 2025, arXiv 2501.14441"
SPARSENESS = "Treves and Rolls 1991; Vinje and Gallant 2000, doi 10.1126/science.287.5456.1273"


def _share_of_zeros(layer: Layer) -> Tensor:
    """Of each channel's activations: float64, channels; a unit of N x D is a channel."""
    return layer.activity.zeros.double() / (layer.num_samples * layer.num_positions)


@metric(direction=None, bounds=(0, 1), invariant_to=["scale"], source=PAPER)
def unit_sparsity(layer: Layer) -> float:
    """Share of activations that are exactly 0."""
    return _share_of_zeros(layer).mean().item()


@metric(direction=None, bounds=(0, 1), invariant_to=["scale"], source=PAPER)
def channel_sparsity(layer: Layer) -> float:
    """Share of the channels whose whole map is 0 for a sample, mean over samples."""
    return layer.activity.silent_maps.double().mean().item() / layer.num_samples


@metric(direction=None, bounds=(0, 0.5), invariant_to=["scale"], source=PAPER)
def unit_sparsity_channel_std(layer: Layer) -> float:
    """Standard deviation over channels of each channel's share of zeros."""
    return _share_of_zeros(layer).std(correction=0).item()


@metric(
    direction=None, bounds=(0, 1), invariant_to=["scale"], source="Lu et al. 2019, arXiv 1903.06733"
)
def dead_channels(layer: Layer) -> float:
    """Share of the channels that are 0 everywhere on every sample."""
    return (layer.activity.silent_maps == layer.num_samples).double().mean().item()


@metric(
    direction=None, bounds=(0, 1), invariant_to=["scale"], source="Lu et al. 2019, arXiv 1903.06733"
)
def dead_units(layer: Layer) -> float:
    """Share of the units, the positions of channels' maps, that are 0 on every sample."""
    return layer.activity.dead_units / layer.num_units


def _concentration(layer: Layer) -> Tensor:
    """(mean |x|)^2 / mean x^2 over the units of each sample that is not all 0: float64."""
    if layer.num_units == 1:
        raise Undefined("there is only one unit")
    moments = layer.moments
    active = moments.squares > 0
    if not active.any():
        raise Undefined("every sample's activations are 0")
    return moments.absolute[active].square() / (layer.num_units * moments.squares[active])


@metric(
    direction=None,
    bounds=(0, 1),
    invariant_to=["scale"],
    source="Hoyer 2004, JMLR 5:1457, section 3.1; Hurley and Rickard 2009, arXiv 0811.4706",
)
def hoyer(layer: Layer) -> float:
    """(sqrt D - l1 / l2) / (sqrt D - 1), mean over the samples that are not all 0."""
    root: float = layer.num_units**0.5
    ratio = layer.shared(_concentration).sqrt() * root
    return float(((root - ratio) / (root - 1)).mean())


@metric(
    direction=None,
    bounds=(0, 1),
    invariant_to=["scale"],
    source=SPARSENESS,
)
def population_sparseness(layer: Layer) -> float:
    """(1 - (mean |x|)^2 / mean x^2) / (1 - 1 / D) over a sample's units, mean over samples."""
    return ((1 - layer.shared(_concentration)) / (1 - 1 / layer.num_units)).mean().item()


@metric(
    direction=None,
    bounds=(0, 1),
    invariant_to=["scale"],
    source=SPARSENESS,
)
def lifetime_sparseness(layer: Layer) -> float:
    """(1 - (mean |x|)^2 / mean x^2) / (1 - 1 / N) over a unit's samples, mean over live units."""
    if layer.num_samples == 1:
        raise Undefined("there is only one sample")
    lifetime = layer.moments.lifetime
    alive = lifetime[~torch.isnan(lifetime)]
    if not len(alive):
        raise Undefined("every sample's activations are 0")
    return ((1 - alive) / (1 - 1 / layer.num_samples)).mean().item()
