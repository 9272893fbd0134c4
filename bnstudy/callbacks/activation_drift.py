"""Change of the distribution of each layer's activations from epoch to epoch."""

from math import nan
from typing import NamedTuple

import lightning as L
from torch import Tensor

from bnstudy.callbacks.first_process import others_wait
from bnstudy.callbacks.optimization import (
    OptimizationMetrics,
    calibrated_network,
    get_network,
    get_probe,
    is_varying,
    make_rows,
)
from bnstudy.representations import Tap, capture
from bnstudy.representations.sums import MEAN, VARIANCE

SITES = ("conv", "act")  # inputs of the normalization, and of the next layer


class _Channels(NamedTuple):
    """Mean and variance of each channel over samples and positions, float64, on the CPU."""

    mean: Tensor
    variance: Tensor

    @property
    def varies(self) -> Tensor:
        return is_varying(self.mean, self.variance)

    @property
    def is_finite(self) -> bool:
        return bool((self.mean + self.variance).isfinite().all())


class ActivationDrift(OptimizationMetrics):
    """Internal covariate shift (Ioffe and Szegedy 2015, arXiv 1502.03167, section 2).

    The callback computes the mean m and the standard deviation s of each channel at the end of each
    epoch, at the sites conv and act of each layer, on the probe set of the training split in eval
    mode. It compares them with those of the previous epoch:

    - `mean_drift`: |m - m_before| / s_before, averaged over channels.
    - `std_drift`: |log(s / s_before)|, averaged over channels.

    Epoch 1 is compared with the network before training, which gets the running statistics of the
    training data for this. Constant channels are excluded, because their standard deviation is 0.
    In a distributed run the first process measures while the others wait.

    Args:
        memory_budget: Maximum memory of activations, in GiB.
    """

    def __init__(self, memory_budget: float) -> None:
        super().__init__()
        self.memory_budget = memory_budget
        self.before: dict[Tap, _Channels] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the network that the first epoch is compared with.

        In a resumed run it has the weights of the checkpoint.
        """
        with calibrated_network(trainer, pl_module), others_wait(trainer) as is_first:
            if is_first:
                self.before = self._measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure, and compare with the previous epoch."""
        epoch, step = trainer.current_epoch + 1, trainer.global_step
        with others_wait(trainer) as is_first:
            if is_first:
                now = self._measure(trainer, pl_module)
                rows = []
                for tap, channels in now.items():
                    values, reason = _drift(self.before[tap], channels)
                    rows += make_rows(values, tap, epoch, step, reason=reason)
                self.before = now
                self.publish(trainer, epoch, rows)

    def _measure(self, trainer: L.Trainer, module: L.LightningModule) -> dict[Tap, _Channels]:
        measured = {}
        with self.timed():
            for layer in capture(
                get_network(module),
                get_probe(trainer, "train"),
                sites=SITES,
                memory_budget=self.memory_budget,
                distances=False,
            ):
                assert layer.tap is not None
                moments = layer.moments.channel_moments.cpu()
                measured[layer.tap] = _Channels(moments[:, MEAN], moments[:, VARIANCE])
                del layer  # free its memory before the next layer is read
        return dict(sorted(measured.items(), key=lambda item: item[0].layer_index))


def _drift(before: _Channels, now: _Channels) -> tuple[dict[str, float], str]:
    """Compute both metrics, and the reason if they are NaN."""
    if not (before.is_finite and now.is_finite):
        return {"mean_drift": nan, "std_drift": nan}, "an activation is not finite"
    mean = (now.mean - before.mean).abs() / before.variance.sqrt()
    std = (now.variance / before.variance).log().abs() / 2
    values = {
        "mean_drift": mean[before.varies].mean().item(),
        "std_drift": std[before.varies & now.varies].mean().item(),
    }
    return values, "no channel varies"
