"""Replacement of a network's norms by the chosen norm, and checks of networks of the user's own."""

import copy
from itertools import chain

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized
from torchvision.models.convnext import LayerNorm2d

from bnstudy.adapters.torch_internals import share_hooks
from bnstudy.errors import UserError, first_line
from bnstudy.models.norm_layers import ChannelsLast
from bnstudy.models.normalization import Normalization
from bnstudy.representations.network import is_softmax
from bnstudy.representations.taps import ACTIVATIONS

_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def replace_norm_layers(network: nn.Module, norm: Normalization) -> None:
    """Replace the BatchNorm2d and channel LayerNorm layers of a network by the chosen norm.

    A replacement takes over the parameters `weight` and `bias`, if it has such parameters, and the
    dtype, the device and the forward and backward hooks of the layer that it replaces.

    Convolutions stay the same objects, with their parameters and hooks; only their class changes,
    for weight standardization. All other layers are kept. A layer that is used in several places
    stays one layer. Modules that change their input in place no longer do so. If the chosen norm
    contains an activation function, an identity replaces each activation function that has the same
    parent module as a BatchNorm2d.

    Args:
        network: Network, changed in place.
        norm: Factory of the normalization layers.
    """
    replacements: dict[nn.Module, nn.Module] = {}  # of norms; one norm may have several parents
    convolutions = {module for module in network.modules() if type(module) is nn.Conv2d}
    for parent in [*network.modules()]:
        # In eval mode torch would read attributes of the LayerNorms, and compute a layer or encoder
        # without calling its modules. These two values prevent it.
        if isinstance(parent, nn.TransformerEncoderLayer):
            parent.activation_relu_or_gelu = 0
        elif isinstance(parent, nn.TransformerEncoder):
            parent.use_nested_tensor = False
        is_fused = norm.has_activation and any(
            isinstance(child, nn.BatchNorm2d) for child in parent.children()
        )
        # `named_children` would omit a second name of the same child.
        for name, child in [*parent._modules.items()]:
            if getattr(child, "inplace", False):  # it would overwrite what a regularizer reads
                child.inplace = False  # type: ignore[union-attr]
            if isinstance(child, nn.BatchNorm2d | nn.LayerNorm):
                if child not in replacements:
                    replacements[child] = _make_replacement(child, norm, network)
                setattr(parent, name, replacements[child])
            elif is_fused and isinstance(child, ACTIVATIONS):
                setattr(parent, name, norm.activation())
            elif child in convolutions:
                # Earlier versions made a new convolution, which drew random weights. As many
                # numbers are drawn, so that layers created after it have the same weights as there.
                for parameter in child.parameters():
                    torch.empty_like(parameter).uniform_()
                child.__class__ = norm.convolution_class


def _make_replacement(
    layer: nn.BatchNorm2d | nn.LayerNorm, norm: Normalization, network: nn.Module
) -> nn.Module:
    if isinstance(layer, nn.BatchNorm2d):
        made = norm.layer(layer.num_features)
    else:
        made = norm.layer(layer.normalized_shape[0])
    tensors = chain(layer.parameters(), layer.buffers(), network.parameters())
    like = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    if like is not None:
        made.to(like.device, like.dtype)
    # A subclass may use its parameters in another way, such as 1 + weight.
    is_known = type(layer) in (nn.BatchNorm2d, nn.LayerNorm, LayerNorm2d)
    parameters = dict(layer.named_parameters(recurse=False)) if is_known else {}
    if parameters and not any(parameter.requires_grad for parameter in parameters.values()):
        made.requires_grad_(False)  # also parameters that only the chosen norm has
    for name, parameter in made.named_parameters(recurse=False):
        if name in parameters and parameters[name].shape == parameter.shape:
            setattr(made, name, parameters[name])
    if not isinstance(layer, nn.BatchNorm2d | LayerNorm2d):
        made = ChannelsLast(made)
    share_hooks(layer, made)
    return made


