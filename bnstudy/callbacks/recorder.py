"""Callback that writes the record of a run during training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import lightning as L

from bnstudy.callbacks.optimization import OptimizationMetrics, make_rows
from bnstudy.callbacks.representation_metrics import RepresentationMetrics
from bnstudy.models import Classifier
from bnstudy.runs.record import Record
from bnstudy.terms import EvaluatedSplit


class Recorder(L.Callback):
    """Callback that writes each epoch's part of the long table, then the checkpoint to resume from.

    It also sends loss and accuracy to the trainer's loggers, as `<split>/loss` and
    `<split>/accuracy`. Whole splits are evaluated only before training and after the last epoch. At
    the other epochs only loss and accuracy of the probe sets are known, from the measurements.

    The part is written before the checkpoint, so that every checkpoint's epochs have been recorded.
    A run that is killed between the two writes trains the epoch again and overwrites its part.

    Args:
        record: Record of this run.
        measurements: Callbacks whose rows are recorded. Lightning calls them before this one.
        checkpoint_epochs: Epochs whose weights are kept, in addition to the last epoch.
    """

    def __init__(
        self,
        record: Record,
        measurements: Sequence[RepresentationMetrics | OptimizationMetrics],
        checkpoint_epochs: list[int] | Literal["all"],
    ) -> None:
        self.record = record
        self.measurements = measurements
        self.checkpoint_epochs = checkpoint_epochs
        self.performance: dict[tuple[EvaluatedSplit, str], float] = {}
        self._recorded_epoch: int | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the last epoch be the only one with validation.

        It is not set as an option of the trainer, because `EarlyStopping` would read that option
        before this method is called, and then check only epochs with validation.
        """
        trainer.check_val_every_n_epoch = trainer.max_epochs

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Store loss and accuracy; after a training that stopped early, record them at once."""
        assert isinstance(pl_module, Classifier)
        self.performance = dict(pl_module.performance)
        if self._recorded_epoch is not None and trainer.state.fn == "validate":
            self._record(trainer, pl_module, self._recorded_epoch)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the measurements before the first step."""
        if trainer.global_step == 0:
            self._record(trainer, pl_module, epoch=0)
            self._keep_weights(trainer, epoch=0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the epoch, then save the checkpoints."""
        epoch = trainer.current_epoch + 1
        self._record(trainer, pl_module, epoch)
        self._keep_weights(trainer, epoch)
        paths = self.record.paths
        self._save(
            trainer, paths.last_checkpoint, weights_only=False, keep_as=paths.previous_checkpoint
        )

    def _record(self, trainer: L.Trainer, pl_module: L.LightningModule, epoch: int) -> None:
        if trainer.is_global_zero:
            step = trainer.global_step
            rows = []
            for (split, metric), value in self.performance.items():
                reason = f"the {metric} is not finite"
                rows += make_rows({metric: value}, None, epoch, step, split, reason)
            rows += [
                row
                for measurement in self.measurements
                for row in measurement.rows
                if row.epoch == epoch
            ]
            self.record.table.write_part(epoch, rows, add=epoch == self._recorded_epoch)
            for measurement in self.measurements:
                if isinstance(measurement, RepresentationMetrics):
                    self.record.description.add_precisions(measurement.precisions)
                    if measurement.step_rows:
                        self.record.table.add_steps(epoch - 1, measurement.step_rows)
                    if measurement.fold_rows:
                        self.record.table.write_folds(measurement.fold_rows)
            self.record.save_progress(
                measure_seconds=sum(measurement.seconds for measurement in self.measurements),
                diverged=bool(pl_module.diverged),
            )
            values = {f"{split}/{name}": value for (split, name), value in self.performance.items()}
            for logger in trainer.loggers:
                logger.log_metrics(values | {"epoch": epoch}, step=step)
                logger.save()  # before the checkpoint: a resumed run does not log this epoch again
        self.performance, self._recorded_epoch = {}, epoch

    def _keep_weights(self, trainer: L.Trainer, epoch: int) -> None:
        if self.checkpoint_epochs == "all" or epoch in self.checkpoint_epochs:
            self._save(trainer, self.record.paths.checkpoint(epoch), weights_only=True)

    def _save(
        self, trainer: L.Trainer, path: Path, weights_only: bool, keep_as: Path | None = None
    ) -> None:
        """Save a checkpoint atomically; every process of a distributed run has to call this."""
        if trainer.is_global_zero:
            with self.record.replacing(path) as temporary:
                trainer.save_checkpoint(temporary, weights_only)
                if keep_as is not None and path.exists():
                    path.replace(keep_as)  # a fallback in case the new file gets damaged
        else:
            trainer.save_checkpoint(path, weights_only)  # takes part, but writes no file
