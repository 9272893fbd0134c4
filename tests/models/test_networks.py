"""Tests that networks differ in their normalization and in nothing else."""

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from bnstudy.errors import UserError
from bnstudy.models.resnet import ResidualBlock
from tests.models.conftest import COLOUR, MAKE, NORMS, network, normalization, weighted


@pytest.mark.parametrize("model", MAKE)
@pytest.mark.parametrize("norm", NORMS)
def test_weights_and_names_do_not_depend_on_the_norm(model: str, norm: str) -> None:
    # The weights must not depend on torch's global random numbers.
    torch.manual_seed(hash(norm) % 1000)
    ours, reference = network(model, norm), network(model, "none")
    assert [name for name, _ in ours.named_modules()] == [
        name for name, _ in reference.named_modules()
    ]
    for (name, one), other in zip(
        weighted(ours).items(), weighted(reference).values(), strict=True
    ):
        assert torch.equal(one.weight, other.weight), name
        assert one.bias is not None
        assert torch.equal(one.bias, other.bias), name


@pytest.mark.parametrize("model", MAKE)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("position", ["pre", "post"])
def test_two_training_steps_move_every_weight(model: str, norm: str, position: str) -> None:
    if (norm, position) == ("instancenorm", "post") and model in ("resnet", "plain"):
        with pytest.raises(UserError, match="cannot learn with this network"):
            network(model, normalization(norm, position=position))
        return
    ours = network(model, normalization(norm, position=position))
    before = {name: value.detach().clone() for name, value in ours.named_parameters()}
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        images = torch.randn(32, 1, 28, 28, generator=generator)
        loss = nn.functional.cross_entropy(ours(images), torch.arange(32) % 10)
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in ours.named_parameters():
        if not name.endswith("conv.bias"):  # a norm can cancel the effect of these
            assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("model", MAKE)
def test_the_norm_stands_where_it_is_asked_to(model: str) -> None:
    seen: dict[str, torch.Tensor] = {}
    ours = network(model, normalization("batchnorm", position="post"))
    for name, module in ours.named_modules():
        module.register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: output})
        )
    ours(torch.randn(16, 1, 28, 28, generator=torch.Generator().manual_seed(0)))
    blocks = [name.removesuffix(".norm") for name in seen if name.endswith(".norm")]
    assert blocks
    for block in blocks:
        assert torch.equal(seen[block], seen[f"{block}.norm"])
        assert (seen[f"{block}.act"] >= 0).all()
        assert (seen[f"{block}.norm"] < 0).any()


def test_seeds_and_layers_differ() -> None:
    first, second = (weighted(network("cnn", seed=seed)) for seed in (0, 1))
    assert not torch.equal(first["block02.conv"].weight, second["block02.conv"].weight)
    four, six = (weighted(network("cnn", depth=depth)) for depth in (4, 6))
    assert torch.equal(four["block03.conv"].weight, six["block03.conv"].weight)


def test_weights_have_the_variance_of_he() -> None:
    weight = weighted(network("cnn", depth=8))["block08.conv"].weight
    assert weight.var().item() == pytest.approx(2 / weight[0].numel(), rel=0.05)


@pytest.mark.parametrize(("depth", "channels"), [(1, [8]), (4, [8, 8, 16, 16]), (8, None)])
def test_a_cnn_has_its_depth_and_doubles_its_channels(
    depth: int, channels: list[int] | None
) -> None:
    model = network("cnn", "batchnorm", depth=depth)
    convolutions = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == depth
    assert channels in (None, convolutions)
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(
    "depth", [16, *(pytest.param(depth, marks=pytest.mark.long) for depth in (11, 13, 19))]
)
def test_vgg_has_the_convolutions_of_torchvisions(depth: int) -> None:
    ours = network("vgg", depth=depth, width=1, **COLOUR)
    theirs = getattr(torchvision.models, f"vgg{depth}")(weights=None, init_weights=False)
    convolutions = [
        [(m.in_channels, m.out_channels) for m in one.modules() if isinstance(m, nn.Conv2d)]
        for one in (ours, theirs)
    ]
    assert convolutions[0] == convolutions[1]
    assert parameters(ours) == parameters(theirs.features) + 512 * 10 + 10
    assert weighted(network("vgg", depth=depth, width=1 / 4))["block01.conv"].out_channels == 16


