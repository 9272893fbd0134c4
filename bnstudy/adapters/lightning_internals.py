"""Private parts of Lightning. Checked with Lightning 2.6."""

from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L


@contextmanager
def end_child_processes_on_error(trainer: L.Trainer) -> Iterator[None]:
    """End the processes that the trainer has started if the body raises.

    Otherwise they would wait for this process in a collective until its time-out. The list of
    processes is then emptied, which ends Lightning's observer of them: it would kill this process
    because another one has ended with an error.

    Args:
        trainer: Trainer that is used in the body.
    """
    try:
        yield
    except BaseException:
        processes = getattr(trainer.strategy.launcher, "procs", [])
        for process in processes:
            process.kill()  # a signal that can be handled would wait for the collective's end
            process.wait()
        processes.clear()
        raise
