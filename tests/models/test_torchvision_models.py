"""Tests of torchvision's classifiers with exchanged normalization layers."""

from collections import Counter

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.convnext import LayerNorm2d

from bnstudy.errors import UserError
from bnstudy.models import convnext, initialize, torchvision_network
from bnstudy.models.norm_layers import (
    ChannelAffine,
    ChannelsLast,
    NoNorm,
    WeightStandardizedConv2d,
)
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext", "swin_t"])
def test_layernorms_are_replaced(name: str) -> None:
    def made(norm: str) -> nn.Module:
        torch.manual_seed(0)
        if name == "convnext":
            return convnext(6, 0.125, 0.1, norm=normalization(norm), **COLOUR)
        return torchvision_network(name, norm=normalization(norm), **COLOUR)

    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    ours, other = made("layernorm_channels"), made("batchnorm")
    if name == "swin_t":
        theirs = torchvision.models.swin_t(weights=None, num_classes=10)
        values = zip(theirs.state_dict(), ours.state_dict().values(), strict=True)
        theirs.load_state_dict(dict(values))
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-3, atol=1e-4)
    norms = kinds(other)[nn.BatchNorm2d]
    assert norms == kinds(ours)[LayerNorm2d] > 5
    assert nn.LayerNorm not in kinds(other)
    for one, twin in zip(weighted(ours).values(), weighted(other).values(), strict=True):
        assert torch.equal(one.weight, twin.weight)
    assert other(x).isfinite().all()
    read = list(capture(other, [(x, torch.arange(4) % 2)], sites=["norm"], distances=False))
    assert len(read) == norms


def test_channels_last_norms_normalize_channels() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 6, 7, 8)
    for norm in ("batchnorm", "groupnorm", "layernorm_channels"):
        layer = normalization(norm).layer(8)
        expected = layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        torch.testing.assert_close(ChannelsLast(layer)(x), expected)
        torch.testing.assert_close(ChannelsLast(layer)(x.flatten(1, 2)), expected.flatten(1, 2))


def test_convnext_has_the_published_number_of_parameters() -> None:
    ours = convnext(
        18, 1, norm=normalization("layernorm_channels"), **COLOUR | {"num_classes": 1000}
    )
    stem = 3 * 96 * (4 * 4 - 2 * 2)
    assert round((sum(one.numel() for one in ours.parameters()) + stem) / 1e6) == 29  # ConvNeXt-T
    with pytest.raises(UserError, match=r"depth=8 .* 6, 12, 18"):
        convnext(8, 1, norm=normalization("none"), **COLOUR)


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "norm", "words"),
    [
        (
            "resnet81",
            "none",
            "resnet81 is not one of .*; did you mean .*resnet18",
        ),
        ("xyz", "none", "classifiers; expected a name such as resnet18 or vgg11_bn"),
        ("alexnet", "none", "alexnet has no normalization"),
        ("convnext_tiny", "evonorm_s0", "no activation follows the norms of model.name=convnext_"),
        ("densenet121", "groupnorm", "does not accept 28x28 images"),
        ("resnet18", "instancenorm", "with norm=instancenorm does not accept 28x28 images"),
    ],
)
def test_networks_that_cannot_be_used_are_refused(name: str, norm: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        torchvision_network(name, norm=normalization(norm), **GREY)


def test_the_position_is_torchvisions() -> None:
    with pytest.raises(UserError, match=r"norm.position=post is not possible"):
        torchvision_network("resnet18", norm=normalization("batchnorm", position="post"), **COLOUR)
