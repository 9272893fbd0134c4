"""Tests of the normalizer-free ResNet against its published formulas."""

import math

import pytest
import torch
from torch.nn import functional

from bnstudy.errors import UserError
from bnstudy.models.normalizer_free import ScaledStandardizedConv2d
from bnstudy.models.optimizers import clip_adaptively
from bnstudy.representations import capture
from tests.models.conftest import network, weighted


def test_scaled_weight_standardization_is_the_published_formula() -> None:
    torch.manual_seed(0)
    made = ScaledStandardizedConv2d(3, 5)
    torch.nn.init.normal_(made.gain, 1)
    x = torch.randn(2, 3, 7, 7)
    weight = made.weight.detach()
    centred = weight - weight.mean((1, 2, 3), keepdim=True)
    variance = centred.square().mean((1, 2, 3), keepdim=True)
    standardized = made.gain[:, None, None, None] * centred / (variance * 27).sqrt()
    torch.testing.assert_close(
        made(x), functional.conv2d(x, standardized, made.bias, padding=1), rtol=1e-4, atol=1e-5
    )


def test_a_block_is_the_published_formula() -> None:
    made = network("resnet", normalizer_free=True, depth=20)
    gain = math.sqrt(2 / (1 - 1 / math.pi))
    x = torch.randn(2, 8, 6, 6)
    for number, beta in ((1, 1), (2, math.sqrt(1.04)), (3, math.sqrt(1.08))):
        block = made.stage1.get_submodule(f"block0{number}")
        torch.nn.init.constant_(block.skip_gain, 0.7)
        branch = block.first.conv(gain * torch.relu(x / beta))
        branch = block.second.conv(gain * torch.relu(branch))
        torch.testing.assert_close(block(x), x + 0.2 * 0.7 * branch)


def test_a_block_that_halves_the_image_is_the_published_formula() -> None:
    made = network("resnet", normalizer_free=True, depth=20)
    gain = math.sqrt(2 / (1 - 1 / math.pi))
    x = torch.randn(2, 8, 7, 7)
    block = made.stage2.block01
    activated = gain * torch.relu(x / math.sqrt(1.12))
    weight = block.shortcut.weight
    assert weight.shape == (16, 8, 1, 1)
    centred = weight - weight.mean(1, keepdim=True)
    standardized = centred / centred.square().sum(1, keepdim=True).sqrt()
    shortcut = functional.conv2d(activated, standardized, stride=2)
    torch.testing.assert_close(block(x), shortcut)  # the branch starts at 0
    torch.nn.init.constant_(block.skip_gain, 0.7)
    branch = block.second.conv(gain * torch.relu(block.first.conv(activated)))
    torch.testing.assert_close(block(x), shortcut + 0.2 * 0.7 * branch)
    assert made.stage2.block02.beta == pytest.approx(math.sqrt(1.04))


@pytest.mark.parametrize(("skip_gain", "lowest", "highest"), [(0, 0.6, 1.0), (1, 0.9, 1.3)])
def test_variances_are_about_1_at_the_start(
    skip_gain: float, lowest: float, highest: float
) -> None:
    torch.manual_seed(0)
    made = network("resnet", normalizer_free=True, depth=20, width=1)
    for name, parameter in made.named_parameters():
        if name.endswith("skip_gain"):
            torch.nn.init.constant_(parameter, skip_gain)  # 1 is what the prediction assumes
    x = torch.randn(64, 1, 28, 28)
    with torch.no_grad():
        for part in (made.stem, made.stage1, made.stage2, made.stage3, made.act):
            x = part(x)
            of_channels = x.var((0, 2, 3))
            assert lowest < of_channels.mean() < highest
            assert of_channels.min() > 0.1  # no channel is dead


def test_skip_gains_learn_although_gradients_are_clipped() -> None:
    torch.manual_seed(0)
    made = network("resnet", normalizer_free=True)
    loss = functional.cross_entropy(made(torch.randn(8, 1, 28, 28)), torch.arange(8))
    loss.backward()
    before = {name: one.grad.clone() for name, one in made.named_parameters()}
    clip_adaptively(made, 1e-6)
    for name, one in made.named_parameters():
        if name.endswith("skip_gain"):
            assert one.grad == before[name] != 0
    assert not torch.equal(made.stem.conv.weight.grad, before["stem.conv.weight"])


def test_it_is_paired_and_read_as_the_resnet() -> None:
    ours, theirs = (network("resnet", normalizer_free=free) for free in (True, False))
    for name, layer in weighted(theirs).items():
        assert torch.equal(weighted(ours)[name].weight, layer.weight)
    added = weighted(ours).keys() - weighted(theirs).keys()
    assert added == {"stage2.block01.shortcut", "stage3.block01.shortcut"}
    batches = [(torch.randn(4, 1, 28, 28), torch.arange(4) % 2)]
    for sites in (["act"], ["conv"]):
        read = [
            len(list(capture(one, batches, sites=sites, distances=False))) for one in (ours, theirs)
        ]
        assert read == [7, 7]


def test_it_needs_no_norm() -> None:
    with pytest.raises(UserError, match=r"normalizer_free=true needs norm=none"):
        network("resnet", "batchnorm", normalizer_free=True)


def test_it_needs_several_channels() -> None:
    with pytest.raises(UserError, match=r"model.width=0.125 is too small .* at least 0.2"):
        network("resnet", normalizer_free=True, width=0.125)
