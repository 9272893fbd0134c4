"""How far the loss and its gradient can be trusted along the way that a step takes."""

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from bnstudy.callbacks.optimization import OptimizationMetrics, network_of, rows_of

# The loss at some parameters, and its gradient by each of them.
Objective = Callable[[Sequence[Tensor]], tuple[float, Sequence[Tensor]]]


def along_gradient(
    objective: Objective, parameters: Sequence[Tensor], step_sizes: Sequence[float]
) -> dict[str, float]:
    """What happens to a loss L and its gradient g on the way from parameters p to p - size * g.

    Santurkar, Tsipras, Ilyas and Madry 2018, arXiv 1805.11604, section 3.1 and figure 4.

    Args:
        objective: The loss.
        parameters: Where it begins.
        step_sizes: How far it goes, each above 0.

    Returns:
        `loss_range`: the largest loss on the way minus the smallest.
        `first_order_error`: the largest |L(p - size * g) - (L(p) - size * |g|^2)|.
        `gradient_change`: the largest |g(p - size * g) - g(p)|, which is small where the gradient
        is predictive.
        `beta_smoothness`: the largest |g(p - size * g) - g(p)| / (size * |g(p)|), effective
        beta-smoothness.

        What is not finite on the way makes them NaN or infinite; so does a gradient of 0 the last.
    """
    loss, gradient = objective(parameters)
    sizes = torch.tensor(step_sizes, dtype=torch.float64)
    losses, changes = torch.empty_like(sizes), torch.empty_like(sizes)
    for index, size in enumerate(step_sizes):
        # On clones, which keep the memory format: dropout draws in the order of memory.
        steps = zip(parameters, gradient, strict=True)
        place = [one.clone().sub_(slope, alpha=size) for one, slope in steps]
        losses[index], there = objective(place)
        changes[index] = _norm([a - b for a, b in zip(there, gradient, strict=True)])
    length = _norm(gradient)
    measured = {
        "loss_range": losses.max() - losses.min(),
        "first_order_error": (losses - (loss - sizes * length**2)).abs().max(),
        "gradient_change": changes.max(),
        "beta_smoothness": (changes / (sizes * length)).max(),
    }
    return {name: value.item() for name, value in measured.items()}


class LossLandscape(OptimizationMetrics):
    """`along_gradient` on batches that are about to be trained on, averaged over an epoch.

    The loss is the batch's cross-entropy, without a regularizer's part, in training mode, as a
    function of the parameters that are trained; without autocast, whose rounding would count as
    roughness. What layers such as dropout draw is the same all along the way. In a distributed run
    loss and gradient are the averages over the processes, which all take part.

    The loggers get each probe's values as well, as `opt_step/<metric>`.

    Args:
        every_n_steps: Probed are the batches of step 0, n, 2n, ... of the training.
        step_sizes: The same for all norms and whatever the learning rate, so that landscapes can be
            compared.
    """

    def __init__(self, every_n_steps: int, step_sizes: Sequence[float]) -> None:
        super().__init__()
        self.every_n_steps = every_n_steps
        self.step_sizes = step_sizes
        self.probes: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start anew."""
        self.probes = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Probe the batch if it is due."""
        if trainer.global_step % self.every_n_steps:
            return
        network = network_of(pl_module)
        trained = [one.detach() for one in network.parameters() if one.requires_grad]
        with self.timed():
            objective = _cross_entropy(network, batch, trainer)
            probe = along_gradient(objective, trained, self.step_sizes)
        self.probes.append(probe)
        if trainer.is_global_zero:
            values = {f"opt_step/{name}": value for name, value in probe.items()}
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Average over the epoch's probes; an epoch without any has no rows."""
        epoch, count = trainer.current_epoch + 1, len(self.probes)
        rows = []
        for name in self.probes[0] if self.probes else ():
            values = [probe[name] for probe in self.probes]
            without = sum(not isfinite(value) for value in values)
            reason = f"{name} is not finite at {without} of {count} probes"
            mean = {name: sum(values) / count}
            rows += rows_of(mean, None, epoch, trainer.global_step, reason=reason)
        self.publish(trainer, epoch, rows)


def _cross_entropy(
    network: nn.Module, batch: tuple[Tensor, Tensor], trainer: L.Trainer
) -> Objective:
    """The loss of a batch as a function of the parameters that need gradients."""
    images, labels = batch
    parameters = dict(network.named_parameters())
    names = [name for name, parameter in parameters.items() if parameter.requires_grad]
    mean = trainer.strategy.reduce
    # Random numbers are drawn on the CPU, and on the GPU where there is one.
    devices = [images.device] if images.device.type == "cuda" else []

    def objective(trained: Sequence[Tensor]) -> tuple[float, Sequence[Tensor]]:
        leaves = [one.detach().requires_grad_() for one in trained]
        state = {
            **{name: parameter.detach() for name, parameter in parameters.items()},
            **dict(zip(names, leaves, strict=True)),
            # In training mode a forward pass writes to the running statistics: let it be to these.
            **{name: buffer.clone() for name, buffer in network.named_buffers()},
        }
        with torch.random.fork_rng(devices), torch.enable_grad():
            loss = functional.cross_entropy(functional_call(network, state, (images,)), labels)
        gradient = torch.autograd.grad(loss, leaves, materialize_grads=True)
        loss = mean(loss.detach().double(), reduce_op="mean")
        return loss.item(), [mean(one, reduce_op="mean") for one in gradient]

    return objective


def _norm(tensors: Sequence[Tensor]) -> float:
    """Of all their numbers together."""
    norms = [torch.linalg.vector_norm(one, dtype=torch.float64) for one in tensors]
    return float(torch.linalg.vector_norm(torch.stack(norms)))
