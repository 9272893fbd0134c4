"""Setting the running statistics of BatchNorm to what they should be at the present weights."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from bnstudy.representations.running_statistics import (
    is_initial,
    uncalibrated,
    with_running_statistics,
)

Batch = tuple[Tensor, Tensor]


def recalibrate(network: nn.Module, batches: Iterable[Batch]) -> None:
    """Set all running statistics to their averages over batches, at the present weights.

    Each layer normalizes a batch by its own statistics, as in training, and averages these, every
    batch counting the same: let them be of one size, and a mixture of all classes. Layers that are
    not called in eval mode keep their statistics. Nothing else of the network changes: other
    layers, such as dropout, stay in eval mode on the way, and all modes are as before afterwards.

    `torch.optim.swa_utils.update_bn` does this for torch's own BatchNorm layers only, and with the
    whole network in training mode: dropout would draw, and change what is averaged.

    Args:
        network: Called with the inputs of each batch, on its device and in its floating type.
        batches: (inputs, labels).

    Raises:
        ValueError: There is no batch.
    """
    layers = with_running_statistics(network).values()
    if not _average(network, layers, batches) and layers:
        raise ValueError("batches: there are none; an iterator can be passed through only once")


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
    layers = uncalibrated(network).values()
    saved = {layer: _buffers(layer) for layer in layers}
    try:
        _average(network, layers, batches)
        yield
    finally:
        for layer, buffers in saved.items():
            _restore(layer, buffers)


def _average(network: nn.Module, layers: Collection[_NormBase], batches: Iterable[Batch]) -> int:
    """Average the statistics of batches; layers that are not called keep what they have.

    Returns:
        Number of batches.
    """
    place = next((layer.running_mean for layer in layers), None)
    if place is None:
        return 0
    parameter = next(network.parameters(), place)
    saved = {layer: _buffers(layer) for layer in layers}
    number = 0
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
            for number, (inputs, _) in enumerate(batches, start=1):
                for layer in layers:
                    if isinstance(layer, _InstanceNorm):  # takes None as 0
                        layer.momentum = 1 / number
                dtype = parameter.dtype if inputs.is_floating_point() else inputs.dtype
                network(inputs.to(parameter.device, dtype))
    for layer in layers:
        if is_initial(layer):  # not called in eval mode, as an auxiliary classifier's
            _restore(layer, saved[layer])
    return number


def _buffers(layer: _NormBase) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in layer.named_buffers(recurse=False)}


def _restore(layer: _NormBase, buffers: dict[str, Tensor]) -> None:
    for name, value in buffers.items():  # the layer may have been moved to another device
        getattr(layer, name).copy_(value)
