"""Callback that measures every layer's representation while a network is trained."""

import operator
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import lightning as L
import torch
from torch import Tensor, nn

from bnstudy.callbacks.first_process import others_wait
from bnstudy.callbacks.names import logged_name
from bnstudy.callbacks.optimization import make_rows
from bnstudy.data.batches import balanced_folds
from bnstudy.data.module import CALIBRATION_BATCH
from bnstudy.errors import UserError, shorten
from bnstudy.metrics import Metric, Value, chosen, evaluate
from bnstudy.models import calibrated, recalibrated
from bnstudy.models.classifier import sum_performance
from bnstudy.representations import Layer, capture
from bnstudy.representations.network import Batch
from bnstudy.representations.precision import Precision
from bnstudy.runs.long_table import Row
from bnstudy.terms import NOT_APPLICABLE, PROBE_PERFORMANCE


class RepresentationMetrics(L.Callback):
    """Callback that measures the layers of a LightningModule before training and after epochs.

    The module is run on the probe set of each split in eval mode, and is not changed. The trainer's
    loggers get the values as `rep/<split>/<layer>/<metric>`, and for sites other than act as
    `rep/<split>/<layer>.<site>/<metric>`. If the module's output is one logit per class, they also
    get loss and accuracy as `<split>/probe_loss` and `<split>/probe_accuracy`, which callbacks such
    as `EarlyStopping` can monitor. In a distributed run the first process measures while the others
    wait.

    The last epoch is always measured, even if `EarlyStopping`, `max_steps` or `max_time` end the
    training, possibly in the middle of an epoch. Before training, BatchNorm's running mean is 0 and
    its running variance 1; for the measurement of epoch 0 they are replaced by the statistics of
    `calibration`, and restored afterwards.

    Args:
        probes: Probe set of each split: an iterable over batches (inputs, labels) that can be
            iterated repeatedly.
        names: Names of metrics in `bnstudy.metrics.METRICS`; if empty, only loss and
            accuracy are measured.
        sites: Sites of a layer: any of conv, norm, act and features (the input of the last linear
            layer).
        every_n_epochs: Interval n; epoch 0 (before training), every n-th epoch and the last one are
            measured.
        at_steps: Steps, counted over the whole training, after which to measure as well, except
            those that end an epoch; `log2` for the powers of 2 within the first epoch.
            Normalization layers then have the running statistics of `calibration`, because early in
            training their own are close to the initial values.
        folds: Number of class-balanced parts of each probe set that are measured as well after the
            last epoch; 0 for none. Metrics of distances are computed from blocks of the Gram
            matrix, others from the activations if these are in memory; metrics that run the network
            are left out.
        memory_budget: Maximum memory of activations and of distances between samples, in GiB.
        channel_axis: Axis of the channels in modules' outputs by pattern of module names, such as
            `{"blocks.*": -1}`, for modules whose axis is not found correctly.
        precision: Precision of the products of representations, as for `bnstudy.Layer`.
        on_layer: Function that is called with a message before each layer, for a progress bar.
        calibration: Batches (inputs, labels) of the training data, each with samples of all
            classes; None for the probe set of the split `train`, or else the first probe set.

    Attributes:
        rows: Rows of the latest measurement before training or after an epoch.
        step_rows: Rows measured within the latest epoch; their `epoch` is the number of completed
            epochs. They are not logged.
        fold_rows: (fold, row) of each value that was measured on one fold after the last epoch.
        seconds: Total time of all measurements, without calibrations, in seconds.
        precisions: Precisions of the matrix products, by layer label.

    Raises:
        UserError: A metric is unknown, or `every_n_epochs` is not an integer of at least 1.
    """

    def __init__(
        self,
        probes: Mapping[str, Iterable[Batch]],
        names: Sequence[str],
        sites: Sequence[str] = ("act",),
        every_n_epochs: int = 1,
        at_steps: Sequence[int] | Literal["log2"] = (),
        folds: int = 0,
        memory_budget: float = 2,
        channel_axis: Mapping[str, int] | None = None,
        precision: Precision = "auto",
        on_layer: Callable[[str], None] = lambda message: None,
        calibration: Iterable[Batch] | None = None,
    ) -> None:
        try:
            self.every_n_epochs = operator.index(every_n_epochs)
        except TypeError:
            self.every_n_epochs = 0
        if self.every_n_epochs < 1 or isinstance(every_n_epochs, bool):
            raise UserError(
                f"every_n_epochs={shorten(every_n_epochs)} is not allowed; expected an integer of "
                "at least 1"
            )
        self.probes = probes
        if calibration is None and probes:
            calibration = _MergedBatches(probes.get("train", next(iter(probes.values()))))
        self.calibration = () if calibration is None else calibration
        self.metrics = chosen(names)
        self.sites = sites
        self.at_steps = at_steps
        self.folds = folds
        self.memory_budget = memory_budget
        self.channel_axis = channel_axis
        self.precision = precision
        self.on_layer = on_layer
        self.rows: list[Row] = []
        self.step_rows: list[Row] = []
        self.fold_rows: list[tuple[int, Row]] = []
        self._is_last_epoch = False
        self.seconds = 0.0
        self.precisions: dict[str, set[str]] = {}
        # The latest epoch, if `on_train_end` must still measure it because it was not measured, or
        # was measured without folds. Otherwise None.
        self._epoch_to_measure_at_end: int | None = None
        self._latest_step = -1  # latest step that was measured within an epoch, or ended an epoch
        self._warned_reasons: set[str] = set()

    def directions(self) -> dict[str, str | None]:
        """Return the direction of better values by metric: higher, lower, or None."""
        return {metric.name: metric.direction for metric in self.metrics}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure before the first step, unless the run is resumed."""
        self._epoch_to_measure_at_end, self._latest_step = None, -1
        self._is_last_epoch, self.fold_rows = False, []
        if trainer.global_step == 0:
            self._measure_and_log(trainer, pl_module, epoch=0)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Discard the rows measured within the previous epoch."""
        self.step_rows = []

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Measure the step if it is due and not the last of its epoch.

        `on_train_epoch_end` measures after the last step if the epoch is due.
        """
        step, epoch = trainer.global_step, trainer.current_epoch
        # With gradient accumulation, several batches have the same global step; that of the first
        # ones is 0.
        if (
            not trainer.is_last_batch
            and step > max(0, self._latest_step)
            and self._is_due(step, epoch)
        ):
            self._latest_step = step
            # Recalibrate all layers: early in training, running statistics are mostly the initial
            # values.
            with recalibrated(pl_module, self.calibration), others_wait(trainer) as is_first:
                if is_first:
                    self.step_rows += self._measure(pl_module, epoch, step)

    def _is_due(self, step: int, epoch: int) -> bool:
        if self.at_steps == "log2":
            return epoch == 0 and step & (step - 1) == 0
        return step in self.at_steps

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the epoch if it is due."""
        # If `max_steps` or a callback stops training, the last epoch may end before its last batch.
        # The last step may then have been measured as one within the epoch; the measurement of the
        # epoch, or that at the end of training, replaces it.
        self.step_rows = [row for row in self.step_rows if row.step != trainer.global_step]
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs:
            self._is_last_epoch = epoch == trainer.max_epochs
            values = self._measure_and_log(trainer, pl_module, epoch)
            monitored = {f"{split}/{name}" for split in self.probes for name in PROBE_PERFORMANCE}
            for name in values.keys() & monitored:
                pl_module.log(name, values[name], logger=False, sync_dist=True)
            # If training stops early, this was the last epoch, and on_train_end measures it again
            # with folds.
            self._epoch_to_measure_at_end = (
                epoch if self.folds and not self._is_last_epoch else None
            )
        else:
            self._epoch_to_measure_at_end = epoch
        # With gradient accumulation, the next epoch begins at the same global step.
        self._latest_step = trainer.global_step

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the last epoch if it was not measured, or was measured without folds."""
        if self._epoch_to_measure_at_end is not None:
            self._is_last_epoch = True
            self._measure_and_log(trainer, pl_module, self._epoch_to_measure_at_end)

    def measure(self, module: nn.Module, epoch: int, step: int) -> list[Row]:
        """Compute every metric of every layer on every probe set.

        Args:
            module: Network, which is not changed.
            epoch: Number of epochs trained before the measurement, for the rows.
            step: Number of steps trained before the measurement, for the rows.

        Returns:
            Rows of the long table. The split `train` comes first, and the layers of a split are in
            the order of computation.
        """
        with calibrated(module, self.calibration):
            return self._measure(module, epoch, step)

    def _measure(self, module: nn.Module, epoch: int, step: int) -> list[Row]:
        """Measure a network that is calibrated; see `measure`."""
        started = time.monotonic()
        rows: list[Row] = []
        for split, batches in self.probes.items():
            rows += self._measure_split(module, split, batches, epoch, step)
        self.seconds += time.monotonic() - started
        return sorted(rows, key=lambda row: (row.split != "train", row.layer_index))

    def _measure_split(
        self, module: nn.Module, split: str, batches: Iterable[Batch], epoch: int, step: int
    ) -> Iterator[Row]:
        self.on_layer(f"reading representations, {split}")
        layers = capture(
            module,
            batches,
            sites=self.sites,
            channel_axis=self.channel_axis,
            memory_budget=self.memory_budget,
            distances=any(metric.needs_products for metric in self.metrics),
            precision=self.precision,
        )
        is_first_layer = True
        for layer in layers:  # `enumerate` would keep the previous layer in memory
            if is_first_layer:
                yield from _measure_performance(layer, epoch, step, split)
                is_first_layer = False
            if not self.metrics:
                return
            self.on_layer(f"measuring {layer.name}, {split}")
            yield from self._measure_layer(layer, epoch, step, split)
            if layer.product_precision is not None and layer.tap is not None:
                self.precisions.setdefault(layer.tap.label, set()).add(layer.product_precision)
            del layer  # free its memory before the next layer is read

    def _measure_layer(self, layer: Layer, epoch: int, step: int, split: str) -> list[Row]:
        """Compute every metric of a layer and, after the last epoch, of folds of its samples."""
        tap = layer.tap
        assert tap is not None
        position = (epoch, step, split, tap.layer_index, tap.layer, tap.site)
        values = evaluate(self.metrics, layer)
        self._warn_undefined(values, f"{tap.layer} at epoch {epoch}")

        def make_row(name: str, value: Value) -> Row:
            number, reason, is_applicable = value
            prefix = "" if is_applicable else NOT_APPLICABLE
            return Row(*position, name, number, reason and f"{prefix}{reason}")

        if self.folds and self._is_last_epoch:
            for fold, fold_values in enumerate(_evaluate_folds(layer, self.metrics, self.folds)):
                self.fold_rows += [(fold, make_row(*item)) for item in fold_values.items()]
        return [make_row(*item) for item in values.items()]

    def _warn_undefined(self, values: Mapping[str, Value], where: str) -> None:
        """Warn of metrics that should have a value and have none, once for each reason."""
        undefined: dict[str, list[str]] = {}
        for name, (_, reason, is_applicable) in values.items():
            if reason is not None and is_applicable:
                undefined.setdefault(reason, []).append(name)
        for reason in undefined.keys() - self._warned_reasons:
            self._warned_reasons.add(reason)
            names = ", ".join(undefined[reason])
            warnings.warn(f"{where}: {reason}; NaN for {names}", stacklevel=2)

    def _measure_and_log(
        self, trainer: L.Trainer, module: L.LightningModule, epoch: int
    ) -> dict[str, float]:
        """Measure in the first process; return the logged values in all processes."""
        values: dict[str, float] = {}
        # Only layers that have not been trained are calibrated. All processes do it, because layers
        # may synchronize their statistics.
        with calibrated(module, self.calibration), others_wait(trainer) as is_first:
            if is_first:
                self.rows = self._measure(module, epoch, trainer.global_step)
                values = {logged_name(row): row.value for row in self.rows} | {"epoch": epoch}
                for logger in trainer.loggers:
                    logger.log_metrics(values, step=trainer.global_step)
        return trainer.strategy.broadcast(values)


def _evaluate_folds(
    layer: Layer, metrics: Sequence[Metric], folds: int
) -> Iterator[dict[str, Value]]:
    """Evaluate the metrics on class-balanced parts of a layer's samples."""
    without_network = [metric for metric in metrics if "network" not in metric.needs]
    distance_metrics = [
        metric
        for metric in without_network
        if metric.needs_products and {"rotation", "translation"} <= metric.invariant_to
    ]
    others = [metric for metric in without_network if metric not in distance_metrics]
    assigned = balanced_folds(layer.labels, folds)
    for fold in range(folds):
        part = torch.nonzero(assigned == fold).flatten()
        labels = layer.labels[part]
        values: dict[str, Value] = {}
        activity = layer.activity
        if distance_metrics and activity.largest < torch.inf and not activity.is_constant:
            values |= evaluate(distance_metrics, Layer(_embed_gram(layer.gram, part), labels))
        if others and layer.activations is not None:
            values |= evaluate(others, Layer(layer.activations[part], labels))
        yield values