def adapt(
    network: nn.Module,
    name: str,
    norm: Normalization | None,
    input_shape: tuple[int, ...],
    num_classes: int,
) -> None:
    """Give a user's network the chosen norm, and verify that bnstudy can train it.

    A warning is issued if its outputs are probabilities.

    Args:
        network: Network with its initial weights; changed in place.
        name: Name of the network for error messages, such as `model._target_=mypackage.Net`.
        norm: Norm that replaces those of the network; None if the network's constructor took the
            chosen norm, and made its layers by `norm.layer`.
        input_shape: Shape of a sample.
        num_classes: Length of the output.

    Raises:
        UserError: The network is not a module, it cannot be copied, its norms or convolutions
            cannot be replaced by those of the chosen norm, it does not map samples to one logit per
            class, or its output has no gradient.
    """
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{name} makes a {type(network).__name__}, not a torch.nn.Module\n"
            "Name a class of a network, or a function that returns one"
        )
    if any(isinstance(module, LazyModuleMixin) for module in network.modules()):
        _run(network.eval(), name, input_shape)  # the first pass creates lazy parameters
    if norm is not None:
        _require_replaceable(network, name, norm)
        replace_norm_layers(network, norm)
    # The network is run in eval mode and, because some networks have several outputs then, also in
    # training mode: on a copy, because running statistics change.
    has_softmax = False
    for trial in (network.eval(), _copy(network, name).train()):
        logits = _run(trial, name, input_shape)
        if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                f"{name}: its output for 2 samples is {shape}, expected (2, {num_classes}), one "
                "logit for each class\n"
                "Let its constructor take num_classes, or set the key that determines its outputs"
            )
        if trial.training and not logits.requires_grad:
            raise UserError(
                f"{name}: its output has no gradient, so that it cannot be trained\n"
                "Do not detach it or compute it with torch.no_grad, and let a parameter on which "
                "it depends have requires_grad=True"
            )
        has_softmax = has_softmax or is_softmax(logits)
    if has_softmax:
        rank_zero_warn(
            f"{name}: its outputs are probabilities, and the loss expects logits\n"
            "Remove the softmax at its end"
        )
    network.train()


def _copy(network: nn.Module, name: str) -> nn.Module:
    try:
        return copy.deepcopy(network)
    except (RuntimeError, TypeError) as error:
        raise UserError(
            f"{name} cannot be copied ({type(error).__name__}: {first_line(error)})\n"
            "Keep what cannot be copied, such as a lock, out of it; for weight normalization, use "
            "torch.nn.utils.parametrizations.weight_norm"
        ) from error


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
    norms = [module for module in network.modules() if isinstance(module, _NORMS)]
    if not norms:
        raise UserError(
            f"{name} takes no `norm`, and has neither BatchNorm nor LayerNorm to replace\n{advice}"
        )
    if others := {type(module).__name__ for module in norms if not _is_replaceable(module)}:
        raise UserError(
            f"{name}: only nn.BatchNorm2d and nn.LayerNorm over channels are replaced, and it has "
            f"{', '.join(sorted(others))}\n{advice}"
        )
    if norm.has_activation and not any(isinstance(module, nn.BatchNorm2d) for module in norms):
        raise UserError(
            f"norm={norm.name} contains an activation function, and replaces those beside a "
            f"BatchNorm2d; {name} has no BatchNorm2d\nChoose another norm, or: {advice}"
        )
    if norm.convolution_class is not nn.Conv2d:
        types = {type(module) for module in network.modules() if isinstance(module, nn.Conv2d)}
        if subclasses := sorted(kind.__name__ for kind in types - {nn.Conv2d}):
            raise UserError(
                f"{name}: norm={norm.name} standardizes the weights of nn.Conv2d only, and it has "
                f"{', '.join(subclasses)}\n"
                "Use nn.Conv2d without a parametrization, or choose another norm"
            )


def _is_replaceable(module: nn.Module) -> bool:
    if isinstance(module, nn.LayerNorm):
        return len(module.normalized_shape) == 1 and not is_parametrized(module)
    return type(module) is nn.BatchNorm2d


def _run(network: nn.Module, name: str, input_shape: tuple[int, ...]) -> object:
    try:
        with torch.set_grad_enabled(network.training):
            return network(torch.zeros(2, *input_shape))
    except UserError:
        raise
    except Exception as error:  # of any class: the network is the user's code
        size = "x".join(map(str, input_shape))
        raise UserError(
            f"{name} does not take a batch of two {size} samples "
            f"({type(error).__name__}: {first_line(error)})\n"
            "Let its constructor take input_shape, use norm.layer(channels) for feature maps "
            "(N x C x H x W) only, or choose other data"
        ) from error