def test_vgg16_has_the_published_number_of_parameters() -> None:
    # 138 million of configuration D (Simonyan and Zisserman 2015, Table 2) minus its linear layers.
    linear = 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000
    ours = network("vgg", depth=16, width=1, **COLOUR)
    assert round((parameters(ours) - 5130 + linear) / 1e6) == 138


@pytest.mark.parametrize("model", ["resnet", "plain"])
@pytest.mark.parametrize(
    ("depth", "published"),  # in millions: He et al. 2016, Table 6
    [(20, "0.27"), (32, "0.46"), (44, "0.66"), (56, "0.85"), (110, "1.7")],
)
def test_resnets_have_the_published_number_of_parameters(
    model: str, depth: int, published: str
) -> None:
    ours = network(model, "batchnorm", depth=depth, width=1, **COLOUR)
    convolutions = [m for m in ours.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) + 1 == depth
    biases = sum(m.bias.numel() for m in convolutions if m.bias is not None)
    digits = len(published.partition(".")[2])
    assert f"{(parameters(ours) - biases) / 1e6:.{digits}f}" == published


def test_a_residual_block_adds_its_input() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(4, 6, normalization("none"), stride=2, has_shortcut=True)
    x = torch.randn(3, 4, 7, 7)
    branch = block.second.conv(torch.relu(block.first.conv(x)))
    expected = branch.clone()
    expected[:, :4] += x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), torch.relu(expected))


def test_plain_is_the_resnet_without_its_shortcuts() -> None:
    plain, residual = network("plain"), network("resnet")
    torch.testing.assert_close(plain.state_dict(), residual.state_dict(), rtol=0, atol=0)
    x = torch.randn(4, 1, 28, 28)
    assert not torch.allclose(plain(x), residual(x))


@pytest.mark.parametrize("start", ["zero", "fixup"])
def test_only_stem_and_shortcuts_count_where_branches_start_at_zero(start: str) -> None:
    he, ours = (network("resnet", "none", depth=20, residual_init=init) for init in ("he", start))
    x = torch.randn(4, 1, 28, 28)
    # With residual branches at 0, only the stem and the shortcuts remain.
    expected = torch.relu(ours.stem.conv(x))[:, :, ::2, ::2][:, :, ::2, ::2].mean((2, 3))
    features = ours.flatten(ours.pool(ours.stage3(ours.stage2(ours.stage1(ours.stem(x))))))
    torch.testing.assert_close(features[:, : expected.shape[1]], expected)
    assert (features[:, expected.shape[1] :] == 0).all()
    first = ours.stage2.block01.first.conv.weight / he.stage2.block01.first.conv.weight
    factor = 9**-0.5 if start == "fixup" else 1.0  # 9 branches
    torch.testing.assert_close(first, torch.full_like(first, factor))
    assert bool((ours.classifier.weight == 0).all()) == (start == "fixup")


def test_a_deep_residual_network_without_normalization_needs_a_small_start() -> None:
    x = torch.randn(2, 1, 28, 28)
    he, zero = (
        network("resnet", depth=110, residual_init=start)(x).std() for start in ("he", "zero")
    )
    assert he > 1e4 * zero


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": "cnn", "depth": 10}, r"depth=10 has 5 stages, .* 28x28 .* 1 to 8"),
        ({"model": "cnn", "input_shape": (1, 1, 9)}, r"1x9 images are too small .* least 2x2"),
        ({"model": "cnn", "width": 0.5}, r"width=0.5"),
        ({"model": "vgg", "depth": 12}, r"depth=12 .* 11, 13, 16, 19"),
        ({"model": "vgg", "input_shape": (1, 16, 16)}, r"16x16 images are too small .* 17x17"),
        ({"model": "resnet", "depth": 21}, r"depth=21 .* 6n \+ 2, such as 20 or 26"),
        ({"model": "plain", "depth": 2}, r"depth=2 .* 8 or 14"),
        ({"model": "resnet", "input_shape": (1, 4, 4)}, r"4x4 images are too small .* 5x5"),
        ({"model": "plain", "residual_init": "zero"}, r"residual_init=zero needs shortcuts"),
    ],
    ids=str,
)
def test_options_that_no_network_can_have_are_refused(
    arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        network(**arguments)


def test_the_smallest_images_can_be_normalized() -> None:
    for model, size in (("vgg", 17), ("resnet", 5)):
        ours = network(model, "instancenorm", input_shape=(1, size, size))
        assert ours.train()(torch.randn(2, 1, size, size)).isfinite().all()


def parameters(model: nn.Module) -> int:
    return sum(one.numel() for one in model.parameters())
