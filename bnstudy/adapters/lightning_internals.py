"""Private parts of Lightning. Checked with Lightning 2.6."""

from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L


@contextmanager
def end_child_processes_on_error(trainer: L.Trainer) -> Iterator[None]:
    """End the processes that the trainer has started if the body raises.

    They would wait for this process in a collective until its time-out. Lightning's observer of
    these processes kills this one if another has ended by an error; it ends with an empty list.

    Args:
        trainer: Trainer that is used in the body.
    """
    try:
        yield
    except BaseException:
        started = getattr(trainer.strategy.launcher, "procs", [])
        for process in started:
            process.kill()  # a signal that can be handled would wait for the collective's end
            process.wait()
        started.clear()
        raise
