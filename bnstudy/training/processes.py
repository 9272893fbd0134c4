"""Processes of a distributed run: first process, stop signals, isolation of jobs."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import FrameType

from hydra.core.hydra_config import HydraConfig

from bnstudy.adapters.submitit_internals import requeue_handler

WATCH_INTERVAL = 1.0  # seconds
FAILED = "bnstudy/failed"  # key of the store that the processes share


def is_first_process() -> bool:
    """Check whether this process writes the record, as the only or the first one of a run."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return all(rank == "0" for rank in ranks)


class _StopRequested(BaseException):
    """Exception that the cluster's stop signal raises."""


@contextmanager
def stopping_on_signal() -> Iterator[None]:
    """Leave the body by an exception when the cluster stops a submitit job.

    SLURM sends a signal before a time limit or a preemption. submitit's signal handler requeues the
    job and exits immediately, in the middle of any statement. This context manager first raises an
    exception in the body, so that the body can record how it ended, and then calls that handler.
    """
    if (requeue := requeue_handler()) is None:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        raise _StopRequested

    if is_first_process():  # submitit ignores the signal in the other processes
        signal.signal(signal.SIGUSR2, stop)
    try:
        yield
    except _StopRequested:
        requeue(signal.SIGUSR2, None)
    finally:
        signal.signal(signal.SIGUSR2, requeue)


@contextmanager
def ending_with_first_process() -> Iterator[None]:
    """End the other processes of a distributed run if the first one fails or is killed in the body.

    Otherwise they would wait for it in a collective until the time-out.
    """
    from torch import distributed

    from bnstudy.adapters.torch_internals import shared_store

    if is_first_process():
        try:
            yield
        except BaseException:
            if store := shared_store():
                store.set(FAILED, "")
            raise
    else:
        stop = threading.Event()
        thread = threading.Thread(target=_watch_first_process, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
    if distributed.is_initialized():
        distributed.barrier()  # the first process may end only when no other one watches it


def _watch_first_process(stop: threading.Event) -> None:
    from bnstudy.adapters.torch_internals import shared_store

    while not stop.wait(WATCH_INTERVAL):
        try:
            failed = (store := shared_store()) is not None and store.check([FAILED])
        except RuntimeError:  # the first process, which has the store, was killed
            failed = True
        if failed and not stop.is_set():
            os._exit(1)  # the main thread cannot be interrupted in a collective


@contextmanager
def isolated_job() -> Iterator[None]:
    """Isolate a job of a multirun, so that Lightning starts processes for this job only.

    Lightning starts the other processes of a distributed run with the program and command line of
    this process. Inside the body these are `bnstudy.train` and the overrides of the job, even if a
    launcher runs the job in a program of its own. Afterwards, the connection between the processes
    is closed and environment variables are restored. Otherwise the next job would mistake itself
    for one of these processes.
    """
    import torch  # here, because processes that only skip complete cells do not need it

    program = sys.modules["__main__"]
    specification = program.__spec__
    arguments, variables = sys.argv[:], dict(os.environ)
    program.__spec__ = find_spec("bnstudy.train")
    sources = HydraConfig.get().runtime.config_sources
    sys.argv[1:] = [
        *(f"--config-dir={source.path}" for source in sources if source.provider == "command-line"),
        *HydraConfig.get().overrides.task,
        "hydra.mode=RUN",  # otherwise the other processes would start the sweep again
    ]
    try:
        yield
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        program.__spec__ = specification
        sys.argv[:] = arguments
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)
