"""Estimates of how long cells take, based on the cells that are already finished."""

import hashlib
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import timedelta
from itertools import chain
from typing import Any

from bnstudy.config.identity import select_identity_options
from bnstudy.runs.record import Record

# Prefixes of the keys that hardly change how long an epoch takes.
KEYS_WITHOUT_EFFECT_ON_TIME = ("seed", "norm.", "optim.", "trainer.max_epochs")


class DurationEstimator:
    """Estimator of how long cells take, from the seconds per epoch of finished runs.

    The seconds per epoch include the measurements.

    Args:
        records: Records of runs; only finished runs are used.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.seconds_per_epoch: dict[str, list[float]] = defaultdict(list)  # by timing key
        for record in records:
            seconds = record.description.timing.seconds
            epochs = record.description.final.epoch
            if record.is_finished and epochs and seconds:
                key = timing_key(record.description.config)
                self.seconds_per_epoch[key].append(seconds / epochs)

    def estimate(self, timing_key: str, epochs: int) -> float | None:
        """Estimate the time for a number of epochs.

        The estimate is the mean over the runs with the same key; over all runs if there are none.

        Args:
            timing_key: Key of the cell, from `timing_key`.
            epochs: Number of epochs to train.

        Returns:
            Time in seconds; None if no run is finished yet.
        """
        everything = [*chain.from_iterable(self.seconds_per_epoch.values())]
        if known := self.seconds_per_epoch.get(timing_key) or everything:
            return statistics.fmean(known) * epochs
        return None


def timing_key(config: dict[str, Any]) -> str:
    """Compute a hash, 8 hexadecimal digits, that is equal for cells with similar run times.

    Args:
        config: Resolved configuration of the cell.
    """
    values = {
        key: options
        for key, options in select_identity_options(config).items()
        if not key.startswith(KEYS_WITHOUT_EFFECT_ON_TIME)
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def format_time_left(seconds: Sequence[float | None], workers: int = 1) -> str:
    """Format the estimated time that the remaining cells take.

    Args:
        seconds: Estimate for each cell, in seconds; None if it is not known.
        workers: Number of cells that run at the same time.
    """
    if None in seconds:
        return "time left: not known before the first cell is complete"
    work = sum(filter(None, seconds))
    shared = f", {timedelta(seconds=round(work / workers))} with {workers} at a time"
    return f"about {timedelta(seconds=round(work))} of work left" + shared * (workers > 1)
