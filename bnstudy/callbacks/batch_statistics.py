"""Difference between BatchNorm in training and in evaluation."""

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
    find_taps,
    get_network,
    get_probe,
    is_varying,
    make_rows,
)
from bnstudy.models.classifier import is_correct
from bnstudy.models.recalibration import recalibrate
from bnstudy.representations.precision import on_float64_device
from bnstudy.representations.running_statistics import with_running_statistics
from bnstudy.runs.long_table import Row
from bnstudy.terms import SPLITS


class BatchStatistics(OptimizationMetrics):
    """Errors of running statistics, and their effect on loss and accuracy.

    Only networks with layers that keep running statistics are measured: at the end of each epoch,
    and before training with the running statistics of the training data. The population is the
    probe set of the training split. `recalibrate` computes the population's statistics in a copy
    of the network.

    For each layer with running statistics, averaged over the channels that vary in the population:

    - `running_mean_error`: |running mean - population mean| / population standard deviation.
    - `running_variance_error`: |log(running variance / population variance)|.

    For the whole model, on the probe set of each split, in eval mode:

    - `recalibrated_loss`, `recalibrated_accuracy`: with the population's statistics. For
      comparison, `probe_loss` and `probe_accuracy` of `RepresentationMetrics` are computed with the
      running statistics.
    - `batch_statistics_loss`, `batch_statistics_accuracy`: with the statistics of each batch, as in
      training, in batches of the training's size.

    In a distributed run all processes take part.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure before the first step, unless the run is resumed."""
        if trainer.global_step == 0:
            with calibrated_network(trainer, pl_module):
                self._measure(trainer, get_network(pl_module), epoch=0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure at the end of the epoch."""
        self._measure(trainer, get_network(pl_module), trainer.current_epoch + 1)

    def _measure(self, trainer: L.Trainer, network: nn.Module, epoch: int) -> None:
        layers = with_running_statistics(network)
        if not layers:
            return
        step = trainer.global_step
        rows: list[Row] = []
        with self.timed():
            copy = deepcopy(network).eval()
            population = get_probe(trainer, "train")
            recalibrate(copy, population.shuffled(population.size))
            recalibrated = with_running_statistics(copy)
            for name, tap in find_taps(network, layers, population).items():
                values, reason = _errors(layers[name], recalibrated[name])
                rows += make_rows(values, tap, epoch, step, reason=reason)
            rows += self._performance(trainer, copy, "recalibrated", epoch)
            for layer in recalibrated.values():
                layer.train()
            rows += self._performance(trainer, copy, "batch_statistics", epoch)
        self.publish(trainer, epoch, rows)

    def _performance(
        self, trainer: L.Trainer, network: nn.Module, name: str, epoch: int
    ) -> list[Row]:
        """Compute loss and accuracy on both probe sets, with the modules in their current modes."""
        rows = []
        size = trainer.datamodule.batch_size  # type: ignore[attr-defined]
        share = slice(trainer.global_rank, None, trainer.world_size)
        parameter = next(network.parameters())
        for split in SPLITS:
            sums = on_float64_device(torch.zeros(3, device=parameter.device)).double()
            for inputs, labels in get_probe(trainer, split).shuffled(size):
                with torch.no_grad():
                    logits = network(inputs[share].to(parameter.device, parameter.dtype)).float()
                logits, targets = on_float64_device(logits), labels[share].to(sums.device)
                sums[0] += functional.cross_entropy(logits, targets, reduction="sum")
                sums[1] += is_correct(logits, targets).sum()
                sums[2] += len(targets)
            loss, correct, count = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
            values = {f"{name}_loss": loss / count, f"{name}_accuracy": correct / count}
            rows += make_rows(values, None, epoch, trainer.global_step, split)
        return rows


def _errors(running: _NormBase, population: _NormBase) -> tuple[dict[str, float], str]:
    """Compute the errors of a layer's running statistics, and the reason if they are NaN."""
    mean, variance, true_mean, true_variance = (
        on_float64_device(getattr(layer, name)).double()
        for layer in (running, population)
        for name in ("running_mean", "running_var")
    )
    if not (mean + variance + true_mean + true_variance).isfinite().all():
        reason = "a statistic is not finite"
        return {"running_mean_error": nan, "running_variance_error": nan}, reason
    mean_errors = (mean - true_mean).abs() / true_variance.sqrt()
    variance_errors = (variance / true_variance).log().abs()
    varies = is_varying(true_mean, true_variance)
    values = {
        "running_mean_error": mean_errors[varies].mean().item(),
        "running_variance_error": variance_errors[varies].mean().item(),
    }
    return values, "no channel varies"
