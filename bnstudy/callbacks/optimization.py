"""What the callbacks of the optimization side share."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from math import isfinite, nan

import lightning as L
import torch
from torch import Tensor, nn

from bnstudy.callbacks.names import logged_name
from bnstudy.data.batches import Batches
from bnstudy.data.module import ImageDataModule
from bnstudy.models import Classifier, calibrated
from bnstudy.representations import Tap
from bnstudy.representations.taps import Call, Taps
from bnstudy.runs.long_table import WHOLE_MODEL, Row
from bnstudy.terms import EvaluatedSplit, Split

CONSTANT = 1e-8  # of the squared mean: as small a variance is what float32 makes of a constant


class OptimizationMetrics(L.Callback):
    """Measures a `Classifier` while it is trained on an `ImageDataModule`, and changes nothing.

    Neither weights, gradients and running statistics nor torch's random numbers: a run ends with
    the same weights as without it. Values go to the trainer's loggers as `opt/<metric>` and
    `opt/<layer>/<metric>`, of other sites than act `opt/<layer>.<site>/<metric>`, and of the test
    split `opt/test/<metric>`.

    Attributes:
        rows: The latest measurement.
        seconds: What all measurements took together.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.seconds = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time that the body takes."""
        started = time.monotonic()
        yield
        self.seconds += time.monotonic() - started

    def publish(self, trainer: L.Trainer, epoch: int, rows: list[Row]) -> None:
        """Keep an epoch's rows for the record, and give their values to the loggers."""
        self.rows = rows
        if rows and trainer.is_global_zero:
            values = {logged_name(row): row.value for row in rows} | {"epoch": epoch}
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)


def rows_of(
    values: Mapping[str, float],
    tap: Tap | None,
    epoch: int,
    step: int,
    split: EvaluatedSplit = "train",
    reason: str | None = None,
) -> list[Row]:
    """Rows of the long table, by metric; what is not finite is NaN there.

    Args:
        values: By metric.
        tap: Where in the network; None: numbers of the whole model.
        epoch: Epochs of training before it was measured.
        step: Batches of training before it was measured.
        split: Of the data.
        reason: Why values are not finite; None: just that.
    """
    index, layer, site = (tap.layer_index, tap.layer, tap.site) if tap else (-1, WHOLE_MODEL, None)
    rows = []
    for metric, value in values.items():
        why = None if isfinite(value) else reason or f"{metric} is not finite"
        number = nan if why else value
        rows.append(Row(epoch, step, split, index, layer, site, metric, number, why))
    return rows


def varying(mean: Tensor, variance: Tensor) -> Tensor:
    """Which channels are not constant, by their means and variances."""
    return variance > CONSTANT * mean.square()


def network_of(module: L.LightningModule) -> nn.Module:
    """The network that is trained."""
    assert isinstance(module, Classifier)
    return module.network


def calibrated_network(
    trainer: L.Trainer, module: L.LightningModule
) -> AbstractContextManager[None]:
    """The network with running statistics of the training data, in case no batch has been seen."""
    return calibrated(network_of(module), _data_of(trainer).calibration())


def probe_of(trainer: L.Trainer, split: Split) -> Batches:
    """The samples of a split that are measured."""
    return _data_of(trainer).probe(split)


def _data_of(trainer: L.Trainer) -> ImageDataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, ImageDataModule)
    return data


def taps_of(network: nn.Module, modules: Iterable[str], inputs: Tensor) -> dict[str, Tap]:
    """By name of each module that is called, its place in the network, in the order of computation.

    Args:
        network: Is run in eval mode, and left as it was.
        modules: Their names; where one is called several times, the first call counts.
        inputs: Of the network, a few.
    """
    taps = Taps(network, layers=list(modules))
    calls: list[Call] = []

    def note(call: Call, output: Tensor) -> None:
        calls.append(call)

    with torch.no_grad(), taps.hooked(note) as run:
        run(inputs)
    return {call.module: tap for call, tap in taps.taps(calls).items() if call.number == 1}
