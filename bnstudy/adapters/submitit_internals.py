"""Private parts of submitit and its Hydra launcher.

Checked with submitit 1.5.4 and hydra-submitit-launcher 1.2.0.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

from bnstudy.adapters.hydra_internals import failed_job

MAX_ARRAY_JOBS = 1000  # a cluster's MaxArraySize is 1001 unless it was set

SignalHandler = Callable[[int, FrameType | None], Any]


class WorkerLost(Exception):
    """The process of a job ended without a result.

    Attributes:
        log: File with what it wrote; None where there is none.
    """

    def __init__(self, log: Path | None = None) -> None:
        super().__init__("the process ended without a word: killed, or out of memory")
        self.log = log


def max_jobs(launcher: Launcher, jobs: int) -> int:
    """Return how many of some jobs a launcher of any kind can be given at once."""
    match getattr(launcher, "_EXECUTOR", None):
        case "slurm":
            return MAX_ARRAY_JOBS
        case "local":  # starts all that it is given
            from joblib import cpu_count  # here: a sweep begins without it

            threads: int = launcher.params["cpus_per_task"]  # type: ignore[attr-defined]
            processors: int = cpu_count()
            return max(1, processors // threads)
    return max(jobs, 1)


@contextmanager
def every_result() -> Iterator[None]:
    """Have submitit's launcher wait for every job.

    It collects the jobs' results in order, and raises at the first one that was lost while others
    still run; a lost job's result is here its error.
    """
    try:
        from submitit import Job
        from submitit.core.utils import UncompletedJobError
    except ImportError:  # no launcher of submitit's then
        yield
        return
    results = Job.results

    def results_and_errors(job: "Job[JobReturn]") -> list[JobReturn]:
        try:
            job_results: list[JobReturn] = results(job)
            return job_results
        except UncompletedJobError:
            error: Exception = WorkerLost(job.paths.stderr)
        except Exception as raised:  # before or after our code: it could not be unpickled, say
            error = raised
        return [failed_job(error)]

    with patch.object(Job, "results", results_and_errors):
        yield


@contextmanager
def without_waiting() -> Iterator[None]:
    """Have submitit's launcher return the id of each job, such as 12_0, once it is submitted."""
    from submitit import Job

    with patch.object(Job, "results", lambda job: [job.job_id]):
        yield


def requeue_handler() -> SignalHandler | None:
    """Return the handler of SIGUSR2 by which submitit queues this job again; None outside of one.

    The cluster sends that signal when the job is out of time or has to make room.
    """
    if "SUBMITIT_EXECUTOR" not in os.environ:  # possibly a system without that signal
        return None
    handler = signal.getsignal(signal.SIGUSR2)
    return handler if callable(handler) else None
