"""Networks that differ in their normalization and in nothing else."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from bnstudy.errors import UserError
from bnstudy.models import CNN, initialize
from bnstudy.models.normalization import normalization

NORMS: dict[str, dict[str, Any]] = {
    "batchnorm": {"eps": 1e-5, "momentum": 0.1},
    "none": {},
    "layernorm": {"eps": 1e-5},
    "groupnorm": {"eps": 1e-5, "num_groups": 4},
    "instancenorm": {"eps": 1e-5},
}


def network(norm: str, depth: int = 4, seed: int = 0) -> CNN:
    model = CNN(
        depth,
        8,
        input_shape=(1, 28, 28),
        num_classes=10,
        norm=partial(normalization, name=norm, **NORMS[norm]),
    )
    initialize(model, seed)
    return model


def layers(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


@pytest.mark.parametrize("norm", NORMS)
def test_weights_and_names_do_not_depend_on_the_norm(norm: str) -> None:
    torch.manual_seed(hash(norm) % 1000)  # nor on torch's global random numbers
    ours, reference = network(norm), network("none")
    assert [name for name, _ in ours.named_modules()] == [
        name for name, _ in reference.named_modules()
    ]
    for (name, one), other in zip(layers(ours).items(), layers(reference).values(), strict=True):
        assert torch.equal(one.weight, other.weight), name
        assert torch.equal(one.bias, other.bias), name


def test_seeds_and_layers_differ() -> None:
    first, second = layers(network("none", seed=0)), layers(network("none", seed=1))
    assert not torch.equal(first["block02.conv"].weight, second["block02.conv"].weight)
    four, six = layers(network("none", depth=4)), layers(network("none", depth=6))
    assert torch.equal(four["block03.conv"].weight, six["block03.conv"].weight)


def test_weights_have_the_variance_of_he() -> None:
    weight = layers(network("none", depth=8))["block08.conv"].weight
    assert weight.var().item() == pytest.approx(2 / weight[0].numel(), rel=0.05)


@pytest.mark.parametrize("norm", NORMS)
def test_normalization_is_as_defined(norm: str) -> None:
    x = 3 * torch.randn(6, 8, 5, 5) + 1
    y = normalization(8, norm, **NORMS[norm])(x)
    if norm == "none":
        assert torch.equal(y, x)
        return
    dimensions = {"batchnorm": (0, 2, 3), "layernorm": (1, 2, 3), "instancenorm": (2, 3)}
    grouped = x.view(6, 4, 2, 5, 5) if norm == "groupnorm" else x
    over = (2, 3, 4) if norm == "groupnorm" else dimensions[norm]
    mean = grouped.mean(over, keepdim=True)
    variance = grouped.var(over, correction=0, keepdim=True)
    expected = ((grouped - mean) / (variance + 1e-5).sqrt()).view_as(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("depth", "channels"), [(1, [8]), (4, [8, 8, 16, 16]), (8, None)])
def test_depth_and_width(depth: int, channels: list[int] | None) -> None:
    model = network("batchnorm", depth)
    convolutions = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == depth
    assert channels in (None, convolutions)
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_too_many_poolings_are_refused() -> None:
    with pytest.raises(UserError, match=r"model.depth=10 has 5 stages, .* 28x28 .* 1 to 8"):
        network("none", depth=10)


def test_groups_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(UserError, match=r"norm.num_groups=3 does not divide the 8 channels"):
        normalization(8, "groupnorm", num_groups=3, eps=1e-5)
