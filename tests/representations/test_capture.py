"""Reading activations without leaving a trace."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from bnstudy.models.cnn import CNN
from bnstudy.representations import capture


def batches(count: int = 10, size: int = 4, channels: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, channels, 16, 16, generator=generator)
    labels = torch.arange(count) % 3
    return list(zip(images.split(size), labels.split(size), strict=True))


def cnn(norm: type[nn.Module] = nn.BatchNorm2d) -> CNN:
    return CNN(3, 4, input_shape=(1, 16, 16), num_classes=3, norm=norm)


def test_blocks_are_layers_and_their_parts_sites() -> None:
    model = cnn().eval()
    activations, labels = capture(model, batches(), ["conv", "norm", "act"])
    names = [(tap.layer_index, tap.layer, tap.site) for tap in activations]
    assert names == [
        (index, f"block0{index + 1}", site)
        for index in range(3)
        for site in ("conv", "norm", "act")
    ]
    assert torch.equal(labels, torch.arange(10) % 3)
    by_name = {(tap.layer, tap.site): values for tap, values in activations.items()}
    first = model.block01.conv(torch.cat([images for images, _ in batches()]))
    torch.testing.assert_close(by_name["block01", "conv"], first)
    torch.testing.assert_close(by_name["block01", "act"], torch.relu(by_name["block01", "norm"]))


def test_names_do_not_depend_on_the_norm() -> None:
    with_norm, _ = capture(cnn(), batches(), ["norm", "act"])
    without, _ = capture(cnn(nn.Identity), batches(), ["norm", "act"])
    assert list(with_norm) == list(without)


def test_the_model_is_left_as_it_was() -> None:
    model = cnn().train()
    model.block02.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    capture(model, batches(), ["act"])
    assert model.training
    assert not model.block02.norm.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_error_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(5, 2)).train()
    with pytest.raises(RuntimeError):
        capture(model, batches(), ["conv"])
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_an_activation_is_copied_before_an_in_place_layer_overwrites_it() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True))
    activations, _ = capture(model, batches(), ["norm", "act"])
    norm, act = activations.values()
    assert (norm < 0).any()
    assert torch.equal(norm.relu(), act)


def test_any_network_and_modules_that_are_called_again() -> None:
    activations, _ = capture(resnet18(num_classes=3), batches(channels=3), ["act"])
    names = [tap.layer for tap in activations]
    assert names[:4] == ["relu", "layer1.0.relu", "layer1.0.relu#2", "layer1.1.relu"]
    assert [tap.layer_index for tap in activations] == list(range(17))


def test_batches_may_come_from_a_generator_and_grow() -> None:
    model = cnn().eval()
    images = torch.cat([images for images, _ in batches()])
    uneven = ((images[a:b], torch.zeros(b - a)) for a, b in [(0, 2), (2, 9), (9, 10)])
    activations, labels = capture(model, uneven, ["act"])
    expected, _ = capture(model, [(images, torch.zeros(10))], ["act"])
    assert len(labels) == 10
    for tap, values in activations.items():
        torch.testing.assert_close(values, expected[tap])


def test_an_output_that_is_no_tensor_is_told() -> None:
    class Pair(nn.ReLU):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return x, x

    with pytest.raises(TypeError, match="0 puts out a tuple"):
        capture(nn.Sequential(Pair(), nn.Identity()).append(nn.Conv2d(1, 1, 1)), batches(), ["act"])
