"""Worker processes, in which the cells of a sweep run."""

import multiprocessing
import os
import signal
import threading
import time
from functools import cache

POLL_INTERVAL = 1.0  # seconds
GRACE_PERIOD = 60.0  # seconds for a run to end after SIGTERM


@cache
def end_with_parent() -> None:
    """End this worker process soon after its parent process ends.

    Call this at the start of each task. Without it, joblib's workers continue their tasks after the
    parent is killed, and then wait minutes for more. In processes that are not workers the function
    does nothing.
    """
    if multiprocessing.parent_process() is not None:
        threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()


def make_picklable(error: Exception) -> Exception:
    """Return an error that can be sent to another process.

    An exception class whose constructor takes several arguments can often be pickled, but not
    unpickled. To the other process, that looks as if this one had been killed.

    Args:
        error: Error of a job.

    Returns:
        The error itself; if it cannot be unpickled, one with the same class name and message.

    Example:
        >>> class CustomError(Exception):
        ...     def __init__(self, code, reason):
        ...         super().__init__(f"{reason} ({code})")
        >>> make_picklable(CustomError(3, "too cold"))
        CustomError('too cold (3)')
    """
    import cloudpickle  # launchers use it too

    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:  # the class may raise any error
        substitute: Exception = type(type(error).__name__, (RuntimeError,), {})(str(error))
        return substitute
    return error


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_INTERVAL)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_PERIOD)
    os._exit(128 + signal.SIGTERM)
