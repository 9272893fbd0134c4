"""Running statistics of BatchNorm, computed anew for the current weights."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from bnstudy.models.batchnorm_parts import FrozenBatchNorm
from bnstudy.representations.capture import split_pair
from bnstudy.representations.network import Batch
from bnstudy.representations.precision import exact_operators
from bnstudy.representations.running_statistics import (
    is_initial,
    uncalibrated,
    with_running_statistics,
)
from bnstudy.representations.taps import copy_inputs


def recalibrate(network: nn.Module, batches: Iterable[Batch]) -> None:
    """Set all running statistics to the averages of the batch statistics at the current weights.

    Each layer normalizes a batch by the batch's statistics, as in training, and averages them. All
    batches have the same weight, so they should have the same size, and each should contain all
    classes. All other layers, such as dropout, are in eval mode meanwhile. Layers that are not
    called in eval mode keep their statistics. Afterwards every module is in its previous mode.

    `torch.optim.swa_utils.update_bn` does the same for torch's BatchNorm layers only, and puts the
    whole network in training mode: dropout would change the statistics.

    Args:
        network: Network, called with a copy of the inputs of each batch, on the network's device
            and in its floating-point type.
        batches: Batches (inputs, labels).

    Raises:
        UserError: A batch is not a pair of inputs and labels.
        ValueError: There are no batches, and the network has running statistics.
    """
    layers = with_running_statistics(network).values()
    if not _average(network, layers, batches) and layers:
        raise ValueError("batches is empty; pass a list or a DataLoader, not a used-up iterator")


def calibrate(network: nn.Module, batches: Iterable[Batch]) -> None:
    """Set the running statistics that no batch has updated yet, as `recalibrate` does.

    Layers that already have statistics keep them, and normalize by them meanwhile. A trained
    network is therefore not changed.

    Args:
        network: Network, called with a copy of the inputs of each batch, on the network's device
            and in its floating-point type.
        batches: Batches (inputs, labels) of the training data.
    """
    _average(network, uncalibrated(network).values(), batches)


@contextmanager
def calibrated(network: nn.Module, batches: Iterable[Batch]) -> Iterator[None]:
    """Calibrate a network inside the context; see `calibrate`.

    On exit the running statistics are restored bit for bit, so that training is not affected. In a
    distributed run with synchronized BatchNorm, every process must enter the context.

    Args:
        network: Network, called with a copy of the inputs of each batch, on the network's device
            and in its floating-point type.
        batches: Batches (inputs, labels) of the training data.
    """
    with _averaged(network, uncalibrated(network).values(), batches):
        yield


@contextmanager
def recalibrated(network: nn.Module, batches: Iterable[Batch]) -> Iterator[None]:
    """Recalibrate a network inside the context; see `recalibrate`.

    This serves measurements after the first batches of training, when the running statistics still
    consist mostly of their initial values. On exit they are restored, as by `calibrated`. A
    `FrozenBatchNorm` keeps its statistics.

    Args:
        network: Network, called with a copy of the inputs of each batch, on the network's device
            and in its floating-point type.
        batches: Batches (inputs, labels) of the training data.
    """
    layers = [
        layer
        for layer in with_running_statistics(network).values()
        if not isinstance(layer, FrozenBatchNorm)
    ]
    with _averaged(network, layers, batches):
        yield


@contextmanager
def _averaged(
    network: nn.Module, layers: Collection[_NormBase], batches: Iterable[Batch]
) -> Iterator[None]:
    saved = {layer: _buffers(layer) for layer in layers}
    try:
        _average(network, layers, batches)
        yield
    finally:
        for layer, buffers in saved.items():
            _restore(layer, buffers)


def _average(network: nn.Module, layers: Collection[_NormBase], batches: Iterable[Batch]) -> int:
    """Set running statistics to averages over batches; layers that are not called keep theirs.

    Returns:
        Number of batches.
    """
    any_mean = next((layer.running_mean for layer in layers), None)
    if any_mean is None:
        return 0
    parameter = next(network.parameters(), any_mean)  # has the network's device and type
    saved = {layer: _buffers(layer) for layer in layers}
    num_batches = 0
    with ExitStack() as stack:
        stack.enter_context(exact_operators())
        for module in network.modules():
            if hasattr(module, "training"):  # modules of `torch.jit.freeze` have no mode
                stack.callback(setattr, module, "training", module.training)
        network.eval()
        for layer in layers:
            stack.callback(setattr, layer, "momentum", layer.momentum)
            layer.reset_running_stats()
            layer.momentum = None  # a plain average over batches
            layer.train()
        with torch.no_grad():
            for num_batches, batch in enumerate(batches, start=1):
                inputs, _ = split_pair(batch)
                for layer in layers:
                    if isinstance(layer, _InstanceNorm):  # treats a momentum of None as 0
                        layer.momentum = 1 / num_batches
                network(copy_inputs(inputs, parameter))
    for layer in layers:
        if is_initial(layer):  # not called in eval mode, such as in an auxiliary classifier
            _restore(layer, saved[layer])
    return num_batches


def _buffers(layer: _NormBase) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in layer.named_buffers(recurse=False)}


def _restore(layer: _NormBase, buffers: dict[str, Tensor]) -> None:
    for name, value in buffers.items():  # copy_: the layer may have moved to another device
        getattr(layer, name).copy_(value)
