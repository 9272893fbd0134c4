"""Progress display of a run in the terminal."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from bnstudy.models import Classifier
from bnstudy.terms import EVALUATED_SPLITS


class _TimeLeftColumn(TimeRemainingColumn):
    def render(self, task: Task) -> Text:
        return Text.assemble(super().render(task), " left") if task.total else Text("")


class Progress(L.Callback):
    """Progress bar with the epoch, the current activity, loss and accuracy.

    The bar disappears at the end of the run. If the output is not a terminal, such as in a log
    file, one line per epoch is printed instead.

    Args:
        title: Name of the run.
        console: Console for the output.
    """

    def __init__(self, title: str, console: Console) -> None:
        self.title = title
        self.console = console
        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("batches"),
            TimeElapsedColumn(),
            _TimeLeftColumn(),
            console=console,
            transient=True,
            refresh_per_second=4,
        )
        self.task = self.bar.add_task(title, total=None)
        self.numbers = ""

    def show(self, message: str) -> None:
        """Show the current activity."""
        self.bar.update(self.task, description=f"{self.title} · {message}{self.numbers}")

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start the bar, in a terminal."""
        if trainer.is_global_zero and self.console.is_terminal:
            self.bar.start()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remove the bar."""
        self._stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Remove the bar."""
        self._stop()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the number of the epoch."""
        total = int(trainer.estimated_stepping_batches)
        self.bar.update(self.task, total=total, completed=trainer.global_step)
        self.show(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Advance the bar."""
        self.bar.update(self.task, completed=trainer.global_step)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show that the splits are being evaluated."""
        self.show("evaluating")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the new loss and accuracy of the whole splits."""
        self._show_numbers(trainer, "", trainer.callback_metrics)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show loss and accuracy of the probe sets, unless the whole splits were evaluated."""
        assert isinstance(pl_module, Classifier)
        if not pl_module.performance:
            callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
            rows = [row for callback in callbacks for row in getattr(callback, "rows", ())]
            epoch = trainer.current_epoch + 1
            values = {f"{row.split}/{row.metric}": row.value for row in rows if row.epoch == epoch}
            self._show_numbers(trainer, "probe_", values)

    def _show_numbers(
        self, trainer: L.Trainer, prefix: str, values: Mapping[str, torch.Tensor | float]
    ) -> None:
        accuracies = [
            f"{split} {values[f'{split}/{prefix}accuracy']:.2%}"
            for split in EVALUATED_SPLITS
            if f"{split}/{prefix}accuracy" in values
        ]
        self.numbers = ""
        if accuracies:
            name, loss = prefix.replace("_", " "), values[f"train/{prefix}loss"]
            self.numbers = f" · {name}loss {loss:.3f} · accuracy {' '.join(accuracies)}"
        if trainer.is_global_zero and not self.console.is_terminal:
            epoch = trainer.current_epoch + (trainer.state.fn == "fit")
            self.console.print(
                f"{self.title} · epoch {epoch}/{trainer.max_epochs}{self.numbers}",
                soft_wrap=True,
                highlight=False,
            )

    def _stop(self) -> None:
        if self.bar.live.is_started:
            self.bar.stop()
