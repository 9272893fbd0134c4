"""How far the distribution of each layer's activations moves from epoch to epoch."""

from math import nan
from typing import NamedTuple

import lightning as L
from torch import Tensor

from bnstudy.callbacks.optimization import (
    OptimizationMetrics,
    calibrated_network,
    network_of,
    probe_of,
    rows_of,
    varying,
)
from bnstudy.representations import Tap, capture

SITES = ("conv", "act")  # the inputs of normalization, and what the next layer reads


class _Channels(NamedTuple):
    """Of each channel of a layer, over samples and positions: float64, on the CPU."""

    mean: Tensor
    variance: Tensor

    @property
    def varies(self) -> Tensor:
        return varying(self.mean, self.variance)

    @property
    def is_finite(self) -> bool:
        return bool((self.mean + self.variance).isfinite().all())


class ActivationDrift(OptimizationMetrics):
    """Internal covariate shift, as Ioffe and Szegedy 2015 (arXiv 1502.03167, section 2) put it.

    Of each layer, at the sites conv and act, on the training split's probe set in eval mode, with
    the mean m and the standard deviation s of each channel at the end of this epoch and the one
    before (epoch 1 against the network before training, with running statistics of the training
    data):

    - `mean_drift`: |m - m_before| / s_before, averaged over channels.
    - `std_drift`: |log(s / s_before)|, averaged over channels.

    Channels are left out that are constant, and would be divided by 0. In a distributed run the
    first process measures, and the others wait for it.

    Args:
        memory_budget: GiB that activations may take.
    """

    def __init__(self, memory_budget: float) -> None:
        super().__init__()
        self.memory_budget = memory_budget
        self.before: dict[Tap, _Channels] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure what the first epoch is compared with.

        That follows from the weights: a run that is resumed measures those it goes on from.
        """
        with calibrated_network(trainer, pl_module):
            if trainer.is_global_zero:
                self.before = self._measure(trainer, pl_module)
            trainer.strategy.barrier("measured")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure, and compare with the epoch before."""
        epoch, step = trainer.current_epoch + 1, trainer.global_step
        if trainer.is_global_zero:
            now = self._measure(trainer, pl_module)
            rows = []
            for tap, channels in now.items():
                values, reason = _drift(self.before[tap], channels)
                rows += rows_of(values, tap, epoch, step, reason=reason)
            self.before = now
            self.publish(trainer, epoch, rows)
        trainer.strategy.barrier("measured")

    def _measure(self, trainer: L.Trainer, module: L.LightningModule) -> dict[Tap, _Channels]:
        measured = {}
        with self.timed():
            for layer in capture(
                network_of(module),
                probe_of(trainer, "train"),
                sites=SITES,
                memory_budget=self.memory_budget,
                distances=False,
            ):
                assert layer.tap is not None
                mean, variance = layer.moments.channels[:, :2].cpu().unbind(1)
                measured[layer.tap] = _Channels(mean, variance)
                del layer  # before the next one is read
        return dict(sorted(measured.items(), key=lambda item: item[0].layer_index))


def _drift(before: _Channels, now: _Channels) -> tuple[dict[str, float], str]:
    """Both metrics, and why they are NaN if they are."""
    if not (before.is_finite and now.is_finite):
        return {"mean_drift": nan, "std_drift": nan}, "an activation is not finite"
    mean = (now.mean - before.mean).abs() / before.variance.sqrt()
    std = (now.variance / before.variance).log().abs() / 2
    values = {
        "mean_drift": mean[before.varies].mean().item(),
        "std_drift": std[before.varies & now.varies].mean().item(),
    }
    return values, "no channel varies"
