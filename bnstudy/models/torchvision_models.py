"""torchvision's classifiers with exchangeable normalization layers."""

import copy
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import LayerNorm2d

from bnstudy.errors import UserError, first_line
from bnstudy.models.normalization import Normalization
from bnstudy.models.own_network import replace_norm_layers
from bnstudy.terms import suggest


class GreyToColour(nn.Module):
    """Conversion of grey images to three equal channels, for networks that read colour images."""

    def forward(self, x: Tensor) -> Tensor:
        """Map N x 1 x H x W to N x 3 x H x W."""
        return x.expand(-1, 3, -1, -1)


def torchvision_network(
    name: str, *, input_shape: tuple[int, int, int], num_classes: int, norm: Normalization
) -> nn.Module:
    """Create an untrained classifier of torchvision's whose norms are replaced by the chosen norm.

    The network's own norms are BatchNorm, or LayerNorm over the channels as in ConvNeXt, Swin and
    vision transformers. In networks with LayerNorm, norm=layernorm_channels is torchvision's norm.

    As in torchvision, most convolutions have no bias. With `norm=none` such a layer cannot shift
    its activations; with `norm=affine` it can, without normalizing them.

    A norm that contains its activation function replaces every BatchNorm, even one that no
    activation function follows.

    Args:
        name: Name in `torchvision.models.list_models()`, such as resnet18.
        input_shape: Channels, height and width of an image; a grey image is repeated to three
            channels.
        num_classes: Length of the output.
        norm: Factory of the normalization layers.

    Raises:
        UserError: The name is unknown, the network has no norm, the chosen norm is not possible in
            it, or the network does not accept images of this size.
    """
    names = models.list_models(module=models)
    if name not in names:
        near = suggest(name, names, n=5)
        raise UserError(
            f"model.name={name} is not one of torchvision's classifiers; "
            f"{near or 'expected a name such as resnet18 or vgg11_bn'}\n"
            "torchvision.models.list_models(module=torchvision.models) lists them"
        )
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    replace_norms(network, name, norm)
    if input_shape[0] == 1:
        network = nn.Sequential(OrderedDict(colour=GreyToColour(), network=network))
    check_input_size(network, name, input_shape, norm)
    return network


def replace_norms(network: nn.Module, name: str, norm: Normalization) -> None:
    """Give a network's norms and convolutions the classes of the chosen norm.

    Args:
        network: Network of torchvision's, changed in place.
        name: Name of the network.
        norm: Factory of the normalization layers.

    Raises:
        UserError: The network has no norm, or the chosen norm is not possible in it.
    """
    if norm.position != "pre":
        raise UserError(
            f"norm.position={norm.position} is not possible with model.name={name}: the norm has "
            "the position of torchvision's norm; set norm.position=pre"
        )
    types = {type(module) for module in network.modules()}
    if not types & {nn.BatchNorm2d, nn.LayerNorm, LayerNorm2d}:
        raise UserError(
            f"model.name={name} has no normalization that could be replaced; choose another, such "
            "as resnet18, vgg16_bn, densenet121, mobilenet_v2 or convnext_tiny"
        )
    if norm.has_activation and nn.BatchNorm2d not in types:
        raise UserError(
            f"norm={norm.name} contains its activation function, but no activation follows the "
            f"norms of model.name={name}; choose another norm"
        )
    replace_norm_layers(network, norm)


def check_input_size(
    network: nn.Module, name: str, input_shape: tuple[int, int, int], norm: Normalization
) -> None:
    """Verify that a network accepts images, by a pass on the meta device, which computes no values.

    Args:
        network: Network; a copy of it is run.
        name: Name of the network, for the error message.
        input_shape: Channels, height and width of an image.
        norm: Factory of the normalization layers, for the error message.

    Raises:
        UserError: The network does not accept such images, or its output is not one tensor.
    """
    trial = copy.deepcopy(network).to("meta").train()
    try:
        logits = trial(torch.empty(2, *input_shape, device="meta"))
    except (AssertionError, RuntimeError, ValueError) as error:
        size = "x".join(map(str, input_shape[1:]))
        raise UserError(
            f"model.name={name} with norm={norm.name} does not accept {size} images "
            f"({first_line(error)})"
        ) from error
    if not isinstance(logits, Tensor):
        raise UserError(f"model.name={name} has several outputs in training; choose another")
