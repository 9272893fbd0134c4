"""Reading the activations of a network's layers."""

from collections.abc import Callable, Iterable, Sequence, Sized
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

SITE_TYPES: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "norm": (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm),
    "act": (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh),
}


@dataclass(frozen=True)
class Tap:
    """A place in a network where representations are read.

    Attributes:
        layer_index: From 0, in the order in which the layers are computed.
        layer: The layer's name, without the part that all layers' names begin with. The second
            call of one module in a forward pass has `#2` after it, and so on.
        site: Where in the layer: conv, norm or act.
    """

    layer_index: int
    layer: str
    site: str


@torch.no_grad()
def capture(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], sites: Sequence[str]
) -> tuple[dict[Tap, Tensor], Tensor]:
    """Run a model in eval mode and keep what its modules at the given sites put out.

    A module's site is the last part of its name where that is `conv`, `norm` or `act`, as in
    `bnstudy.models.cnn.ConvBlock`, and the block is the layer. Any other module's site follows from
    its type (convolution, normalization, activation function), and it is a layer of its own.

    The model is left as it was: its mode, its hooks, its gradients.

    Args:
        model: Called with the inputs of each batch, on its device and in its floating type.
        batches: (inputs, labels).
        sites: Any of conv, norm and act.

    Returns:
        By tap, in the order of computation, the activations of all samples, copied before anything
        can overwrite them; and the labels.

    Raises:
        TypeError: A module at one of the sites puts out something that is no tensor.
    """
    labels: list[Tensor] = []
    outputs: dict[tuple[str, int], _Rows] = {}  # by module's name and which call it is
    # What is there to come, at most; the memory is taken up only as it is written to.
    batch_count = len(batches) if isinstance(batches, Sized) else 1
    modules = _modules_at(model, sites)
    training = {module: module.training for module in model.modules()}
    with ExitStack() as stack:
        for module, mode in training.items():
            stack.callback(setattr, module, "training", mode)
        model.eval()
        calls: dict[str, int] = {}
        for name in modules:
            hook = model.get_submodule(name).register_forward_hook(
                _keep(name, calls, outputs, batch_count)
            )
            stack.callback(hook.remove)
        parameter = next(model.parameters())
        for inputs, batch_labels in batches:
            calls.clear()
            dtype = parameter.dtype if inputs.is_floating_point() else inputs.dtype
            model(inputs.to(parameter.device, dtype))
            labels.append(batch_labels)

    parents = [layer.split(".")[:-1] for layer, _ in modules.values()]
    shared = len(list(takewhile(lambda parts: len(set(parts)) == 1, zip(*parents, strict=False))))
    layers: dict[str, int] = {}
    activations: dict[Tap, Tensor] = {}
    for (name, call), rows in outputs.items():
        layer, site = modules[name]
        layer = ".".join(layer.split(".")[shared:]) + (f"#{call}" if call > 1 else "")
        index = layers.setdefault(layer, len(layers))
        activations[Tap(index, layer, site)] = rows.tensor()
    return activations, torch.cat(labels)


class _Rows:
    """A tensor that grows by batches, in the memory format of the first one."""

    def __init__(self, batch: Tensor, batch_count: int) -> None:
        self.count = 0
        self.buffer = self._empty(batch, len(batch) * batch_count)

    def append(self, batch: Tensor) -> None:
        """Copy a batch behind the others."""
        end = self.count + len(batch)
        if end > len(self.buffer):
            larger = self._empty(batch, 2 * end)
            larger[: self.count] = self.buffer[: self.count]
            self.buffer = larger
        self.buffer[self.count : end] = batch
        self.count = end

    def tensor(self) -> Tensor:
        """All batches."""
        return self.buffer[: self.count]

    @staticmethod
    def _empty(batch: Tensor, count: int) -> Tensor:
        channels_last = batch.ndim == 4 and batch.is_contiguous(memory_format=torch.channels_last)
        return torch.empty(
            (count, *batch.shape[1:]),
            dtype=batch.dtype,
            device=batch.device,
            memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        )


def _modules_at(model: nn.Module, sites: Sequence[str]) -> dict[str, tuple[str, str]]:
    """By name of each module at one of the sites, the layer's name and the site."""
    modules = {}
    for name, module in model.named_modules():
        block, _, last = name.rpartition(".")
        if block and last in SITE_TYPES:
            modules[name] = (block, last)
        else:
            for site, types in SITE_TYPES.items():
                if isinstance(module, types):
                    modules[name] = (name, site)
    return {name: place for name, place in modules.items() if place[1] in sites}


def _keep(
    name: str, calls: dict[str, int], outputs: dict[tuple[str, int], _Rows], batch_count: int
) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise TypeError(f"{name} puts out a {type(output).__name__} and not a tensor")
        calls[name] = calls.get(name, 0) + 1
        key = (name, calls[name])
        if key not in outputs:
            outputs[key] = _Rows(output, batch_count)
        outputs[key].append(output)

    return hook
