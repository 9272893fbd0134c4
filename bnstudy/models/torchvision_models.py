"""Any of torchvision's classifiers, with another normalization."""

import copy
import difflib
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision import models

from bnstudy.errors import UserError, first_line
from bnstudy.models.normalization import Normalization


class GreyToColour(nn.Module):
    """Gives a grey image the three channels that a network for colour images reads."""

    def forward(self, x: Tensor) -> Tensor:
        """N x 1 x H x W to N x 3 x H x W."""
        return x.expand(-1, 3, -1, -1)


def torchvision_network(
    name: str, *, input_shape: tuple[int, int, int], num_classes: int, norm: Normalization
) -> nn.Module:
    """A classifier of torchvision's, untrained, each BatchNorm replaced by the chosen norm.

    Its convolutions are as torchvision has them, most without a bias: `norm=affine` is the network
    without normalization that can still shift its activations.

    Args:
        name: As in `torchvision.models.list_models()`, such as resnet18.
        input_shape: Channels, height and width of an image; one channel is shown as three.
        num_classes: Length of the output.
        norm: Makes the normalization layers.

    Raises:
        UserError: There is no such network, it has nothing to replace, or cannot take such images.
    """
    names = models.list_models(module=models)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=5) or ["resnet18", "vgg11_bn"]
        raise UserError(
            f"model.name={name} is not one of torchvision's classifiers; near: {', '.join(near)}"
        )
    if norm.position != "pre":
        raise UserError(
            f"norm.position={norm.position} is not possible with model=torchvision: the norm "
            "stands where torchvision has it"
        )
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    replaced = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    if not replaced or any(isinstance(part, nn.LayerNorm) for part in network.modules()):
        raise UserError(
            f"model.name={name} has no BatchNorm, or LayerNorm beside it, which cannot be "
            "replaced; take one such as resnet18, vgg16_bn, densenet121 or mobilenet_v2"
        )
    _replace(network, norm)
    if input_shape[0] == 1:
        network = nn.Sequential(OrderedDict(colour=GreyToColour(), network=network))
    _try(network, name, input_shape, norm)
    return network


def _replace(parent: nn.Module, norm: Normalization) -> None:
    """Put the chosen norm, and its convolutions, in the place of torchvision's."""
    for name, part in parent.named_children():
        if getattr(part, "inplace", False):  # it would overwrite what a regularizer reads
            part.inplace = False  # type: ignore[assignment]
        if isinstance(part, nn.BatchNorm2d):
            setattr(parent, name, norm.layer(part.num_features))
        elif isinstance(part, nn.Conv2d):
            same = (
                "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation",
                "groups", "padding_mode",
            )  # fmt: skip
            arguments = {key: getattr(part, key) for key in same}
            convolution = norm.convolution(**arguments, bias=part.bias is not None)
            convolution.load_state_dict(part.state_dict())  # as torchvision initializes it
            setattr(parent, name, convolution)
        else:
            _replace(part, norm)


def _try(
    network: nn.Module, name: str, input_shape: tuple[int, int, int], norm: Normalization
) -> None:
    """Pass two images of no content through a copy of no content."""
    trial = copy.deepcopy(network).to("meta").train()
    try:
        logits = trial(torch.empty(2, *input_shape, device="meta"))
    except (RuntimeError, ValueError) as error:
        size = "x".join(map(str, input_shape[1:]))
        raise UserError(
            f"model.name={name} with norm={norm.name} cannot take {size} images "
            f"({first_line(error)})"
        ) from error
    if not isinstance(logits, Tensor):
        raise UserError(f"model.name={name} puts out several results in training; take another")
