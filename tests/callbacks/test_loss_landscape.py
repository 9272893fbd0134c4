"""Tests of the loss along the gradient against closed forms and real steps."""

import math
from collections.abc import Sequence
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bnstudy.callbacks import LossLandscape
from bnstudy.callbacks.loss_landscape import measure_along_gradient
from tests.callbacks.training import Watch, small_network, train

SIZES = [0.02, 0.1, 0.5]


class Quadratic:
    """The loss x^T A x / 2 with the gradient A x, for x in two parts."""

    def __init__(self, curvatures: Sequence[float]) -> None:
        generator = torch.Generator().manual_seed(0)
        random = torch.randn(len(curvatures), len(curvatures), generator=generator).double()
        self.directions = torch.linalg.qr(random).Q
        self.matrix = self.directions @ torch.diag(torch.tensor(curvatures).double())
        self.matrix = self.matrix @ self.directions.T

    def __call__(self, parameters: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        x = torch.cat([one.flatten() for one in parameters])
        gradient = self.matrix @ x
        return (x @ gradient / 2).item(), [gradient[:2].view(2, 1), gradient[2:]]


def test_along_an_eigenvector_smoothness_is_its_curvature() -> None:
    loss = Quadratic([4.0, -2.0, 0.5, 7.0, 1.0])
    for index, curvature in enumerate((4.0, -2.0, 0.5, 7.0, 1.0)):
        x = 3 * loss.directions[:, index]  # the gradient is curvature * x: |g| = 3 |curvature|
        measured = measure_along_gradient(loss, [x[:2].view(2, 1), x[2:]], SIZES)
        assert measured["beta_smoothness"] == pytest.approx(abs(curvature))
        assert measured["gradient_change"] == pytest.approx(0.5 * 3 * curvature**2)
        # After a step the loss is curvature / 2 * 9 * (1 - size * curvature)^2.
        losses = [4.5 * curvature * (1 - size * curvature) ** 2 for size in SIZES]
        assert measured["loss_range"] == pytest.approx(max(losses) - min(losses))
        # The second-order term is g^T A g * size^2 / 2.
        assert measured["first_order_error"] == pytest.approx(9 * abs(curvature) ** 3 * 0.5**2 / 2)


def test_along_any_direction_smoothness_is_that_of_the_quadratic() -> None:
    loss = Quadratic([4.0, -2.0, 0.5, 7.0, 1.0])
    x = torch.tensor([1.0, -2.0, 0.5, 1.5, -1.0]).double()
    gradient = loss.matrix @ x
    measured = measure_along_gradient(loss, [x[:2].view(2, 1), x[2:]], SIZES)
    curved = (loss.matrix @ gradient).norm().item()
    assert measured["beta_smoothness"] == pytest.approx(curved / gradient.norm().item())
    assert measured["gradient_change"] == pytest.approx(0.5 * curved)


def test_what_is_not_finite_on_the_way_is_not_hidden() -> None:
    def steep(parameters: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        (x,) = parameters
        return (x**3).sum().item(), [3 * x**2 if x > 0 else x * math.nan]

    measured = measure_along_gradient(steep, [torch.tensor([1.0])], [0.1, 1.0, 0.2])
    assert not math.isfinite(measured["gradient_change"])
    assert not math.isfinite(measured["beta_smoothness"])
    assert math.isfinite(measured["loss_range"])
    flat = measure_along_gradient(lambda p: (1.0, [0 * p[0]]), [torch.ones(2)], SIZES)
    assert flat["loss_range"] == flat["gradient_change"] == 0
    assert math.isnan(flat["beta_smoothness"])


def by_hand(network: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Compute the metrics with copies of the network, without dropout, that take the steps."""

    def gradient(model: nn.Module) -> tuple[float, Tensor]:
        model.train()
        model.zero_grad()
        loss = functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        grads = [one.grad.flatten() for one in model.parameters() if one.requires_grad]
        return loss.item(), torch.cat(grads).double()

    start, slope = gradient(deepcopy(network))
    losses, changes, errors, ratios = [], [], [], []
    for size in SIZES:
        moved = deepcopy(network)
        gradient(moved)
        torch.optim.SGD([p for p in moved.parameters() if p.requires_grad], lr=size).step()
        loss, there = gradient(moved)
        losses.append(loss)
        changes.append((there - slope).norm().item())
        errors.append(abs(loss - start + size * slope.square().sum().item()))
        ratios.append(changes[-1] / (size * slope.norm().item()))
    return {
        "loss_range": max(losses) - min(losses),
        "gradient_change": max(changes),
        "first_order_error": max(errors),
        "beta_smoothness": max(ratios),
    }


@pytest.mark.parametrize("frozen", [False, True])
def test_an_epoch_has_the_mean_over_the_batches_that_are_due(frozen: bool) -> None:
    network = small_network()
    network[3].p = 0.0
    if frozen:
        network[0].requires_grad_(False)
        network[4].requires_grad_(False)
    callback = LossLandscape(every_n_steps=2, step_sizes=SIZES)
    watch = Watch(callback)
    train(network, callback, watch)  # 3 batches per epoch: steps 0 and 2, then 4
    probes = [by_hand(*watch.steps[step]) for step in (0, 2, 4)]
    for metric in probes[0]:
        first, second, third = (probe[metric] for probe in probes)
        assert watch.values(metric) == pytest.approx(
            {(1, "train", "model"): (first + second) / 2, (2, "train", "model"): third}, rel=1e-4
        )
    assert [row.step for row in watch.rows] == [3] * 4 + [6] * 4


def test_dropout_is_the_same_all_along_the_way() -> None:
    callback = LossLandscape(every_n_steps=1, step_sizes=[1e-4])
    train(small_network(), callback, epochs=1)
    # With a different dropout mask at each evaluation, the error would be much larger.
    assert all(abs(probe["first_order_error"]) < 1e-4 for probe in callback.batch_values)


class AddsInPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(1)


def test_a_network_that_changes_its_input_is_trained_on_the_batches_as_they_were() -> None:
    callback = LossLandscape(every_n_steps=1, step_sizes=SIZES)
    measured, alone = (nn.Sequential(AddsInPlace(), small_network()) for _ in range(2))
    for network, callbacks in ((measured, [callback]), (alone, [])):
        torch.manual_seed(0)  # of the dropout
        train(network, *callbacks, epochs=1)
    for ours, expected in zip(measured.parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours, expected)


def test_an_epoch_without_a_finite_value_says_so() -> None:
    callback = LossLandscape(every_n_steps=1, step_sizes=[1e30, 1e38])
    watch = Watch(callback)
    train(small_network(nn.Identity()), callback, watch, epochs=1)
    (row,) = [row for row in watch.rows if row.metric == "beta_smoothness"]
    assert math.isnan(row.value)
    assert row.reason == "beta_smoothness is not finite at 3 of 3 measured batches"


def test_an_epoch_without_a_probe_has_no_rows() -> None:
    callback = LossLandscape(every_n_steps=100, step_sizes=SIZES)
    watch = Watch(callback)
    train(small_network(), callback, watch)
    assert {row.epoch for row in watch.rows} == {1}
    assert callback.rows == []
