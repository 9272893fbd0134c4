"""Searches over some axes, such as the learning rate, for each point of a grid of the others."""

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.utils import get_method
from omegaconf import DictConfig
from optuna.trial import FrozenTrial, Trial, TrialState
from rich import box
from rich.table import Table

from bnstudy.adapters.hydra_internals import get_result, split_grid
from bnstudy.adapters.optuna_internals import Space, make_sampler, make_space
from bnstudy.config.composition import plain_values
from bnstudy.config.schema import validate
from bnstudy.config.targets import TARGET
from bnstudy.errors import UserError
from bnstudy.runs.lease import STALE_AFTER, find_occupied, hold_lease
from bnstudy.runs.paths import LOG
from bnstudy.sweeps.grid import get_key, parse_axes
from bnstudy.sweeps.search_config import worst_value
from bnstudy.terminal import console
from bnstudy.terms import format_count, is_provided

TAKEN = (TrialState.COMPLETE, TrialState.RUNNING)  # states of trials that are not repeated


@dataclass(frozen=True)
class GridPoint:
    """One point of the grid, where one search takes place.

    Attributes:
        name: Name shown to the user: the varying axes with their values.
        overrides: Overrides of the search's jobs, without the searched axes.
    """

    name: str
    overrides: tuple[str, ...]

    def name_with(self, searched: Sequence[str], objective: str) -> str:
        """Return the search's name in the storage, unique to its overrides, axes and objective."""
        whole = "\n".join([*sorted(self.overrides), *sorted(searched), objective])
        return f"{self.name} {hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def search(
    arguments: Sequence[str],
    params: dict[str, Any],
    n_trials: int,
    options: dict[str, Any],
    config: DictConfig,
    launcher: Launcher,
) -> None:
    """Run the missing trials of each search and print the best values.

    Several processes may search in one study folder at the same time; they share the trials.

    Args:
        arguments: Overrides of the command line.
        params: Values by key, from hydra.sweeper.params; keys with several values are searched. An
            argument for the same key takes precedence.
        n_trials: Number of complete trials that each search should reach, including those already
            in the storage.
        options: Options of Hydra's Optuna sweeper.
        config: Configuration of the sweep, including Hydra's own part.
        launcher: Hydra launcher of any kind.

    Raises:
        UserError: The options or axes do not allow a search, or trials failed.
    """
    settings = plain_values(config.sweep)
    validate({"sweep": settings})
    objective = settings["objective"]
    _require_searchable(settings, config)
    points, searched = split_axes(arguments, params)
    if not searched:
        raise UserError("hydra/sweeper=optuna: nothing to search; try optim.lr=interval(0.001,1)")
    try:
        space = make_space(searched)
    except ValueError as error:
        raise UserError(f"{' '.join(searched)} cannot be searched: {error}") from error
    names = {"study": str(config.study), "output_root": config.output_root}
    validate(names)
    folder = Path(names["output_root"], names["study"])
    storage = options["storage"] or f"sqlite:///{folder}/search.db"
    sampler, sampler_grid = make_sampler(options["sampler"], space)
    if sampler_grid is not None:
        n_trials = min(n_trials, len(sampler_grid))
    optuna.logging.set_verbosity(logging.ERROR)
    num_failed = 0
    studies = []
    with _open_claims(folder / ".searches") as claims:
        for point in points:
            with claims.lock:  # Optuna cannot create a database in two processes at the same time
                study = optuna.create_study(
                    study_name=point.name_with(searched, objective),
                    storage=storage,
                    sampler=sampler,
                    direction="minimize" if objective.endswith("_loss") else "maximize",
                    load_if_exists=True,
                )
                study.set_user_attr("point", point.name)
                claims.retry_unfinished(study)
            num_complete = _count(study, TrialState.COMPLETE)
            console.print(f"{point.name}: {num_complete} of {n_trials} trials complete")
            point_search = _Search(
                study, point, space, sampler_grid, n_trials, claims, config, launcher
            )
            num_failed += point_search.run(options)
            studies.append(study)
    _print_best(studies, objective, list(space))
    if num_failed:
        raise UserError(
            f"{format_count(num_failed, 'trial')} failed; see their {LOG}; repeat the command to "
            "try again"
        )


