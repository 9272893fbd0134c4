"""Private parts of Hydra. Checked with hydra-core 1.3.8."""

from collections.abc import Iterable, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


def split_grid(axes: Iterable[Override]) -> list[list[str]]:
    """List the overrides of each job of a grid, as Hydra's own sweeper does."""
    jobs: list[list[str]] = BasicSweeper.split_arguments(list(axes), None)[0]
    return jobs


def is_basic(launcher: Launcher) -> bool:
    """Return whether a launcher runs jobs in this process, one after the other."""
    # Imported here: when Hydra first looks for its plugins, it loads their modules again. A class
    # that was imported before would then differ from the launcher's class.
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    return isinstance(launcher, BasicLauncher)


def get_result(job: JobReturn) -> Any:
    """Return what a job returned, or the exception that it raised.

    `JobReturn.return_value` would raise the exception.
    """
    return job._return_value


def failed_job(error: Exception) -> JobReturn:
    """Make the result of a job that raised an error."""
    return JobReturn(status=JobStatus.FAILED, _return_value=error)


def execute_job(
    number: int,
    overrides: Sequence[str],
    context: HydraContext,
    config: DictConfig,
    task: TaskFunction,
    state: dict[Any, Any],
) -> JobReturn:
    """Run a job in a process that Hydra has not set up, in the way of Hydra's joblib launcher.

    Args:
        number: Number of the job.
        overrides: Overrides of the job.
        context: Context of the launcher.
        config: Configuration of the sweep.
        task: Function that runs the job.
        state: State of Hydra's singletons in the process that has composed the configuration.
    """
    from hydra_plugins.hydra_joblib_launcher import _core

    result: JobReturn = _core.execute_job(number, overrides, context, config, task, state)
    return result
