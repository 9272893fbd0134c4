"""Distribution of each channel's activations, on which BatchNorm acts directly.

Example:
    >>> import torch
    >>> layer = Layer(torch.tensor([[0.0], [1.0], [2.0], [5.0]]), torch.tensor([0, 0, 1, 1]))
    >>> mean(layer), variance(layer), saturation(layer)
    (2.0, 3.5, 0.25)
"""

import math

from torch import Tensor

from bnstudy.metrics.registry import Undefined, metric
from bnstudy.representations import Layer
from bnstudy.representations.sums import (
    FOURTH_MOMENT,
    MEAN,
    SHARE_NOT_POSITIVE,
    THIRD_MOMENT,
    VARIANCE,
)

MOMENTS = "as in scipy.stats, over the samples and positions of a channel"


@metric(direction=None, bounds=(-math.inf, math.inf), source=MOMENTS)
def mean(layer: Layer) -> float:
    """Mean of each channel's activations, averaged over channels."""
    return layer.moments.channel_moments[:, MEAN].mean().item()


@metric(direction=None, bounds=(0, math.inf), source=MOMENTS)
def variance(layer: Layer) -> float:
    """Variance of each channel's activations, averaged over channels."""
    return layer.moments.channel_moments[:, VARIANCE].mean().item()


def _varying_channels(layer: Layer) -> Tensor:
    """Return the moments of the channels that vary: float64, channels x 5."""
    moments = layer.moments.channel_moments
    moments = moments[moments[:, VARIANCE] > 0]
    if not len(moments):
        raise Undefined("no channel varies")
    return moments


@metric(direction=None, bounds=(-math.inf, math.inf), invariant_to=["scale"], source=MOMENTS)
def skewness(layer: Layer) -> float:
    """Skewness of each channel's activations, averaged over the channels that vary."""
    moments = layer.shared(_varying_channels)
    return (moments[:, THIRD_MOMENT] / moments[:, VARIANCE] ** 1.5).mean().item()


@metric(direction=None, bounds=(-2, math.inf), invariant_to=["scale"], source=MOMENTS)
def kurtosis(layer: Layer) -> float:
    """Excess kurtosis of each channel's activations, averaged over the channels that vary."""
    moments = layer.shared(_varying_channels)
    return (moments[:, FOURTH_MOMENT] / moments[:, VARIANCE] ** 2 - 3).mean().item()


@metric(
    direction=None,
    bounds=(0, 1),
    invariant_to=["scale"],
    source="values for which the gradient of ReLU is 0",
)
def saturation(layer: Layer) -> float:
    """Share of a channel's activations that are 0 or negative, averaged over channels."""
    return layer.moments.channel_moments[:, SHARE_NOT_POSITIVE].mean().item()
