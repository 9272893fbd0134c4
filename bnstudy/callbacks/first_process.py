"""Work that the first process of a distributed run does while the others wait."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L

from bnstudy.adapters.torch_internals import shared_store

POLL_INTERVAL = 0.1  # seconds


@contextmanager
def others_wait(trainer: L.Trainer) -> Iterator[bool]:
    """Let the other processes wait until the first one has left the body.

    They may wait for any time: a barrier would end the run after the process group's time-out. If
    the body raises in the first process, the others exit.

    Args:
        trainer: Trainer of a run with one or several processes, all of which call this.

    Yields:
        Whether this is the first process, which does the work.

    Raises:
        SystemExit: The first process failed.
    """
    store = shared_store()
    if store is None:
        yield trainer.is_global_zero
        trainer.strategy.barrier()  # processes that do not use torch.distributed
        return
    turn = store.add(f"bnstudy/turn of process {trainer.global_rank}", 1)
    outcome = f"bnstudy/outcome of turn {turn}"
    if trainer.is_global_zero:
        succeeded = False
        try:
            yield True
            succeeded = True
        finally:
            store.set(outcome, str(succeeded))
        return
    yield False
    while not store.check([outcome]):  # raises if the first process was killed
        time.sleep(POLL_INTERVAL)
    if store.get(outcome) != b"True":
        sys.exit(f"Process {trainer.global_rank}: the first process failed; see its error")
