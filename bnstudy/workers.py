"""Worker processes, in which the cells of a sweep run."""

import multiprocessing
import os
import signal
import threading
import time
from functools import cache

POLL_INTERVAL = 1.0  # seconds
GRACE_PERIOD = 60.0  # seconds for a run to stop in order


@cache
def end_with_parent() -> None:
    """End this process soon after the one that started it; call this at the start of each task.

    If the parent is killed, joblib's workers would go on with their tasks, and then wait minutes
    for more. In processes that are not workers the function does nothing.
    """
    if multiprocessing.parent_process() is not None:
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def portable(error: Exception) -> Exception:
    """Return an error that another process can read.

    An exception class whose constructor takes several arguments can often be pickled, but not read
    back, which looks as if the process had been killed.

    Args:
        error: Error of a job.

    Returns:
        The error itself; if it cannot be read back, one with the same class name and message.

    Example:
        >>> class CustomError(Exception):
        ...     def __init__(self, code, reason):
        ...         super().__init__(f"{reason} ({code})")
        >>> portable(CustomError(3, "too cold"))
        CustomError('too cold (3)')
    """
    import cloudpickle  # as launchers do

    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:  # whatever the class does
        other: Exception = type(type(error).__name__, (RuntimeError,), {})(str(error))
        return other
    return error


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_INTERVAL)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_PERIOD)
    os._exit(128 + signal.SIGTERM)
