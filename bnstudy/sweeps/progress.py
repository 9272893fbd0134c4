"""How far a multirun is."""

import math
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console


class SweepProgress(Callback):
    """A Hydra callback: before each job, which one of how many it is and about how long is left.

    Attributes:
        current: The one of the multirun of this process; None where there is none.
    """

    current: "ClassVar[SweepProgress | None]" = None

    def __init__(self) -> None:
        self.total = 0
        self.finished = 0
        self.seconds: list[float] = []  # that each trained cell took; complete ones are skipped
        self.started = 0.0

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Count the cells of the grid."""
        SweepProgress.current = self
        self.output_root = Path(config.output_root)
        self.began = time.time()
        # An experiment's own grid, of which the command line takes the place key by key.
        grid = [
            f"{key}={values}" for key, values in (config.hydra.sweeper.get("params") or {}).items()
        ]
        overrides = OverridesParser.create().parse_overrides([*grid, *config.hydra.overrides.task])
        axes = {override.key_or_group: override for override in overrides}
        self.total = math.prod(
            len(list(override.sweep_string_iterator()))
            for override in axes.values()
            if override.is_sweep_override()
        )

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Say which cell is next."""
        self.started = time.monotonic()
        if not self.total:  # a single run
            return
        cell = " ".join(config.hydra.overrides.task)
        message = f"Cell {int(config.hydra.job.num) + 1} of {self.total}: {cell}"
        if self.seconds:
            left = sum(self.seconds) / len(self.seconds) * (self.total - self.finished)
            message += f" · about {timedelta(seconds=round(left))} left"
        Console().print(message, style="bold", highlight=False, soft_wrap=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Note how long it took."""
        self.finished += 1
        if getattr(job_return._return_value, "trained", False):
            self.seconds.append(time.monotonic() - self.started)

    def studies(self) -> list[Path]:
        """The studies with a cell that this multirun came to, whatever process ran it.

        Hydra writes a cell's .hydra/ anew whenever a job begins there.
        """
        written = self.output_root.glob("*/*/.hydra/overrides.yaml")
        touched = {path.parents[2] for path in written if path.stat().st_mtime >= self.began}
        return sorted(touched)
