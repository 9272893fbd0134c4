"""Progress messages of a multirun."""

import time
from datetime import timedelta
from typing import Any, ClassVar

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console

from bnstudy.adapters.hydra_internals import get_result
from bnstudy.redaction import redact


class SweepProgress(Callback):
    """Hydra callback that prints, when a job starts, its number and the estimated time left.

    Attributes:
        total: Number of jobs that this process launches; 0 in a worker, which launches none.
    """

    total: ClassVar[int] = 0

    def __init__(self) -> None:
        self.seconds: list[float] = []  # per trained cell
        self.started = 0.0

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the number and the overrides of the job that starts."""
        self.started = time.monotonic()
        if not self.total:
            return
        cell = redact(" ".join(config.hydra.overrides.task))
        number = int(config.hydra.job.num)  # begins at 0 again if cells are relaunched
        message = f"Cell {number + 1} of {self.total}: {cell}"
        if self.seconds:
            left = sum(self.seconds) / len(self.seconds) * (self.total - number)
            message += f" · about {timedelta(seconds=round(left))} left"
        Console(markup=False).print(message, style="bold", highlight=False, soft_wrap=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Store how long the job took if it trained a cell."""
        if getattr(get_result(job_return), "has_trained", False):
            self.seconds.append(time.monotonic() - self.started)
