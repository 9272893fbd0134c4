"""Variation of the loss and its gradient along the direction of a gradient step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from bnstudy.callbacks.optimization import (
    OptimizationMetrics,
    compute_norm,
    get_network,
    make_rows,
)
from bnstudy.representations.network import Batch
from bnstudy.representations.precision import on_float64_device

# Function from parameters to the loss and its gradient with respect to each of them.
Objective = Callable[[Sequence[Tensor]], tuple[float, Sequence[Tensor]]]


def measure_along_gradient(
    objective: Objective, parameters: Sequence[Tensor], step_sizes: Sequence[float]
) -> dict[str, float]:
    """Measure a loss L and its gradient g at p - size * g(p) for parameters p and several sizes.

    Santurkar, Tsipras, Ilyas and Madry 2018, arXiv 1805.11604, section 3.1 and figure 4.

    Args:
        objective: Function that returns the loss and its gradient.
        parameters: Parameters p at the start.
        step_sizes: Step sizes, each above 0.

    Returns:
        `loss_range`: the largest minus the smallest loss over the step sizes.
        `first_order_error`: the largest |L(p - size * g) - (L(p) - size * |g|^2)|.
        `gradient_change`: the largest |g(p - size * g) - g(p)|; the smaller it is, the better the
        gradient predicts the gradient after a step.
        `beta_smoothness`: the largest |g(p - size * g) - g(p)| / (size * |g(p)|), effective
        beta-smoothness.

        If a loss or gradient is not finite, the values computed from it are NaN or infinite. If
        g(p) is 0, `beta_smoothness` is NaN.
    """
    loss, gradient = objective(parameters)
    sizes = torch.tensor(step_sizes, dtype=torch.float64)
    losses, changes = torch.empty_like(sizes), torch.empty_like(sizes)
    for index, size in enumerate(step_sizes):
        # Clones keep the memory format. The activations inherit it, and dropout draws its values in
        # the order of memory.
        steps = zip(parameters, gradient, strict=True)
        moved = [parameter.clone().sub_(slope, alpha=size) for parameter, slope in steps]
        losses[index], gradient_there = objective(moved)
        changes[index] = _norm(
            [there - here for there, here in zip(gradient_there, gradient, strict=True)]
        )
    length = _norm(gradient)
    measured = {
        "loss_range": losses.max() - losses.min(),
        "first_order_error": (losses - (loss - sizes * length**2)).abs().max(),
        "gradient_change": changes.max(),
        "beta_smoothness": (changes / (sizes * length)).max(),
    }
    return {name: value.item() for name, value in measured.items()}


class LossLandscape(OptimizationMetrics):
    """Loss and gradient along gradient steps, averaged over an epoch's measured batches.

    The metrics are those of `measure_along_gradient`, on training batches before their steps. The
    loss is the batch's cross-entropy in training mode, without label smoothing or a regularizer's
    penalty, as a function of the parameters that are trained. It is computed without autocast,
    whose rounding errors would look like a rough loss. Layers such as dropout draw the same random
    numbers at all step sizes. In a distributed run all processes take part, and loss and gradient
    are averages over the processes.

    The loggers also get the values of each measured batch, as `opt_step/<metric>`.

    Args:
        every_n_steps: Interval n of the measured steps 0, n, 2n, ... of the training.
        step_sizes: Step sizes; to compare runs, use the same ones for all norms and learning rates.
    """

    def __init__(self, every_n_steps: int, step_sizes: Sequence[float]) -> None:
        super().__init__()
        self.every_n_steps = every_n_steps
        self.step_sizes = step_sizes
        self.batch_values: list[dict[str, float]] = []  # of each measured batch of the epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Discard the values of the previous epoch."""
        self.batch_values = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure the batch if the step is due."""
        if trainer.global_step % self.every_n_steps:
            return
        network = get_network(pl_module)
        trained = [
            parameter.detach() for parameter in network.parameters() if parameter.requires_grad
        ]
        with self.timed():
            objective = _make_objective(network, batch, trainer)
            values = measure_along_gradient(objective, trained, self.step_sizes)
        self.batch_values.append(values)
        if trainer.is_global_zero:
            logged = {f"opt_step/{name}": value for name, value in values.items()}
            for logger in trainer.loggers:
                logger.log_metrics(logged, step=trainer.global_step)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Average over the measured batches; an epoch without any has no rows."""
        epoch, count = trainer.current_epoch + 1, len(self.batch_values)
        rows = []
        for name in self.batch_values[0] if self.batch_values else ():
            values = [batch[name] for batch in self.batch_values]
            num_undefined = sum(not isfinite(value) for value in values)
            reason = f"{name} is not finite at {num_undefined} of {count} measured batches"
            mean = {name: sum(values) / count}
            rows += make_rows(mean, None, epoch, trainer.global_step, reason=reason)
        self.publish(trainer, epoch, rows)


def _make_objective(network: nn.Module, batch: Batch, trainer: L.Trainer) -> Objective:
    """Return the loss of a batch as a function of the parameters that require gradients."""
    images, labels = batch
    parameters = dict(network.named_parameters())
    names = [name for name, parameter in parameters.items() if parameter.requires_grad]
    reduce = trainer.strategy.reduce

    def objective(trained: Sequence[Tensor]) -> tuple[float, Sequence[Tensor]]:
        leaves = [parameter.detach().requires_grad_() for parameter in trained]
        state = {
            **{name: parameter.detach() for name, parameter in parameters.items()},
            **dict(zip(names, leaves, strict=True)),
            # Copies, because a forward pass in training mode changes running statistics.
            **{name: buffer.clone() for name, buffer in network.named_buffers()},
        }
        with _restoring_random_state(images.device), torch.enable_grad():
            # A copy, because the network may change its input in place.
            logits = functional_call(network, state, (images.clone(),))
            loss = functional.cross_entropy(logits, labels)
        gradient = torch.autograd.grad(loss, leaves, materialize_grads=True)
        loss = reduce(on_float64_device(loss.detach()).double(), reduce_op="mean")
        return loss.item(), [reduce(slope, reduce_op="mean") for slope in gradient]

    return objective


@contextmanager
def _restoring_random_state(device: torch.device) -> Iterator[None]:
    """Restore the random state of the CPU and of a device on exit; layers draw from either."""
    mps_state = torch.mps.get_rng_state() if device.type == "mps" else None
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    if mps_state is not None:
        torch.mps.set_rng_state(mps_state)


def _norm(tensors: Sequence[Tensor]) -> float:
    """Compute the L2 norm over the numbers of all tensors."""
    return compute_norm(torch.stack([compute_norm(tensor) for tensor in tensors])).item()
