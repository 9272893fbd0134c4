"""Sparsity: shares of zero activations, and concentration of activations on few units.

Example:
    >>> layer = Layer(torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([0, 1]))
    >>> unit_sparsity(layer), dead_channels(layer)
    (0.75, 0.5)
"""

import torch
from torch import Tensor

from bnstudy.metrics.registry import Undefined, metric
from bnstudy.representations import Layer

POTGIETER = "Potgieter, Mouton and Davel 2025, arXiv 2501.14441"
VINJE = "Treves and Rolls 1991; Vinje and Gallant 2000, doi 10.1126/science.287.5456.1273"


def _share_of_zeros(layer: Layer) -> Tensor:
    """Compute the share of zeros in each channel: float64, channels."""
    return layer.activity.num_zeros.double() / (layer.num_samples * layer.num_positions)


@metric(direction=None, bounds=(0, 1), invariant_to=["scale"], source=POTGIETER)
def unit_sparsity(layer: Layer) -> float:
    """Share of activations that are exactly 0."""
    return _share_of_zeros(layer).mean().item()


@metric(direction=None, bounds=(0, 1), invariant_to=["scale"], source=POTGIETER)
def channel_sparsity(layer: Layer) -> float:
    """Share of channels that are 0 at all positions of a sample, mean over samples."""
    return layer.activity.num_silent_samples.double().mean().item() / layer.num_samples


@metric(direction=None, bounds=(0, 0.5), invariant_to=["scale"], source=POTGIETER)
def unit_sparsity_channel_std(layer: Layer) -> float:
    """Standard deviation over channels of the share of zero activations."""
    return _share_of_zeros(layer).std(correction=0).item()


@metric(
    direction=None, bounds=(0, 1), invariant_to=["scale"], source="Lu et al. 2019, arXiv 1903.06733"
)
def dead_channels(layer: Layer) -> float:
    """Share of channels that are 0 at all positions of all samples."""
    return (layer.activity.num_silent_samples == layer.num_samples).double().mean().item()


@metric(
    direction=None, bounds=(0, 1), invariant_to=["scale"], source="Lu et al. 2019, arXiv 1903.06733"
)
def dead_units(layer: Layer) -> float:
    """Share of units, the positions of channels, that are 0 on all samples."""
    return layer.activity.num_dead_units / layer.num_units


def _concentration(layer: Layer) -> Tensor:
    """Compute (mean |x|)^2 / mean x^2 of each sample that is not all 0: float64."""
    if layer.num_units == 1:
        raise Undefined("there is only one unit")
    moments = layer.moments
    active = moments.squared_norms > 0
    if not active.any():
        raise Undefined("every sample's activations are 0")
    squares = moments.absolute_sums[active].square()
    return squares / (layer.num_units * moments.squared_norms[active])


@metric(
    direction=None,
    bounds=(0, 1),
    invariant_to=["scale"],
    source="Hoyer 2004, JMLR 5:1457, section 3.1; Hurley and Rickard 2009, arXiv 0811.4706",
)
def hoyer(layer: Layer) -> float:
    """(sqrt D - l1 / l2) / (sqrt D - 1) of a sample, mean over samples that are not all 0."""
    root: float = layer.num_units**0.5
    ratio = layer.shared(_concentration).sqrt() * root
    return float(((root - ratio) / (root - 1)).mean())


@metric(direction=None, bounds=(0, 1), invariant_to=["scale"], source=VINJE)
def population_sparseness(layer: Layer) -> float:
    """(1 - (mean |x|)^2 / mean x^2) / (1 - 1 / D) of a sample's units, mean over samples.

    Samples that are all 0 are left out.
    """
    return ((1 - layer.shared(_concentration)) / (1 - 1 / layer.num_units)).mean().item()


@metric(direction=None, bounds=(0, 1), invariant_to=["scale"], source=VINJE)
def lifetime_sparseness(layer: Layer) -> float:
    """(1 - (mean |x|)^2 / mean x^2) / (1 - 1 / N) of a unit's samples, mean over live units."""
    if layer.num_samples == 1:
        raise Undefined("there is only one sample")
    concentration = layer.moments.lifetime_concentration
    of_live_units = concentration[~torch.isnan(concentration)]
    if not len(of_live_units):
        raise Undefined("every sample's activations are 0")
    return ((1 - of_live_units) / (1 - 1 / layer.num_samples)).mean().item()
