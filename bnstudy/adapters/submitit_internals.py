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
        log: File with the output of the process; None if there is none.
    """

    def __init__(self, log: Path | None = None) -> None:
        super().__init__("the process ended without a result: killed, or out of memory")
        self.log = log


def get_max_jobs(launcher: Launcher, jobs: int) -> int:
    """Return the maximum number of jobs to pass to a launcher in one call.

    Args:
        launcher: Hydra launcher of any kind.
        jobs: Number of jobs to launch in total.
    """
    match getattr(launcher, "_EXECUTOR", None):
        case "slurm":
            return MAX_ARRAY_JOBS
        case "local":  # it starts all jobs of a call at the same time
            from joblib import cpu_count  # slow import

            threads: int = launcher.params["cpus_per_task"]  # type: ignore[attr-defined]
            processors: int = cpu_count()
            return max(1, processors // threads)
    return max(jobs, 1)


@contextmanager
def collecting_every_result() -> Iterator[None]:
    """Have submitit's launcher wait for every job, and return an error as the result of a lost job.

    By default, the launcher collects the results in order, and raises an error at the first lost
    job while others still run.
    """
    from submitit import Job
    from submitit.core.utils import UncompletedJobError

    results = Job.results

    def results_and_errors(job: "Job[JobReturn]") -> list[JobReturn]:
        try:
            job_results: list[JobReturn] = results(job)
            return job_results
        except UncompletedJobError:
            error: Exception = WorkerLost(job.paths.stderr)
        except Exception as raised:  # outside bnstudy's code, for example while unpickling
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
    """Return submitit's handler of SIGUSR2, which requeues this job; None outside a submitit job.

    The cluster sends that signal when the job runs out of time or is preempted.
    """
    if "SUBMITIT_EXECUTOR" not in os.environ:  # the system may not have that signal
        return None
    handler = signal.getsignal(signal.SIGUSR2)
    return handler if callable(handler) else None
