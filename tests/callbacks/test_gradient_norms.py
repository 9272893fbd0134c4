"""Tests of gradient norms against autograd on copies of the network."""

from copy import deepcopy

import pytest
from torch import Tensor, nn
from torch.nn import functional

from bnstudy.callbacks import GradientNorms
from tests.callbacks.training import Watch, small_network, train

SITES_OF_MODULES = {
    "0": "0.conv",
    "4": "4.conv",
    "8": "8.linear",
}  # each module is a layer of its own


def by_hand(network: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, float]:
    model = deepcopy(network).train()
    model.zero_grad()
    functional.cross_entropy(model(batch[0]), batch[1]).backward()
    weights = {name: model.get_submodule(name).weight for name in SITES_OF_MODULES}
    return {
        SITES_OF_MODULES[name]: weight.grad.double().square().sum().sqrt().item()
        for name, weight in weights.items()
        if weight.grad is not None
    }


def without_dropout() -> nn.Sequential:
    network = small_network()
    network[3].p = 0.0
    return network


@pytest.mark.parametrize("every_n_steps", [1, 2])
def test_an_epoch_has_the_mean_over_its_steps_before_clipping(every_n_steps: int) -> None:
    callback = GradientNorms(every_n_steps)
    watch = Watch(callback)
    train(without_dropout(), callback, watch, gradient_clip_val=1e-3)
    expected = {}
    for epoch in (1, 2):
        due = [step for step in range(3 * epoch - 3, 3 * epoch) if step % every_n_steps == 0]
        norms = [by_hand(*watch.steps[step]) for step in due]
        for place in SITES_OF_MODULES.values():
            mean = sum(one[place] for one in norms) / len(due)
            expected[epoch, "train", place] = mean
    assert watch.values("gradient_norm") == pytest.approx(expected, rel=1e-5)
    assert min(expected.values()) > 1e-2  # after clipping, every norm would be at most 1e-3
    assert [row.layer_index for row in watch.rows] == [0, 1, 2] * 2


def test_layers_that_are_not_trained_have_none() -> None:
    network = without_dropout()
    network[4].requires_grad_(False)
    callback = GradientNorms(1)
    train(network, callback, epochs=1)
    assert [row.layer for row in callback.rows] == ["0", "8"]


def test_layers_whose_weights_are_computed_have_none() -> None:
    network = without_dropout()
    nn.utils.parametrizations.weight_norm(network[4])
    callback = GradientNorms(1)
    train(network, callback, epochs=1)
    assert [row.layer for row in callback.rows] == ["0", "8"]
    nn.utils.parametrizations.weight_norm(network[0])
    nn.utils.parametrizations.weight_norm(network[8])
    train(network, callback, epochs=1)
    assert callback.rows == []


def test_a_gradient_that_is_not_finite_is_told() -> None:
    callback = GradientNorms(1)
    train(small_network(nn.Identity()), callback, epochs=1, lr=1e38, weight_decay=1e6)
    assert {row.reason for row in callback.rows} == {"a gradient is not finite"}
    assert all(row.value != row.value for row in callback.rows)
