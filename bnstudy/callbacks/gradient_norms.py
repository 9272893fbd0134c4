"""Norm of the weight gradient of each layer."""

from collections import defaultdict

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bnstudy.callbacks.optimization import (
    OptimizationMetrics,
    compute_norm,
    find_taps_at,
    find_weight_sites,
    get_network,
    make_rows,
)
from bnstudy.representations import Tap


class GradientNorms(OptimizationMetrics):
    """Metric `gradient_norm`: L2 norm of a layer's weight gradient, averaged over measured steps.

    There is one value per epoch for every convolution and linear layer whose weights are trained,
    at the sites `conv` and `linear`. Weights that a parametrization computes, such as weight_norm,
    have none. The gradient is that of the whole loss before clipping,
    averaged over the processes of a distributed run and unscaled in mixed precision.

    Args:
        every_n_steps: Interval n of the measured steps 0, n, 2n, ... of the training.
    """

    def __init__(self, every_n_steps: int) -> None:
        super().__init__()
        self.every_n_steps = every_n_steps
        self.taps: dict[str, Tap] = {}
        self.weights: dict[str, nn.Parameter] = {}
        self.norms: dict[str, list[Tensor]] = defaultdict(list)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the layers."""
        network = get_network(pl_module)
        self.taps = find_taps_at(trainer, network, find_weight_sites(network))
        self.weights = {
            name: module.weight for name, module in network.named_modules() if name in self.taps
        }

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Discard the norms of the previous epoch."""
        self.norms.clear()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Compute the norms if the step is due."""
        if trainer.global_step % self.every_n_steps:
            return
        with self.timed():
            for name, weight in self.weights.items():
                if weight.grad is not None:
                    self.norms[name].append(compute_norm(weight.grad))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Average over the epoch's measured steps."""
        epoch = trainer.current_epoch + 1
        rows = []
        for name, tap in self.taps.items():
            if name in self.norms:
                mean = {"gradient_norm": torch.stack(self.norms[name]).mean().item()}
                reason = "a gradient is not finite"
                rows += make_rows(mean, tap, epoch, trainer.global_step, reason=reason)
        self.publish(trainer, epoch, rows)
