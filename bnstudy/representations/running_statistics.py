"""Which normalization layers keep running statistics, and whether these are statistics yet."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy


def with_running_statistics(network: nn.Module) -> dict[str, _NormBase]:
    """By name, the normalization layers of a network that keep running statistics."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _NormBase)
        and module.track_running_stats
        and module.running_mean is not None
        and not is_lazy(module.running_mean)
    }


def uncalibrated(network: nn.Module) -> dict[str, _NormBase]:
    """By name, the layers whose running mean and variance are still the 0 and 1 of construction.

    In eval mode such a layer normalizes nothing. What counts are the values, not the number of
    batches that the layer has seen: weights converted from elsewhere may come without that.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        >>> list(uncalibrated(network))
        ['1']
    """
    return {
        name: layer for name, layer in with_running_statistics(network).items() if is_initial(layer)
    }


def initial_share(network: nn.Module, epochs: int) -> float:
    """Weight that the initial 0 and 1 had in the running statistics after the first epoch.

    A batch moves them by `momentum` towards its own: after n batches (1 - momentum)^n is left of
    the values that they began with, in the layer where that is most.

    Args:
        network: As it is after training.
        epochs: How many it was trained for, of equally many batches.
    """
    shares = [
        (1 - layer.momentum) ** (int(layer.num_batches_tracked) / epochs)
        for layer in with_running_statistics(network).values()
        if layer.momentum and layer.num_batches_tracked is not None
    ]
    return max(shares, default=0.0)


def is_initial(layer: _NormBase) -> bool:
    """Whether a layer's running mean and variance are the 0 and 1 of construction."""
    mean, variance = layer.running_mean, layer.running_var
    assert mean is not None
    assert variance is not None
    return not bool(mean.any()) and bool((variance == 1).all())
