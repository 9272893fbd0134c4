"""Tests of the regularizers."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bnstudy.errors import UserError
from bnstudy.models.regularizers import (
    ActivationL1,
    Cluster,
    Regularizer,
    TargetSparsity,
    make_regularizer,
)
from bnstudy.representations import capture
from tests.models.conftest import network

LABELS = torch.arange(24) % 3


def images() -> Tensor:
    return torch.randn(24, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def added(model: nn.Module, one: Regularizer) -> Tensor:
    with one.watching():
        model(images())
        added: Tensor = one(LABELS)
    return added


def activations(model: nn.Module) -> dict[str, Tensor]:
    found = {layer.name: layer.activations for layer in capture(model, [(images(), LABELS)])}
    return {name: values.flatten(1) for name, values in found.items() if values is not None}


def test_l1_is_the_mean_activation() -> None:
    model = network("cnn")
    one = make_regularizer(model, "activation_l1", strength=0.5, layers=["*"])
    assert isinstance(one, ActivationL1)
    means = [values.mean() for values in activations(model).values()]
    torch.testing.assert_close(added(model, one), 0.5 * sum(means) / 4)


def test_layers_are_chosen_by_their_names() -> None:
    model = network("cnn")
    one = ActivationL1(model, 1.0, ["block02", "*4"])
    assert one.layers == ["block02", "block04"]
    values = activations(model)
    expected = (values["block02"].mean() + values["block04"].mean()) / 2
    torch.testing.assert_close(added(model, one), expected)
    with pytest.raises(UserError, match="no layer matches block9; there are block01, block02"):
        ActivationL1(model, 1.0, ["block9"])


def test_cluster_is_the_share_of_variance_within_classes() -> None:
    model = network("cnn")
    one = Cluster(model, 2.0, ["block03"])
    samples = activations(model)["block03"].double()
    within = sum(
        ((samples[label == LABELS] - samples[label == LABELS].mean(0)) ** 2).sum()
        for label in range(3)
    )
    expected = 2 * within / ((samples - samples.mean(0)) ** 2).sum()
    assert added(model, one).item() == pytest.approx(expected.item(), rel=1e-4)


def test_target_sparsity_is_the_gap_and_its_gradient_reaches_silent_units() -> None:
    model = network("cnn")
    one = TargetSparsity(model, 1.0, ["*"], target=0.25)
    values = activations(model)
    gaps = torch.stack([(value == 0).float().mean() - 0.25 for value in values.values()])
    torch.testing.assert_close(added(model, one), gaps.square().sum() / 2)
    torch.testing.assert_close(one.multipliers, 0.01 * gaps)
    with torch.no_grad():
        model.get_submodule("block01.conv").bias -= 100.0  # every unit is inactive
    added(model, one).backward()
    assert model.get_submodule("block01.conv").bias.grad.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.3, {"block01": 0.8, "block02": 0.4}])
def test_sparsity_is_steered_from_above_and_from_below(target: float | dict[str, float]) -> None:
    model = network("cnn", depth=2)
    one = TargetSparsity(model, 10.0, ["*"], target)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(150):
        with one.watching():
            loss = functional.cross_entropy(model(images()), LABELS) + one(LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, values in activations(model).items():
        wanted = target[name] if isinstance(target, dict) else target
        assert (values == 0).float().mean().item() == pytest.approx(wanted, abs=0.08), name


def test_a_module_that_is_called_again_is_read_again() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(1, 1, 3, padding=1), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.relu(self.conv(self.relu(self.conv(x))))
            return y

    model = Twice()
    one = TargetSparsity(model, 1.0, ["*"], {"relu": 0.5, "relu#2": 0.7})
    first, second = activations(model).values()
    gap = ((first == 0).float().mean() - 0.5 + (second == 0).float().mean() - 0.7) / 2
    torch.testing.assert_close(added(model, one), gap.square() / 2)


def test_nothing_is_read_but_while_it_is_watched() -> None:
    model = network("cnn")
    one = ActivationL1(model, 1.0, ["*"])
    model(images())
    with pytest.raises(AssertionError):
        one(LABELS)


def test_an_unknown_regularizer_is_refused() -> None:
    with pytest.raises(UserError, match=r"regularizer.name=l0 is unknown"):
        make_regularizer(network("cnn"), "l0")
