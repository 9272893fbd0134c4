"""Keeping the record of a run while it is trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import lightning as L

from bnstudy.callbacks.optimization import rows_of
from bnstudy.models import Classifier
from bnstudy.runs.long_table import Row
from bnstudy.runs.record import Record
from bnstudy.terms import EvaluatedSplit


class Measurement(Protocol):
    """What measures, before the recorder is called.

    Attributes:
        rows: The latest ones.
        seconds: What all of it took so far.
    """

    rows: list[Row]
    seconds: float


class Recorder(L.Callback):
    """Writes each epoch's part of the long table, and after it what the run can go on from.

    Loss and accuracy go to the trainer's loggers as well, as `<split>/loss` and `<split>/accuracy`.

    Part first: a run that is killed between the two trains that epoch again and writes the same
    part again, and a checkpoint never stands for an epoch that has not been recorded.

    Args:
        record: Of this run.
        measurements: Whose rows are recorded: callbacks that are called before this one.
        checkpoint_epochs: Whose weights are kept besides the last ones.
    """

    def __init__(
        self,
        record: Record,
        measurements: Sequence[Measurement],
        checkpoint_epochs: list[int] | Literal["all"],
    ) -> None:
        self.record = record
        self.measurements = measurements
        self.checkpoint_epochs = checkpoint_epochs
        self.performance: dict[tuple[EvaluatedSplit, str], float] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note loss and accuracy: before training, then at each epoch's end."""
        assert isinstance(pl_module, Classifier)
        self.performance = dict(pl_module.performance)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record what was measured before the first step."""
        if trainer.global_step == 0:
            self._record(trainer, pl_module, epoch=0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the epoch, then save what the run can go on from."""
        self._record(trainer, pl_module, trainer.current_epoch + 1)
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
                rows += rows_of({metric: value}, None, epoch, step, split, reason)
            rows += [row for one in self.measurements for row in one.rows if row.epoch == epoch]
            self.record.table.write_part(epoch, rows)
            self.record.note(
                measure_seconds=sum(one.seconds for one in self.measurements),
                diverged=bool(pl_module.diverged),
            )
            values = {f"{split}/{name}": value for (split, name), value in self.performance.items()}
            for logger in trainer.loggers:
                logger.log_metrics(values | {"epoch": epoch}, step=step)
                logger.save()  # before the checkpoint, which stands for all of the epoch
        self.performance = {}
        if self.checkpoint_epochs == "all" or epoch in self.checkpoint_epochs:
            self._save(trainer, self.record.paths.checkpoint(epoch), weights_only=True)

    def _save(
        self, trainer: L.Trainer, path: Path, weights_only: bool, keep_as: Path | None = None
    ) -> None:
        """Save a checkpoint, atomically; in a distributed run every process has to take part."""
        if trainer.is_global_zero:
            with self.record.replacing(path) as temporary:
                trainer.save_checkpoint(temporary, weights_only)
                if keep_as is not None and path.exists():
                    path.replace(keep_as)  # a disk may yet damage the new one
        else:
            trainer.save_checkpoint(path, weights_only)  # writes nothing
