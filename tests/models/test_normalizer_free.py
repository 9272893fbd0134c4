"""Tests of the normalizer-free ResNet against its published formulas."""

import math

import pytest
import torch
from torch.nn import functional

from bnstudy.errors import UserError
from bnstudy.models.normalizer_free import ScaledStandardizedConv2d
from bnstudy.representations import capture
from tests.models.conftest import network, weighted


def test_scaled_weight_standardization() -> None:
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
    block = made.stage2.block01
    expected = functional.pad(x[:, :, ::2, ::2] / math.sqrt(1.12), (0, 0, 0, 0, 0, 8))
    torch.testing.assert_close(block(x), expected)  # the branch starts at 0
    assert made.stage2.block02.beta == pytest.approx(math.sqrt(1.04))


def test_it_is_paired_and_read_as_the_resnet() -> None:
    ours, theirs = (network("resnet", normalizer_free=free) for free in (True, False))
    for name, layer in weighted(theirs).items():
        assert torch.equal(weighted(ours)[name].weight, layer.weight)
    batches = [(torch.randn(4, 1, 28, 28), torch.arange(4) % 2)]
    read = [len(list(capture(one, batches, distances=False))) for one in (ours, theirs)]
    assert read == [7, 7]


def test_it_needs_no_norm() -> None:
    with pytest.raises(UserError, match=r"normalizer_free=true needs norm=none"):
        network("resnet", "batchnorm", normalizer_free=True)
