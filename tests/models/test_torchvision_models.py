"""Tests of torchvision's classifiers with exchanged normalization layers."""

from collections import Counter

import pytest
import torch
import torchvision
from torch import nn

from bnstudy.errors import UserError
from bnstudy.models import initialize, torchvision_network
from bnstudy.models.norm_layers import ChannelAffine, NoNorm, WeightStandardizedConv2d
from bnstudy.representations import capture
from tests.models.conftest import COLOUR, GREY, normalization, weighted


def kinds(model: nn.Module) -> Counter[type]:
    return Counter(type(module) for module in model.modules())


def test_batchnorm_is_the_network_as_it_comes() -> None:
    ours = torchvision_network("resnet18", norm=normalization("batchnorm"), **COLOUR)
    theirs = torchvision.models.resnet18(weights=None, num_classes=10)
    assert kinds(ours) == kinds(theirs)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("norm", "instead"),
    [
        ("none", NoNorm),
        ("groupnorm", nn.GroupNorm),
        ("affine", ChannelAffine),
        ("weightstandardization", nn.GroupNorm),
    ],
)
@pytest.mark.parametrize(
    "name", ["shufflenet_v2_x0_5", pytest.param("resnet18", marks=pytest.mark.long)]
)
def test_every_batchnorm_is_replaced(name: str, norm: str, instead: type) -> None:
    reference = torchvision_network(name, norm=normalization("batchnorm"), **COLOUR)
    ours = torchvision_network(name, norm=normalization(norm), **COLOUR)
    for model in (reference, ours):
        initialize(model, 0)
    found, expected = kinds(ours), kinds(reference)
    assert nn.BatchNorm2d not in found
    assert found[instead] - expected[instead] == expected[nn.BatchNorm2d] > 0
    convolution = WeightStandardizedConv2d if norm == "weightstandardization" else nn.Conv2d
    assert found[convolution] == expected[nn.Conv2d]
    for (layer, one), other in zip(
        weighted(ours).items(), weighted(reference).values(), strict=True
    ):
        assert torch.equal(one.weight, other.weight), layer
    assert ours(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_a_norm_with_its_own_activation_replaces_the_relu_that_follows() -> None:
    ours = torchvision_network("resnet18", norm=normalization("evonorm_s0"), **COLOUR)
    assert nn.ReLU not in kinds(ours)
    vgg = torchvision_network("vgg11_bn", norm=normalization("evonorm_s0"), **COLOUR)
    assert kinds(vgg.features)[nn.ReLU] == 0
    assert kinds(vgg.classifier)[nn.ReLU] == 2  # no norm precedes them


@pytest.mark.parametrize("norm", ["affine", "none"])
def test_grey_images_are_shown_in_colour_and_norms_are_read(norm: str) -> None:
    ours = torchvision_network("resnet18", norm=normalization(norm), **GREY)
    batches = [(torch.randn(6, 1, 28, 28), torch.arange(6) % 2)]
    names = [layer.name for layer in capture(ours, batches, sites=["norm"])]
    assert names[:2] == ["bn1", "layer1.0.bn1"]
    assert len(names) == 20


# Number of calls of activation functions. (9 of the 42 activation modules of mobilenet_v3_small are
# gates of squeeze-and-excitation blocks.)
ACTIVATIONS = {
    "mobilenet_v2": 35,
    "mobilenet_v3_small": 33,
    "resnet18": 17,
    "shufflenet_v2_x0_5": 37,
    "squeezenet1_1": 26,
}


@pytest.mark.parametrize(("name", "activations"), ACTIVATIONS.items())
def test_every_convolution_and_activation_of_torchvisions_networks_is_read(
    name: str, activations: int
) -> None:
    model = torchvision.models.get_model(name, weights=None, num_classes=3)
    batches = [(torch.randn(2, 3, 64, 64), torch.arange(2))]
    read = list(capture(model, batches, sites=["act"], distances=False))
    assert len(read) == activations
    read = list(capture(model, batches, sites=["conv"], distances=False))
    modules = model.named_modules()
    assert {one.name for one in read} == {name for name, part in modules if type(part) is nn.Conv2d}


@pytest.mark.parametrize(
    ("name", "norm", "words"),
    [
        ("resnet81", "none", "resnet81 is not one of torchvision's classifiers; near: .*resnet18"),
        ("alexnet", "none", "alexnet has no BatchNorm"),
        ("convnext_tiny", "none", "has LayerNorm too"),
        ("densenet121", "groupnorm", "does not accept 28x28 images"),
        ("resnet18", "instancenorm", "with norm=instancenorm does not accept 28x28 images"),
    ],
)
def test_what_cannot_be_is_refused(name: str, norm: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        torchvision_network(name, norm=normalization(norm), **GREY)


def test_the_position_is_torchvisions() -> None:
    with pytest.raises(UserError, match=r"norm.position=post is not possible"):
        torchvision_network("resnet18", norm=normalization("batchnorm", position="post"), **COLOUR)