@dataclass(frozen=True)
class _Search:
    """Search at one point of the grid.

    Attributes:
        study: Optuna's study, which keeps the trials.
        point: Point of the grid.
        space: Distributions of the searched values, by key.
        sampler_grid: All combinations of Optuna's grid sampler; None for other samplers.
        n_trials: Number of complete trials to reach, including those already in the storage.
        claims: Claims of trials by the processes that search here.
        config: Configuration of the sweep.
        launcher: Hydra launcher of any kind.
    """

    study: optuna.Study
    point: GridPoint
    space: Space
    sampler_grid: list[dict[str, Any]] | None
    n_trials: int
    claims: "_TrialClaims"
    config: DictConfig
    launcher: Launcher

    def run(self, options: dict[str, Any]) -> int:
        """Run the missing trials, `n_jobs` at a time.

        Args:
            options: Options of Hydra's Optuna sweeper.

        Returns:
            Number of trials that failed. This call does not repeat them.
        """
        num_missing = self.n_trials - _count(self.study, TrialState.COMPLETE)
        launched = failed = 0
        while trials := self.claims.claim_trials(
            self, min(options["n_jobs"], num_missing - launched)
        ):
            for trial in trials:
                values = " ".join(f"{key}={_format(value)}" for key, value in trial.params.items())
                console.print(f"Trial {trial.number}: {values}")
            jobs = [self._overrides(trial, options["custom_search_space"]) for trial in trials]
            job_returns: Sequence[JobReturn] = self.launcher.launch(jobs, initial_job_idx=launched)
            errors = []
            for trial, job_return in zip(trials, job_returns, strict=True):
                outcome = get_result(job_return)
                if isinstance(outcome, Exception):
                    self.study.tell(trial, state=TrialState.FAIL)
                    errors.append(outcome)
                else:
                    self.study.tell(trial, float(outcome))
                    console.print(f"Trial {trial.number}: {outcome}")
            launched += len(trials)
            failed += len(errors)
            if len(errors) > options["max_failure_rate"] * len(trials):
                raise errors[0]
        return failed

    def _overrides(self, trial: Trial, custom_search_space: str | None) -> list[str]:
        """Return the overrides of a trial's job."""
        if custom_search_space:
            get_method(custom_search_space)(self.config, trial)
        values = [
            f"{key}={'null' if value is None else value}" for key, value in trial.params.items()
        ]
        return [*self.point.overrides, *values]


class _TrialClaims:
    """Claims of trials by processes that search in the same study folder.

    Args:
        folder: Folder of this process; the process holds its lease. The folders of the other
            processes are in the same parent folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = FileLock(folder.parent / "lock")

    def claim_trials(self, search: _Search, limit: int) -> list[Trial]:
        """Claim at most `limit` missing trials, so that no other process runs them."""
        study = search.study
        with self.lock:
            if not self._has_all_claims(study):
                # Otherwise a seeded sampler would repeat the values of other processes.
                study.sampler.reseed_rng()
            missing = search.n_trials - _count(study, *TAKEN)
            trials = []
            for _ in range(max(0, min(missing, limit))):
                if search.sampler_grid and not _count(study, TrialState.WAITING):
                    study.enqueue_trial(_choose_combination(study, search.sampler_grid))
                trials.append(study.ask(search.space))
                study.set_user_attr(_claim_attribute(trials[-1].number), self.folder.name)
        return trials

    def _has_all_claims(self, study: optuna.Study) -> bool:
        """Check whether this process has claimed every trial of an Optuna study."""
        claims = study.user_attrs
        return all(
            claims.get(_claim_attribute(trial.number)) == self.folder.name
            for trial in study.get_trials(deepcopy=False)
        )

    def retry_unfinished(self, study: optuna.Study) -> None:
        """Queue trials that a dead process did not finish, so that their cells resume first."""
        claims = study.user_attrs
        running = study.get_trials(states=(TrialState.RUNNING,))
        names = [claims.get(_claim_attribute(trial.number), "nobody") for trial in running]
        alive = find_occupied({self.folder.with_name(name) for name in names}, STALE_AFTER)
        for trial, name in zip(running, names, strict=True):
            if self.folder.with_name(name) not in alive:
                study.tell(trial.number, state=TrialState.FAIL)
                if trial.params:
                    study.enqueue_trial(trial.params)


@contextmanager
def _open_claims(folder: Path) -> Iterator[_TrialClaims]:
    """Yield the claims of this process, and hold a lease that shows the others that it is alive.

    Args:
        folder: Folder for all processes that search in one study folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    process_folder = Path(tempfile.mkdtemp(prefix="process-", dir=folder))
    try:
        with hold_lease(process_folder):
            yield _TrialClaims(process_folder)
    finally:
        shutil.rmtree(process_folder, ignore_errors=True)


