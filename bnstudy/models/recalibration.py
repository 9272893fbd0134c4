"""Setting the running statistics of BatchNorm to what they should be at the present weights."""

from collections.abc import Iterable
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def with_running_statistics(network: nn.Module) -> dict[str, _NormBase]:
    """By name, the normalization layers of a network that keep running statistics."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _NormBase)
        and module.track_running_stats
        and module.running_mean is not None
    }


def recalibrate(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Set all running statistics to their averages over batches, at the present weights.

    Each layer normalizes a batch by its own statistics, as in training, and averages these, every
    batch counting the same: let them be of one size, and a mixture of all classes. Nothing else of
    the network changes: other layers, such as dropout, stay in eval mode on the way, and all modes
    are as before afterwards.

    `torch.optim.swa_utils.update_bn` does this for torch's own BatchNorm layers only, and with the
    whole network in training mode: dropout would draw, and change what is averaged.

    Args:
        network: Called with the inputs of each batch, on its device and in its floating type.
        batches: (inputs, labels).
    """
    layers = with_running_statistics(network).values()
    place = next((layer.running_mean for layer in layers), None)
    if place is None:
        return
    with ExitStack() as stack:
        for module in network.modules():
            stack.callback(setattr, module, "training", module.training)
        network.eval()
        for layer in layers:
            stack.callback(setattr, layer, "momentum", layer.momentum)
            layer.reset_running_stats()
            layer.momentum = None  # of all batches alike
            layer.train()
        with torch.no_grad():
            for inputs, _ in batches:
                network(inputs.to(place.device, place.dtype))
