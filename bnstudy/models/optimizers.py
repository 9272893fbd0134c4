"""Optimizer, learning rate schedule and gradient clipping of a network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    SequentialLR,
)

from bnstudy.errors import UserError
from bnstudy.models.normalizer_free import NormalizerFreeBlock

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
MIN_WEIGHT_NORM = 1e-3  # of a unit, so that weights of 0 can grow; Brock et al. 2021


@dataclass(frozen=True)
class Recipe:
    """Options of the configuration group `optim` that are not arguments of the optimizer.

    Attributes:
        schedule: `constant`, `cosine` (to 0 at the end of the training) or `step`.
        milestones: Epochs at which `step` multiplies the learning rate by `gamma`.
        gamma: Factor of `step`.
        warmup_epochs: Epochs at the start in which the learning rate rises linearly from nearly 0.
        label_smoothing: Share of the target that is spread over all classes, in training only.
        adaptive_clipping: Maximum norm of a unit's gradient relative to the norm of its weights;
            None for no clipping.
        trainable: `all`, or `norm` to freeze 2-D convolutions and linear layers, so that in most
            networks only the normalization layers' parameters are trained (Frankle, Schwab and
            Morcos 2021, arXiv 2003.00152).
        decay_all: Whether weight decay also acts on vectors and scalars, such as biases and the
            parameters of norms.
    """

    schedule: str = "constant"
    milestones: Sequence[int] = ()
    gamma: float = 0.1
    warmup_epochs: float = 0
    label_smoothing: float = 0
    adaptive_clipping: float | None = None
    trainable: str = "all"
    decay_all: bool = True

    @classmethod
    def split(cls, optim: dict[str, Any]) -> tuple[Self, dict[str, Any]]:
        """Split the configuration group `optim` into a recipe and the optimizer's own options.

        Raises:
            UserError: The schedule and its milestones do not fit.
        """
        known = {key: value for key, value in optim.items() if key in cls.__dataclass_fields__}
        recipe = cls(**known)
        if (recipe.schedule == "step") != bool(recipe.milestones):
            raise UserError(
                f"optim.milestones={list(recipe.milestones)} with schedule={recipe.schedule}: "
                "only step has milestones, and needs them; set both, such as optim.schedule=step "
                "optim.milestones=[100,150]"
            )
        return recipe, {key: value for key, value in optim.items() if key not in known}

    def scheduler(
        self, optimizer: torch.optim.Optimizer, steps: int, epochs: int
    ) -> LRScheduler | None:
        """Create the schedule, which is stepped after each training step; None for a constant one.

        Args:
            optimizer: Optimizer with its full learning rate.
            steps: Steps of the whole training.
            epochs: Epochs of the whole training.
        """
        per_epoch = steps / epochs
        warmup = min(round(self.warmup_epochs * per_epoch), steps)
        after_warmup: LRScheduler
        match self.schedule:
            case "cosine":
                after_warmup = CosineAnnealingLR(optimizer, T_max=max(steps - warmup, 1))
            case "step":
                milestone_steps = [round(epoch * per_epoch) - warmup for epoch in self.milestones]
                after_warmup = MultiStepLR(optimizer, milestone_steps, self.gamma)
            case _ if warmup:
                after_warmup = ConstantLR(optimizer, factor=1)
            case _:
                return None
        if not warmup:
            return after_warmup
        rising = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
        return SequentialLR(optimizer, [rising, after_warmup], milestones=[warmup])


def make_optimizer(
    network: nn.Module, recipe: Recipe, name: str, **options: Any
) -> torch.optim.Optimizer:
    """Create the optimizer of a network.

    Args:
        network: Network to train; parameters that are not trained get `requires_grad=False`.
        recipe: Choice of the parameters to train and to decay.
        name: Name of the optimizer, a key of `OPTIMIZERS`.
        options: Keyword arguments of the optimizer.

    Raises:
        UserError: The name is unknown, the optimizer does not accept an option or a combination of
            options, or there are no parameters to train.
    """
    if recipe.trainable == "norm":
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.requires_grad_(False)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters and recipe.trainable == "all":
        raise UserError("the network has no parameters to train; set requires_grad of some to True")
    if not parameters:
        raise UserError(
            "optim.trainable=norm: this norm has no parameters to train; choose another norm, or "
            "set optim.trainable=all"
        )
    if name not in OPTIMIZERS:
        raise UserError(f"optim.name={name} is not known; expected {', '.join(OPTIMIZERS)}")
    try:
        return OPTIMIZERS[name](_groups(parameters, recipe.decay_all), **options)
    except TypeError as error:
        raise UserError(f"optim: {error}; remove that key") from error
    except (RuntimeError, ValueError) as error:
        listed = ", ".join(f"optim.{key}={value}" for key, value in options.items())
        raise UserError(f"{error}\nAsked for: {listed}") from error


def _groups(parameters: list[nn.Parameter], decay_all: bool) -> list[Any]:
    """Group parameters; without `decay_all`, vectors and scalars get no weight decay."""
    if decay_all:
        return parameters
    decayed = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


@torch.no_grad()
def clip_adaptively(network: nn.Module, clipping: float) -> None:
    """Clip gradients relative to the weights (Brock et al. 2021, arXiv 2102.06171, equation 3).

    A unit is the weights of one output channel, or a whole vector. The norm of its gradient is
    limited to `clipping` times the norm of its weights, which counts as at least 0.001. The last
    linear layer is not clipped, as in the paper.

    Unlike in the paper, the gains of SkipInit are not clipped either. They are initially 0, so that
    their gradients would be limited to 0.001 times `clipping`.

    Args:
        network: Network with gradients, which are changed in place.
        clipping: Maximum norm of a unit's gradient relative to the norm of its weights.
    """
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    unclipped = set(linear[-1].parameters()) if linear else set()
    unclipped |= {
        module.skip_gain for module in network.modules() if isinstance(module, NormalizerFreeBlock)
    }
    for weight in network.parameters():
        if weight.grad is not None and weight not in unclipped:
            max_norms = clipping * _unit_norms(weight).clamp_min(MIN_WEIGHT_NORM)
            norms = _unit_norms(weight.grad).clamp_min(1e-6)  # no division by 0
            weight.grad.mul_((max_norms / norms).clamp_max(1))


def _unit_norms(values: Tensor) -> Tensor:
    """Return the norm of each unit, in a shape that can be broadcast to that of the values."""
    dims = tuple(range(values.ndim))
    norms: Tensor = torch.linalg.vector_norm(values, dim=dims[1:] or dims, keepdim=True)
    return norms
