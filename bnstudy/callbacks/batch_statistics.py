"""What BatchNorm does differently in training and in evaluation."""

from copy import deepcopy
from math import nan

import lightning as L
import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase

from bnstudy.callbacks.optimization import (
    OptimizationMetrics,
    calibrated_network,
    network_of,
    probe_of,
    rows_of,
    taps_of,
    varying,
)
from bnstudy.models.classifier import is_correct
from bnstudy.models.recalibration import recalibrate
from bnstudy.representations.running_statistics import with_running_statistics
from bnstudy.runs.long_table import Row
from bnstudy.terms import SPLITS


class BatchStatistics(OptimizationMetrics):
    """How far running statistics are from what they stand for, and what that costs.

    At each epoch's end, of networks with layers that keep running statistics, and before training,
    where running statistics are those of the training data:

    - `running_mean_error`, of each such layer: |running mean - population mean| over the
      population's standard deviation, averaged over channels.
    - `running_variance_error`: |log(running variance / population variance)|, likewise. Channels
      that are constant in the population are left out.
    - `probe_loss`, `probe_accuracy`, of the whole model on each split's probe set, in eval mode.
    - `recalibrated_loss`, `recalibrated_accuracy`: the same with the population's statistics.
    - `batch_statistics_loss`, `batch_statistics_accuracy`: with each batch's own, as in training,
      in batches of the training's size (all other layers in eval mode).

    The population is the training split's probe set: its statistics are those that `recalibrate`
    makes of a copy of the network. In a distributed run all processes take part.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure before the first step; a run that is resumed has that already."""
        if trainer.global_step == 0:
            with calibrated_network(trainer, pl_module):
                self._measure(trainer, network_of(pl_module), epoch=0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the epoch."""
        self._measure(trainer, network_of(pl_module), trainer.current_epoch + 1)

    def _measure(self, trainer: L.Trainer, network: nn.Module, epoch: int) -> None:
        layers = with_running_statistics(network)
        if not layers:
            return
        step = trainer.global_step
        rows: list[Row] = []
        with self.timed():
            copy = deepcopy(network).eval()
            rows += self._performance(trainer, copy, "probe", epoch)
            population = probe_of(trainer, "train")
            recalibrate(copy, population.mixed(population.size))
            recalibrated = with_running_statistics(copy)
            inputs, _ = next(iter(population))
            for name, tap in taps_of(network, layers, inputs[:1]).items():
                values, reason = _errors(layers[name], recalibrated[name])
                rows += rows_of(values, tap, epoch, step, reason=reason)
            rows += self._performance(trainer, copy, "recalibrated", epoch)
            for layer in recalibrated.values():
                layer.train()
            rows += self._performance(trainer, copy, "batch_statistics", epoch)
        self.publish(trainer, epoch, rows)

    def _performance(
        self, trainer: L.Trainer, network: nn.Module, name: str, epoch: int
    ) -> list[Row]:
        """Loss and accuracy of the network on both probe sets, in the mode that it is in."""
        rows = []
        share = slice(trainer.global_rank, None, trainer.world_size)
        place = next(network.parameters())
        for split in SPLITS:
            size = trainer.datamodule.batch_size  # type: ignore[attr-defined]
            sums = torch.zeros(3, dtype=torch.float64, device=place.device)
            for inputs, labels in probe_of(trainer, split).mixed(size):
                with torch.no_grad():
                    logits = network(inputs[share].to(place.device, place.dtype)).float()
                own = labels[share].to(place.device)
                sums[0] += functional.cross_entropy(logits, own, reduction="sum")
                sums[1] += is_correct(logits, own).sum()
                sums[2] += len(own)
            loss, correct, count = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
            values = {f"{name}_loss": loss / count, f"{name}_accuracy": correct / count}
            rows += rows_of(values, None, epoch, trainer.global_step, split)
        return rows


def _errors(running: _NormBase, population: _NormBase) -> tuple[dict[str, float], str]:
    """Errors of a layer's running statistics, and the reason where they are NaN."""
    means, variances = (
        torch.stack([getattr(layer, name) for layer in (running, population)]).double()
        for name in ("running_mean", "running_var")
    )
    if not (means + variances).isfinite().all():
        reason = "a statistic is not finite"
        return {"running_mean_error": nan, "running_variance_error": nan}, reason
    kept = varying(means[1], variances[1])
    mean = (means[0] - means[1]).abs() / variances[1].sqrt()
    variance = (variances[0] / variances[1]).log().abs()
    values = {
        "running_mean_error": mean[kept].mean().item(),
        "running_variance_error": variance[kept].mean().item(),
    }
    return values, "no channel varies"
