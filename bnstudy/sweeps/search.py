"""Searches over some axes, such as the learning rate, for each point of a grid of the others."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from optuna.trial import TrialState
from rich import box
from rich.table import Table

from bnstudy.adapters.hydra_internals import split_grid
from bnstudy.adapters.optuna_internals import make_sweeper
from bnstudy.config.composition import plain_values
from bnstudy.config.schema import validate
from bnstudy.errors import UserError
from bnstudy.runs.paths import LOG
from bnstudy.sweeps.search_config import worst_value
from bnstudy.terminal import console


@dataclass(frozen=True)
class Point:
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
    context: dict[str, Any],
) -> None:
    """Run the missing trials of each search and print the best values.

    Args:
        arguments: Overrides of the command line.
        params: Searched values by key; an argument for the same key takes precedence.
        n_trials: Number of trials of each search, including those already in the storage.
        options: Options of Hydra's Optuna sweeper.
        config: Configuration of the sweep, including Hydra's own part.
        context: Remaining arguments of a Hydra sweeper's `setup`.

    Raises:
        UserError: The options or axes do not allow a search, or trials failed.
    """
    settings = plain_values(config.sweep)
    validate({"sweep": settings})
    direction = _direction(settings["objective"])
    _check(settings, config)
    points, searched = split(arguments, params)
    if not searched:
        raise UserError("hydra/sweeper=optuna: nothing to search; try optim.lr=interval(0.001,1)")
    folder = Path(config.output_root, config.study)
    folder.mkdir(parents=True, exist_ok=True)
    options = options | {"storage": options["storage"] or f"sqlite:///{folder}/search.db"}
    optuna.logging.set_verbosity(logging.ERROR)
    failed = 0
    studies = []
    for point in points:
        name = point.name_with(searched, settings["objective"])
        study = optuna.create_study(
            study_name=name,
            storage=options["storage"],
            direction=direction,
            load_if_exists=True,
        )
        study.set_user_attr("point", point.name)
        _retry_unfinished(study)
        done = len(study.get_trials(states=(TrialState.COMPLETE,)))
        console.print(f"{point.name}: {done} of {n_trials} trials complete")
        before = len(study.get_trials(states=(TrialState.FAIL,)))
        if done < n_trials:
            sweeper = make_sweeper(name, n_trials - done, options | {"direction": direction})
            sweeper.setup(config=config, **context)
            try:
                sweeper.sweep([*point.overrides, *searched])
            except ValueError as error:
                # It is also raised if no trial was completed, which is reported below.
                if not study.get_trials(states=(TrialState.COMPLETE, TrialState.FAIL)):
                    raise UserError(f"{' '.join(searched)} cannot be searched: {error}") from error
        failed += len(study.get_trials(states=(TrialState.FAIL,))) - before
        studies.append(study)
    _show(studies, settings["objective"], list(map(_key, searched)))
    if failed:
        raise UserError(f"{failed} trials failed; see their {LOG}; repeat the command to try again")


def split(arguments: Sequence[str], params: dict[str, Any]) -> tuple[list[Point], list[str]]:
    """Split the overrides into the points of a grid and the searched axes.

    Args:
        arguments: Overrides of the command line. Choices are axes of the grid; intervals are
            searched, and so are all keys of `params`.
        params: Searched values by key.

    Returns:
        Points of the grid, and the overrides of the searched axes.
    """
    parser = OverridesParser.create()
    axes = {
        override.get_key_element(): override
        for override in parser.parse_overrides(
            [*(f"{key}={value}" for key, value in params.items()), *arguments]
        )
    }
    searched = {
        key: str(axis.input_line)
        for key, axis in axes.items()
        if axis.is_interval_sweep() or (key in params and axis.is_sweep_override())
    }
    grid = {key: axis for key, axis in axes.items() if key not in searched}
    varying = {key for key, axis in grid.items() if axis.is_sweep_override()}
    points = []
    for job in split_grid(grid.values()):
        name = " ".join(override for override in job if _key(override) in varying)
        points.append(Point(name or "search", tuple(job)))
    return points, list(searched.values())


def _direction(objective: str) -> Literal["minimize", "maximize"]:
    return "minimize" if objective.endswith("_loss") else "maximize"


def _check(settings: dict[str, Any], config: DictConfig) -> None:
    if settings["dry_run"] or settings["redo"]:
        raise UserError("sweep.dry_run and sweep.redo are for a grid, not for hydra/sweeper=optuna")
    objective: str = settings["objective"]
    if objective.startswith("validation_") and not config.data.validation:
        raise UserError(
            f"sweep.objective={objective} needs training samples that are held out: add "
            "data.validation=0.1"
        )


def _retry_unfinished(study: optuna.Study) -> None:
    """Queue trials that were started but never finished, so that their cells resume first."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)


def _show(studies: Sequence[optuna.Study], objective: str, keys: Sequence[str]) -> None:
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


def _format(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _key(override: str) -> str:
    return override.partition("=")[0]
