"""Measuring every layer's representation while a network is trained."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import lightning as L
import torch
from torch import Tensor

from bnstudy.callbacks.names import logged_name
from bnstudy.data.module import CALIBRATION_BATCH
from bnstudy.metrics import chosen, evaluate
from bnstudy.models import calibrated
from bnstudy.representations import Layer, capture
from bnstudy.runs.long_table import Row

Probe = Iterable[tuple[Tensor, Tensor]]


class RepresentationMetrics(L.Callback):
    """Measures the layers of any LightningModule, before training and at epochs' ends.

    The module is run on each split's probe set in eval mode, and left as it was. Values go to the
    trainer's loggers as `rep/<split>/<layer>/<metric>`, and `rep/<split>/<layer>.<site>/<metric>`
    for other sites than act; the latest ones stay in `rows`. In a distributed run the first process
    measures, and the others wait for it.

    The last epoch is always measured, also where `EarlyStopping`, `max_steps` or `max_time` end the
    training, or the middle of an epoch is its end. BatchNorm's running statistics are 0 and 1
    before training: for epoch 0 they are those of `calibration`, and afterwards as they were.

    Args:
        probes: By split, batches (inputs, labels) that can be passed through again and again.
        names: The metrics to compute, of `bnstudy.metrics.METRICS`; none: nothing is measured.
        sites: Where in a layer: any of conv, norm, act and features (what the last linear layer
            reads).
        every_n_epochs: Measured are epoch 0 (before training), every n-th and the last one.
        memory_budget: GiB that activations and the distances between samples may take.
        channel_axis: By pattern of modules' names, the axis of the channels in what they put out,
            such as `{"blocks.*": -1}`, where it is not the one that is found.
        on_layer: Told what is measured next, for a progress bar.
        calibration: Batches (inputs, labels) of the training data, each a mixture of all classes;
            None: the probe set of the split train, or else the first one.

    Attributes:
        rows: The latest measurement.
        seconds: What all measurements took together.

    Raises:
        UserError: A name is no metric's.
    """

    def __init__(
        self,
        probes: Mapping[str, Probe],
        names: Sequence[str],
        sites: Sequence[str] = ("act",),
        every_n_epochs: int = 1,
        memory_budget: float = 2,
        channel_axis: Mapping[str, int] | None = None,
        on_layer: Callable[[str], None] = lambda message: None,
        calibration: Probe | None = None,
    ) -> None:
        self.probes = probes
        if calibration is None and probes:
            calibration = _Merged(probes.get("train", next(iter(probes.values()))))
        self.calibration = calibration or ()
        self.metrics = chosen(names)
        self.sites = sites
        self.every_n_epochs = every_n_epochs
        self.memory_budget = memory_budget
        self.channel_axis = channel_axis
        self.on_layer = on_layer
        self.rows: list[Row] = []
        self.seconds = 0.0
        self._not_measured: int | None = None  # the latest epoch, if it was not due
        self._warned: set[str] = set()  # of each reason once

    def directions(self) -> dict[str, str | None]:
        """By metric, which values mean better clustered classes."""
        return {metric.name: metric.direction for metric in self.metrics}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure before the first step; a run that is resumed has that already."""
        self._not_measured = None
        if trainer.global_step == 0:
            self._measure_and_log(trainer, pl_module, epoch=0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the epochs that are due."""
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs:
            self._measure_and_log(trainer, pl_module, epoch)
            self._not_measured = None
        else:
            self._not_measured = epoch

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the last epoch where nothing but the end of training makes it the last one."""
        if self._not_measured is not None:
            self._measure_and_log(trainer, pl_module, self._not_measured)

    def measure(self, module: L.LightningModule, epoch: int, step: int) -> list[Row]:
        """Every metric of every layer on every probe set."""
        started = time.monotonic()
        rows: list[Row] = []
        with calibrated(module, self.calibration):
            for split, batches in self.probes.items():
                rows += self._measure_split(module, split, batches, epoch, step)
        self.seconds += time.monotonic() - started
        return sorted(rows, key=lambda row: (row.split != "train", row.layer_index))

    def _measure_split(
        self, module: L.LightningModule, split: str, batches: Probe, epoch: int, step: int
    ) -> Iterator[Row]:
        self.on_layer(f"reading representations, {split}")
        for layer in capture(
            module,
            batches,
            sites=self.sites,
            channel_axis=self.channel_axis,
            memory_budget=self.memory_budget,
            distances=any(metric.needs_products for metric in self.metrics),
        ):
            self.on_layer(f"measuring {layer.name}, {split}")
            yield from self._rows(layer, epoch, step, split)
            del layer  # before the next one is read

    def _rows(self, layer: Layer, epoch: int, step: int, split: str) -> Iterator[Row]:
        tap = layer.tap
        assert tap is not None
        undefined: dict[str, list[str]] = {}
        for name, value in evaluate(self.metrics, layer).items():
            if value.reason is not None and value.is_applicable:
                undefined.setdefault(value.reason, []).append(name)
            where = (tap.layer_index, tap.layer, tap.site)
            yield Row(epoch, step, split, *where, name, value.number, value.reason)
        for reason in undefined.keys() - self._warned:
            self._warned.add(reason)
            names = ", ".join(undefined[reason])
            warnings.warn(f"{tap.layer} at epoch {epoch}: {reason}; NaN for {names}", stacklevel=2)

    def _measure_and_log(self, trainer: L.Trainer, module: L.LightningModule, epoch: int) -> None:
        if not self.metrics:
            return
        with calibrated(module, self.calibration):  # by all processes: layers may synchronize
            if trainer.is_global_zero:
                self.rows = self.measure(module, epoch, trainer.global_step)
                values = {logged_name(row): row.value for row in self.rows} | {"epoch": epoch}
                for logger in trainer.loggers:
                    logger.log_metrics(values, step=trainer.global_step)
            trainer.strategy.barrier("measured")


@dataclass(frozen=True)
class _Merged:
    """Batches put together until they have enough samples for the statistics of a batch."""

    batches: Probe

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        held: list[tuple[Tensor, Tensor]] = []
        whole = False
        for batch in self.batches:
            held.append(batch)
            if sum(len(labels) for _, labels in held) >= CALIBRATION_BATCH:
                yield _together(held)
                held, whole = [], True
        if held and not whole:
            yield _together(held)


def _together(batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    inputs, labels = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(labels)