def split_axes(
    arguments: Sequence[str], params: dict[str, Any]
) -> tuple[list[GridPoint], list[str]]:
    """Split the overrides into the points of a grid and the searched axes.

    Args:
        arguments: Overrides of the command line. Choices are axes of the grid; intervals are
            searched, and so are the keys of `params` that have several values.
        params: Values by key, from hydra.sweeper.params.

    Returns:
        Points of the grid, and the overrides of the searched axes.
    """
    axes = parse_axes([*(f"{key}={value}" for key, value in params.items()), *arguments])
    searched = {
        key: str(axis.input_line)
        for key, axis in axes.items()
        if axis.is_interval_sweep() or (key in params and axis.is_sweep_override())
    }
    grid = {key: axis for key, axis in axes.items() if key not in searched}
    varying = {key for key, axis in grid.items() if axis.is_sweep_override()}
    points = []
    for job in split_grid(grid.values()):
        name = " ".join(override for override in job if get_key(override) in varying)
        points.append(GridPoint(name or "search", tuple(job)))
    return points, list(searched.values())


def _require_searchable(settings: dict[str, Any], config: DictConfig) -> None:
    """Verify that the options of `sweep` and the data allow a search.

    Raises:
        UserError: They do not.
    """
    if settings["dry_run"] or settings["redo"]:
        raise UserError("sweep.dry_run and sweep.redo are for a grid, not for hydra/sweeper=optuna")
    objective: str = settings["objective"]
    if objective.startswith("validation_") and not _may_have_validation(config.data):
        raise UserError(
            f"sweep.objective={objective} needs training samples that are held out: add "
            "data.validation=0.1"
        )


def _may_have_validation(data: DictConfig) -> bool:
    """Check whether there may be a validation split; the user's own data may always have one."""
    return not is_provided(data[TARGET]) or bool(data.validation)


def _print_best(studies: Sequence[optuna.Study], objective: str, keys: Sequence[str]) -> None:
    """Print a table with the best trial of each search.

    Args:
        studies: Optuna's studies, one for each search.
        objective: Name of the optimized number.
        keys: Keys of the searched values.
    """
    table = Table("search", *keys, objective, "trials", box=box.SIMPLE_HEAD)
    for study in studies:
        complete = study.get_trials(states=(TrialState.COMPLETE,))
        # If all trials have the worst value, for example because all diverged, none is the best.
        if any(trial.value != worst_value(objective) for trial in complete):
            best = study.best_trial
            values = [*(_format(best.params[key]) for key in keys), f"{best.value:.4f}"]
        else:
            values = ["–" for _ in (*keys, objective)]
        table.add_row(study.user_attrs["point"], *values, str(len(complete)))
    console.print(table)


def _count(study: optuna.Study, *states: TrialState) -> int:
    return len(study.get_trials(deepcopy=False, states=states))


def _choose_combination(
    study: optuna.Study, sampler_grid: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Choose the combination of a grid sampler to try next.

    Returns:
        Combination with the fewest trials, among those without a complete or running trial; there
        must be one.
    """
    trials = study.get_trials(deepcopy=False)

    def count(combination: dict[str, Any], counted: Sequence[FrozenTrial]) -> int:
        return sum(combination.items() <= trial.params.items() for trial in counted)

    taken = [trial for trial in trials if trial.state in TAKEN]
    missing = [combination for combination in sampler_grid if not count(combination, taken)]
    return min(missing, key=lambda combination: count(combination, trials))


def _claim_attribute(number: int) -> str:
    return f"process of trial {number}"  # attribute of the Optuna study


def _format(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
