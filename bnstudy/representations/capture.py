"""Reading the activations of a network's layers."""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
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
        model: Called with the inputs of each batch.
        batches: (inputs, labels), on the model's device.
        sites: Any of conv, norm and act.

    Returns:
        By tap, in the order of computation, the activations of all samples, copied before anything
        can overwrite them; and the labels.

    Raises:
        TypeError: A module at one of the sites puts out something that is no tensor.
    """
    labels: list[Tensor] = []
    pieces: dict[tuple[str, int], list[Tensor]] = {}  # by module's name and which call it is
    modules = _modules_at(model, sites)
    training = {module: module.training for module in model.modules()}
    with ExitStack() as stack:
        for module, mode in training.items():
            stack.callback(setattr, module, "training", mode)
        model.eval()
        calls: dict[str, int] = {}
        for name in modules:
            hook = model.get_submodule(name).register_forward_hook(_keep(name, calls, pieces))
            stack.callback(hook.remove)
        for inputs, batch_labels in batches:
            calls.clear()
            model(inputs)
            labels.append(batch_labels)

    shared = len(os.path.commonprefix([layer.split(".")[:-1] for layer, _ in modules.values()]))
    layers: dict[str, int] = {}
    activations: dict[Tap, Tensor] = {}
    for (name, call), tensors in pieces.items():
        layer, site = modules[name]
        layer = ".".join(layer.split(".")[shared:]) + (f"#{call}" if call > 1 else "")
        index = layers.setdefault(layer, len(layers))
        activations[Tap(index, layer, site)] = torch.cat(tensors)
        tensors.clear()  # one layer at a time is held twice, not all
    return activations, torch.cat(labels)


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
    name: str, calls: dict[str, int], pieces: dict[tuple[str, int], list[Tensor]]
) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise TypeError(f"{name} puts out a {type(output).__name__} and not a tensor")
        calls[name] = calls.get(name, 0) + 1
        pieces.setdefault((name, calls[name]), []).append(output.clone())

    return hook
