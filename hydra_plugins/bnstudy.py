"""Hydra plugins of bnstudy: sweepers `grid` and `optuna`, launchers `devices` and `slurm`.

Hydra discovers plugins only in this namespace and imports this file at every start. The
implementation is therefore in `bnstudy.sweeps` and imported only when it is needed.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_submitit_launcher import submitit_launcher
from omegaconf import DictConfig


class Slurm(submitit_launcher.SlurmLauncher):
    """Launcher of SLURM jobs, through submitit.

    Args:
        detach: Whether `bnstudy.sweeps.multirun` submits the jobs without waiting for them.
        options: Options of Hydra's submitit launcher.
    """

    def __init__(self, detach: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.detach = detach


class Devices(Launcher):
    """Launcher that runs cells side by side on one machine; each process uses one device.

    Args:
        devices: Numbers among the GPUs that this process may use, such as [0,1]; None: all.
        per_device: Processes that share a device.
    """

    def __init__(self, devices: list[int | str] | None = None, per_device: int = 1) -> None:
        self.devices, self.per_device = devices, per_device

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra before `launch`."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run jobs and wait for all of them."""
        from bnstudy.sweeps.devices import launch

        return launch(self, job_overrides, initial_job_idx, self.devices, self.per_device)


class Grid(Sweeper):
    """Sweeper that launches the cells of a grid without a complete record.

    Args:
        params: Axes that the experiment defines, by key; the command line takes precedence.
    """

    launcher: Launcher

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        self.params = params or {}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra before `sweep`."""
        self.config, self.hydra_context = config, hydra_context
        HydraConfig.instance().set_config(config)  # the launcher's options can depend on it
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the missing cells.

        Args:
            arguments: Overrides of the command line.

        Raises:
            bnstudy.errors.UserError: Cells failed.
        """
        from bnstudy.config.composition import plain_values
        from bnstudy.config.schema import validate
        from bnstudy.sweeps.grid import compose_cells
        from bnstudy.sweeps.multirun import sweep

        self._require_own_folders()
        settings = plain_values(self.config.sweep)
        validate({"sweep": settings})
        loader = self.hydra_context.config_loader
        grid = compose_cells(
            [*(f"{key}={value}" for key, value in self.params.items()), *arguments],
            compose=lambda overrides: loader.load_sweep_config(self.config, list(overrides)),
            is_group=lambda key: bool(loader.get_group_options(key)),
        )
        sweep(list(grid), self.launcher, settings["redo"], settings["dry_run"])

    def _require_own_folders(self) -> None:
        """Raise UserError if an override sets the folders of cells."""
        from bnstudy.errors import UserError

        for override in self.config.hydra.overrides.hydra:
            if override.startswith(("hydra.sweep.dir=", "hydra.sweep.subdir=")):
                raise UserError(
                    f"{override} cannot be set: a cell is found again by its folder's name; choose "
                    "where studies lie with output_root=FOLDER study=NAME"
                )


class Search(Grid):
    """Sweeper that searches some axes with Optuna, for each combination of the other axes.

    Args:
        params: Searched values by key; the command line takes precedence.
        n_trials: Number of trials of each search, including those of earlier sweeps.
        options: Options of Hydra's Optuna sweeper.
    """

    def __init__(self, params: dict[str, Any] | None, n_trials: int, **options: Any) -> None:
        super().__init__(params)
        self.n_trials, self.options = n_trials, options

    def sweep(self, arguments: list[str]) -> None:
        """Run the missing trials of each search and print the best values.

        Args:
            arguments: Overrides of the command line.

        Raises:
            bnstudy.errors.UserError: Trials failed.
        """
        from bnstudy.errors import UserError
        from bnstudy.sweeps.detached import is_detached
        from bnstudy.sweeps.search import search

        self._require_own_folders()
        if is_detached(self.launcher):
            raise UserError(
                "hydra.launcher.detach=true is not possible with hydra/sweeper=optuna, whose next "
                "trial depends on the results of earlier ones\n"
                "Leave it out, and keep the command running, for example in tmux"
            )
        search(arguments, self.params, self.n_trials, self.options, self.config, self.launcher)
