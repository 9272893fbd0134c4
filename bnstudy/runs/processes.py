"""The processes of a distributed run."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from hydra.core.hydra_config import HydraConfig


def is_first_process() -> bool:
    """Whether this process keeps the record: the only one, or the first of a distributed run."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return all(rank == "0" for rank in ranks)


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
