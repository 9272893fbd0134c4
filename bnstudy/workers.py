"""Worker processes of joblib."""

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


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_INTERVAL)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_PERIOD)
    os._exit(128 + signal.SIGTERM)
