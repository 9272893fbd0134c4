"""Normalization layers with running statistics, and checks of their initialization."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy


def with_running_statistics(network: nn.Module) -> dict[str, _NormBase]:
    """Return the normalization layers that keep running statistics, by module name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _NormBase)
        and module.track_running_stats
        and module.running_mean is not None
        and not is_lazy(module.running_mean)
    }


def uncalibrated(network: nn.Module) -> dict[str, _NormBase]:
    """Return the layers whose running mean and variance still have their initial 0 and 1, by name.

    Such a layer normalizes nothing in eval mode. The values are checked instead of the number of
    batches that the layer has seen, because converted weights may lack that number.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        >>> list(uncalibrated(network))
        ['1']
    """
    return {
        name: layer for name, layer in with_running_statistics(network).items() if is_initial(layer)
    }


def initial_share(network: nn.Module, epochs: int) -> float:
    """Return the weight of the initial 0 and 1 in the running statistics after the first epoch.

    Each batch replaces the fraction `momentum` of the running statistics by its own statistics.
    After n batches, the initial values have the weight (1 - momentum)^n. The maximum over the
    layers is returned; layers without a momentum or a number of batches are left out.

    Args:
        network: Network after training.
        epochs: Number of epochs of training, each with the same number of batches.
    """
    shares = [
        (1 - layer.momentum) ** (int(layer.num_batches_tracked) / epochs)
        for layer in with_running_statistics(network).values()
        if layer.momentum and layer.num_batches_tracked is not None
    ]
    return max(shares, default=0.0)


def is_initial(layer: _NormBase) -> bool:
    """Return True if a layer's running mean and variance still have their initial 0 and 1."""
    mean, variance = layer.running_mean, layer.running_var
    assert mean is not None
    assert variance is not None
    return not bool(mean.any()) and bool((variance == 1).all())
