"""How long cells will take, from how long others took."""

import hashlib
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from bnstudy.config.identity import essence
from bnstudy.runs.record import Record

# Of cells that differ in these alone, one takes about as long as another.
ALIKE = ("seed", "norm.", "optim.", "trainer.max_epochs")


class Timing:
    """Seconds that an epoch takes, measuring included, by what was timed so far.

    Args:
        records: Of runs; those that have ended count.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.of_kind: dict[str, list[float]] = defaultdict(list)
        for record in records:
            seconds = record.description.timing.seconds
            epochs = record.description.final.epoch
            if record.has_ended and epochs and seconds:
                self.of_kind[kind(record.description.config)].append(seconds / epochs)

    def seconds(self, kind: str, epochs: int) -> float | None:
        """What so many epochs take: as in cells of that kind, or else in all of them on average.

        Args:
            kind: Of the cell.
            epochs: That are to be trained.

        Returns:
            Seconds; None where no cell was timed.
        """
        everything = [seconds for alike in self.of_kind.values() for seconds in alike]
        if known := self.of_kind.get(kind) or everything:
            return statistics.fmean(known) * epochs
        return None


def kind(config: dict[str, Any]) -> str:
    """The same for cells that take about as long: 8 hexadecimal digits.

    Args:
        config: The resolved configuration.
    """
    values = {key: one for key, one in essence(config).items() if not key.startswith(ALIKE)}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def told(seconds: Sequence[float | None], workers: int = 1) -> str:
    """The time that some cells will take, in words.

    Args:
        seconds: Of each; None where it is not known.
        workers: That share them.
    """
    if None in seconds:
        return "time left: not known before the first cell is complete"
    work = sum(filter(None, seconds))
    shared = f", {timedelta(seconds=round(work / workers))} with {workers} at a time"
    return f"about {timedelta(seconds=round(work))} of work left" + shared * (workers > 1)