def _embed_gram(gram: Tensor, part: Tensor) -> Tensor:
    """Return points, n x n, whose distances are those of n samples in a Gram matrix.

    This is classical scaling.

    Args:
        gram: Inner products of N samples: N x N.
        part: Indices of the n samples.
    """
    values, vectors = torch.linalg.eigh(gram[part][:, part].double())
    points: Tensor = vectors * values.clamp_min(0).sqrt()
    return points.float()


def _measure_performance(layer: Layer, epoch: int, step: int, split: str) -> list[Row]:
    """Make the rows of loss and accuracy from the logits of the pass that produced the layer."""
    logits = layer.network.logits if layer.network else None
    if logits is None:
        return []
    loss, correct, count = sum_performance(logits, layer.labels).tolist()
    values = dict(zip(PROBE_PERFORMANCE, (loss / count, correct / count), strict=True))
    return make_rows(values, None, epoch, step, split)


@dataclass(frozen=True)
class _MergedBatches:
    """Batches concatenated to at least `CALIBRATION_BATCH` samples, for BatchNorm's statistics.

    A smaller remainder is left out, unless it is all there is.
    """

    batches: Iterable[Batch]

    def __iter__(self) -> Iterator[Batch]:
        collected: list[Batch] = []
        has_yielded = False
        for batch in self.batches:
            collected.append(batch)
            if sum(len(labels) for _, labels in collected) >= CALIBRATION_BATCH:
                yield _concatenate(collected)
                collected, has_yielded = [], True
        if collected and not has_yielded:
            yield _concatenate(collected)


def _concatenate(batches: Sequence[Batch]) -> Batch:
    inputs, labels = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat([torch.as_tensor(batch_labels) for batch_labels in labels])
