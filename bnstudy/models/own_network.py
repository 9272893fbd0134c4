"""Networks of the user's own: their norms are replaced, and what cannot be used is explained."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torchvision.models.convnext import LayerNorm2d

from bnstudy.errors import UserError, first_line
from bnstudy.models.norm_layers import ChannelsLast
from bnstudy.models.normalization import Normalization
from bnstudy.representations.taps import ACTIVATIONS

_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# Arguments of a convolution that its replacement has as well.
CONVOLUTION = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups",
    "padding_mode",
)  # fmt: skip


def replace_norm_layers(parent: nn.Module, norm: Normalization) -> None:
    """Replace each norm and each convolution below a module by those of the chosen norm.

    Norms are BatchNorm of images, and LayerNorm over channels.

    Other layers and the weights of convolutions are kept. Modules that change their input in place
    no longer do so. With a norm that contains its activation function, the activation functions of
    modules that have a BatchNorm are replaced too.

    Args:
        parent: Network, changed in place.
        norm: Factory of the normalization layers.
    """
    is_fused = norm.has_activation and any(
        isinstance(part, nn.BatchNorm2d) for part in parent.children()
    )
    for name, part in parent.named_children():
        if getattr(part, "inplace", False):  # a regularizer reads the input
            part.inplace = False  # type: ignore[assignment]
        if isinstance(part, nn.BatchNorm2d):
            setattr(parent, name, norm.layer(part.num_features))
        elif isinstance(part, nn.LayerNorm):  # a LayerNorm2d is one too
            (num_channels,) = part.normalized_shape
            layer = norm.layer(num_channels)
            setattr(parent, name, layer if isinstance(part, LayerNorm2d) else ChannelsLast(layer))
        elif is_fused and isinstance(part, ACTIVATIONS):
            setattr(parent, name, norm.activation())
        elif type(part) is nn.Conv2d:
            arguments = {key: getattr(part, key) for key in CONVOLUTION}
            convolution = norm.convolution(**arguments, bias=part.bias is not None)
            convolution.load_state_dict(part.state_dict())  # keep the initial weights
            setattr(parent, name, convolution)
        else:
            replace_norm_layers(part, norm)


def adapt(
    network: nn.Module,
    name: str,
    norm: Normalization | None,
    input_shape: tuple[int, ...],
    num_classes: int,
) -> None:
    """Give a network of the user's the chosen norm, and verify that it can be trained here.

    Args:
        network: Network with its initial weights; changed in place.
        name: Name of the network for error messages, such as `model._target_=mypackage.Net`.
        norm: Norm that replaces those of the network; None if the network has made its
            normalization layers by the chosen norm itself.
        input_shape: Shape of a sample.
        num_classes: Length of the output.

    Raises:
        UserError: It is not a module, has no norm that can be replaced, or does not map
            samples to one logit per class.
    """
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{name} makes a {type(network).__name__}, not a torch.nn.Module\n"
            "Name a class of a network, or a function that returns one"
        )
    if any(isinstance(part, LazyModuleMixin) for part in network.modules()):
        _run(network.eval(), name, input_shape)
    if norm is not None:
        _require_replaceable(network, name, norm)
        replace_norm_layers(network, norm)
    # Also in training mode, in which some networks have several outputs; on a copy, because
    # running statistics would change.
    for trial in (network.eval(), copy.deepcopy(network).train()):
        logits = _run(trial, name, input_shape)
        if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                f"{name}: its output for 2 samples is {shape}, expected (2, {num_classes}), one "
                f"logit for each class\nLet its constructor take num_classes, or set its key for it"
            )
    network.train()


def _require_replaceable(network: nn.Module, name: str, norm: Normalization) -> None:
    advice = (
        "Let its constructor take `norm`, and make its layers by norm.layer(channels), which "
        "normalizes feature maps (N x C x H x W) only"
    )
    if norm.position != "pre":
        raise UserError(
            f"norm.position={norm.position} is not possible with {name}: the norm has the "
            f"position of the layer that it replaces\nSet norm.position=pre, or: {advice}"
        )
    norms = [part for part in network.modules() if isinstance(part, _NORMS)]
    if not norms:
        raise UserError(
            f"{name} takes no `norm`, and has neither BatchNorm nor LayerNorm to replace\n{advice}"
        )
    if others := {type(part).__name__ for part in norms if not _is_replaceable(part)}:
        raise UserError(
            f"{name}: only nn.BatchNorm2d and nn.LayerNorm over channels are replaced, and it has "
            f"{', '.join(sorted(others))}\n{advice}"
        )
    if norm.has_activation and not any(isinstance(part, nn.BatchNorm2d) for part in norms):
        raise UserError(
            f"norm={norm.name} contains its activation function, but none follows each LayerNorm "
            f"of {name}\nChoose another norm, or: {advice}"
        )


def _is_replaceable(part: nn.Module) -> bool:
    is_over_channels = isinstance(part, nn.LayerNorm) and len(part.normalized_shape) == 1
    return is_over_channels or type(part) is nn.BatchNorm2d


def _run(network: nn.Module, name: str, input_shape: tuple[int, ...]) -> object:
    try:
        with torch.no_grad():
            return network(torch.zeros(2, *input_shape))
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        size = "x".join(map(str, input_shape))
        raise UserError(
            f"{name} does not take a batch of two {size} samples "
            f"({type(error).__name__}: {first_line(error)})\n"
            "Let its constructor take input_shape, use norm.layer(channels) for feature maps "
            "(N x C x H x W) only, or choose other data"
        ) from error
