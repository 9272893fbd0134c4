"""Setting the running statistics of BatchNorm to what they should be at the present weights."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from bnstudy.representations.running_statistics import uncalibrated, with_running_statistics

Batch = tuple[Tensor, Tensor]


def recalibrate(network: nn.Module, batches: Iterable[Batch]) -> None:
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
    _average(network, with_running_statistics(network).values(), batches)


def calibrate(network: nn.Module, batches: Iterable[Batch]) -> None:
    """Set the running statistics that no batch has updated yet, as `recalibrate` does.

    Layers that have statistics keep them, and normalize by them on the way: a network that has been
    trained is left as it is.

    Args:
        network: Called with the inputs of each batch, on its device and in its floating type.
        batches: (inputs, labels), of the training data.
    """
    _average(network, uncalibrated(network).values(), batches)


@contextmanager
def calibrated(network: nn.Module, batches: Iterable[Batch]) -> Iterator[None]:
    """Calibrate a network (see `calibrate`) for the time of the body.

    Afterwards the running statistics are bit for bit what they were, so that the training that
    follows does not change. In a distributed run with synchronized BatchNorm every process has to
    enter.

    Args:
        network: Called with the inputs of each batch, on its device and in its floating type.
        batches: (inputs, labels), of the training data.
    """
    layers = uncalibrated(network)
    saved = [
        (layer, name, buffer.clone())
        for layer in layers.values()
        for name, buffer in layer.named_buffers(recurse=False)
    ]
    try:
        _average(network, layers.values(), batches)
        yield
    finally:
        for layer, name, value in saved:  # the layer may have been moved to another device
            getattr(layer, name).copy_(value)


def _average(network: nn.Module, layers: Collection[_NormBase], batches: Iterable[Batch]) -> None:
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
