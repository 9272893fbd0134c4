"""Tests of recipes: learning rates step by step, weight decay, smoothing and clipping."""

import math

import pytest
import torch
from torch import nn

from bnstudy.errors import UserError
from bnstudy.models.optimizers import Recipe, clip_adaptively, make_optimizer
from tests.models.conftest import NORMS, network


def rates(steps: int, epochs: int, **options: object) -> list[float]:
    """Return the learning rate of each training step, relative to the full one."""
    recipe, _ = Recipe.split(options)
    optimizer = make_optimizer(nn.Linear(2, 2), recipe, "sgd", lr=1.0)
    scheduler = recipe.scheduler(optimizer, steps, epochs)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return found


def test_learning_rates_follow_their_schedule() -> None:
    assert rates(20, 4) == [1] * 20
    cosine = [(1 + math.cos(math.pi * step / 20)) / 2 for step in range(20)]
    assert rates(20, 4, schedule="cosine") == pytest.approx(cosine)
    steps = [1] * 5 + [0.5] * 10 + [0.25] * 5
    assert rates(20, 4, schedule="step", milestones=[1, 3], gamma=0.5) == pytest.approx(steps)


def test_learning_rates_follow_their_schedule_after_warming_up() -> None:
    rising = [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6]
    assert rates(20, 4, warmup_epochs=1) == pytest.approx(rising + [1] * 15)
    cosine = [(1 + math.cos(math.pi * step / 15)) / 2 for step in range(15)]
    assert rates(20, 4, warmup_epochs=1, schedule="cosine") == pytest.approx(rising + cosine)
    steps = [1] * 10 + [0.1] * 5  # milestones count from the beginning of the training
    assert rates(20, 4, warmup_epochs=1, schedule="step", milestones=[3]) == pytest.approx(
        rising + steps
    )


@pytest.mark.parametrize("options", [{"schedule": "step"}, {"milestones": [1]}])
def test_milestones_belong_to_the_step_schedule(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"optim.milestones=.* such as optim.schedule=step"):
        Recipe.split(options)


@pytest.mark.parametrize("norm", NORMS)
def test_only_weights_decay_without_decay_all(norm: str) -> None:
    made = network("resnet", norm)
    optimizer = make_optimizer(made, Recipe(decay_all=False), "sgd", lr=1.0, weight_decay=0.1)
    before = {name: one.detach().clone() for name, one in made.named_parameters()}
    for one in made.parameters():
        one.grad = torch.zeros_like(one)
    optimizer.step()
    weights = {
        f"{name}.weight"
        for name, module in made.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    for name, one in made.named_parameters():
        expected = 0.9 * before[name] if name in weights else before[name]
        torch.testing.assert_close(one.detach(), expected)


@pytest.mark.parametrize(
    ("trainable", "words"),
    [("all", "the network has no parameters to train"), ("norm", "this norm has no parameters")],
)
def test_a_network_without_trained_parameters_is_refused(trainable: str, words: str) -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(UserError, match=words):
        make_optimizer(frozen, Recipe(trainable=trainable), "sgd", lr=0.1)


def test_adaptive_clipping_limits_the_gradient_of_each_unit() -> None:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 4), nn.Linear(4, 2))
    for number, one in enumerate(made.parameters()):
        one.grad = 10.0**-number * torch.randn_like(one)
    before = [one.grad.clone() for one in made.parameters()]
    clip_adaptively(made, 0.1)
    clipped = 0
    for one, gradient in zip(list(made.parameters())[:4], before, strict=False):
        pairs = (
            zip(one.flatten(1), gradient.flatten(1), one.grad.flatten(1), strict=True)
            if one.ndim > 1
            else [(one, gradient, one.grad)]
        )
        for unit, old, new in pairs:
            largest = 0.1 * max(unit.norm().item(), 1e-3)
            factor = min(1.0, largest / old.norm().item())
            clipped += factor < 1
            torch.testing.assert_close(new, factor * old)
    assert 3 < clipped < 9
    for one, gradient in zip(list(made.parameters())[4:], before[4:], strict=True):
        assert torch.equal(one.grad, gradient)  # of the last linear layer
