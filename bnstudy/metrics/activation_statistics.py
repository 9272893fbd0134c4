"""The distribution of each channel's activations, which BatchNorm acts on directly."""

from torch import Tensor

from bnstudy.metrics.registry import Undefined, metric
from bnstudy.representations import Layer

MOMENTS = "over the samples and positions of a channel; as in scipy.stats"


@metric(direction=None, bounds=(-float("inf"), float("inf")), source=MOMENTS)
def mean(layer: Layer) -> float:
    """Mean of each channel's activations, averaged over channels."""
    return layer.moments.channels[:, 0].mean().item()


@metric(
    direction=None,
    bounds=(0, float("inf")),
    source=MOMENTS,
)
def variance(layer: Layer) -> float:
    """Variance of each channel's activations, averaged over channels."""
    return layer.moments.channels[:, 1].mean().item()


def _varying(layer: Layer) -> Tensor:
    """The moments of the channels that vary: float64, channels x 5."""
    channels = layer.moments.channels
    varying = channels[channels[:, 1] > 0]
    if not len(varying):
        raise Undefined("no channel varies")
    return varying


@metric(
    direction=None,
    bounds=(-float("inf"), float("inf")),
    invariant_to=["scale"],
    source=MOMENTS,
)
def skewness(layer: Layer) -> float:
    """Skewness of each channel's activations, averaged over the channels that vary."""
    channels = layer.shared(_varying)
    return (channels[:, 2] / channels[:, 1] ** 1.5).mean().item()


@metric(
    direction=None,
    bounds=(-2, float("inf")),
    invariant_to=["scale"],
    source=MOMENTS,
)
def kurtosis(layer: Layer) -> float:
    """Excess kurtosis of each channel's activations, averaged over the channels that vary."""
    channels = layer.shared(_varying)
    return (channels[:, 3] / channels[:, 1] ** 2 - 3).mean().item()


@metric(
    direction=None,
    bounds=(0, 1),
    invariant_to=["scale"],
    source="where a ReLU is flat: values of 0 and below",
)
def saturation(layer: Layer) -> float:
    """Share of each channel's activations of 0 and below, averaged over channels."""
    return layer.moments.channels[:, 4].mean().item()
