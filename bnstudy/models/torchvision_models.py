"""torchvision's classifiers with exchangeable normalization layers."""

import copy
import difflib
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision import models

from bnstudy.errors import UserError, first_line
from bnstudy.models.normalization import Normalization
from bnstudy.models.own_network import replace_batchnorm


class GreyToColour(nn.Module):
    """Conversion of grey images to three equal channels, for networks that read colour images."""

    def forward(self, x: Tensor) -> Tensor:
        """Map N x 1 x H x W to N x 3 x H x W."""
        return x.expand(-1, 3, -1, -1)


def torchvision_network(
    name: str, *, input_shape: tuple[int, int, int], num_classes: int, norm: Normalization
) -> nn.Module:
    """Create an untrained classifier of torchvision's, with the chosen norm for each BatchNorm.

    As in torchvision, most convolutions have no bias. With `norm=none` such a layer cannot shift
    its activations; `norm=affine` can, without normalizing them.

    Args:
        name: Name in `torchvision.models.list_models()`, such as resnet18.
        input_shape: Channels, height and width of an image; a grey image is repeated to three
            channels.
        num_classes: Length of the output.
        norm: Factory of the normalization layers.

    Raises:
        UserError: The name is unknown, the network has no BatchNorm or also LayerNorm, the norm is
            after the activation, or the network does not accept images of this size.
    """
    names = models.list_models(module=models)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=5) or ["resnet18", "vgg11_bn"]
        raise UserError(
            f"model.name={name} is not one of torchvision's classifiers; near: {', '.join(near)}"
        )
    if norm.position != "pre":
        raise UserError(
            f"norm.position={norm.position} is not possible with model=torchvision: the norm has "
            "the position of torchvision's BatchNorm; set norm.position=pre"
        )
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    replaced = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    if not replaced or any(isinstance(part, nn.LayerNorm) for part in network.modules()):
        raise UserError(
            f"model.name={name} has no BatchNorm, or has LayerNorm too, which cannot be "
            "replaced; choose another, such as resnet18, vgg16_bn, densenet121 or mobilenet_v2"
        )
    replace_batchnorm(network, norm)
    if input_shape[0] == 1:
        network = nn.Sequential(OrderedDict(colour=GreyToColour(), network=network))
    _check_input_size(network, name, input_shape, norm)
    return network


def _check_input_size(
    network: nn.Module, name: str, input_shape: tuple[int, int, int], norm: Normalization
) -> None:
    """Run a copy of the network on the meta device, which checks shapes without computing.

    Raises:
        UserError: The network does not accept such images, or its output is not one tensor.
    """
    trial = copy.deepcopy(network).to("meta").train()
    try:
        logits = trial(torch.empty(2, *input_shape, device="meta"))
    except (RuntimeError, ValueError) as error:
        size = "x".join(map(str, input_shape[1:]))
        raise UserError(
            f"model.name={name} with norm={norm.name} does not accept {size} images "
            f"({first_line(error)})"
        ) from error
    if not isinstance(logits, Tensor):
        raise UserError(f"model.name={name} has several outputs in training; choose another")
