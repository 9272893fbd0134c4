"""How far a multirun is."""

import time
from datetime import timedelta
from typing import Any, ClassVar

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console

from bnstudy.adapters.hydra_internals import returned


class SweepProgress(Callback):
    """A Hydra callback: before each job, which one of how many it is and about how long is left.

    Attributes:
        total: Jobs that this process launches; 0 where it launches none, as a worker.
    """

    total: ClassVar[int] = 0

    def __init__(self) -> None:
        self.finished = 0
        self.seconds: list[float] = []  # that each trained cell took
        self.started = 0.0

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Say which cell is next."""
        self.started = time.monotonic()
        if not self.total:
            return
        cell = " ".join(config.hydra.overrides.task)
        message = f"Cell {int(config.hydra.job.num) + 1} of {self.total}: {cell}"
        if self.seconds:
            left = sum(self.seconds) / len(self.seconds) * (self.total - self.finished)
            message += f" · about {timedelta(seconds=round(left))} left"
        Console(markup=False).print(message, style="bold", highlight=False, soft_wrap=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Note how long it took."""
        self.finished += 1
        if getattr(returned(job_return), "trained", False):
            self.seconds.append(time.monotonic() - self.started)
