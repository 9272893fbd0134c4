"""The processes of a distributed run."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import FrameType

from hydra.core.hydra_config import HydraConfig

from bnstudy.adapters.submitit_internals import requeue_handler


def is_first_process() -> bool:
    """Whether this process keeps the record: the only one, or the first of a distributed run."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return all(rank == "0" for rank in ranks)


class _ToldToStop(BaseException):
    """By the cluster."""


@contextmanager
def stopping_in_order() -> Iterator[None]:
    """Stop what goes on in the body, in order, when the cluster tells a submitit job to.

    That it is out of time, or has to make room, comes as a signal, at which submitit queues the job
    again from within the signal's handler, and that can end in the midst of anything. Here the body
    is left by an exception first, so that it can record how it ended.
    """
    if (queue_again := requeue_handler()) is None:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        raise _ToldToStop

    if is_first_process():  # the others submitit lets go on, until the job ends
        signal.signal(signal.SIGUSR2, stop)
    try:
        yield
    except _ToldToStop:
        queue_again(signal.SIGUSR2, None)
    finally:
        signal.signal(signal.SIGUSR2, queue_again)


@contextmanager
def job_of_its_own() -> Iterator[None]:
    """Let Lightning start a distributed run's other processes for this job of a multirun alone.

    It starts them with this process's program and command line, so those become the job's own: a
    launcher may have sent it to a program of its own. And Lightning leaves behind their connection,
    and variables by which the next job would take itself for one of them.
    """
    import torch  # here: a process that trains nothing does without

    program = sys.modules["__main__"]
    specification = program.__spec__
    arguments, variables = sys.argv[:], dict(os.environ)
    program.__spec__ = find_spec("bnstudy.train")
    sys.argv[1:] = [*HydraConfig.get().overrides.task, "hydra.mode=RUN"]  # not a grid's once more
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
