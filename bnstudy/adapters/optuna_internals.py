"""Private parts of Hydra's Optuna sweeper. Checked with hydra-optuna-sweeper 1.3.0."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any

import optuna
from hydra_plugins.hydra_optuna_sweeper._impl import (
    OptunaSweeperImpl,
    create_params_from_overrides,
)
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

Space = dict[str, BaseDistribution]


def make_space(overrides: Sequence[str]) -> Space:
    """Translate overrides such as `optim.lr=interval(0.01,1)` to Optuna's distributions by key.

    Raises:
        ValueError: An interval is not a distribution, such as a logarithmic one from 0.
    """
    space: Space = create_params_from_overrides(list(overrides))[0]
    return space


def make_sampler(option: Any, space: Space) -> tuple[optuna.samplers.BaseSampler, float]:
    """Make the sampler of `hydra/sweeper/sampler`, and the largest number of trials for it."""
    if not isinstance(option, partial):
        return option, float("inf")
    choices: Any = partial(OptunaSweeperImpl._to_grid_sampler_choices, None)  # type: ignore[arg-type]
    grid = {key: choices(distribution) for key, distribution in space.items()}
    return option(grid), prod(map(len, grid.values()))


def tell(study: optuna.Study, trial: optuna.trial.Trial, value: float) -> None:
    """Complete a trial."""
    with _not_stopping():
        study.tell(trial, value)


def tell_failure(study: optuna.Study, number: int) -> None:
    """Mark a trial as failed."""
    with _not_stopping():
        study.tell(number, state=TrialState.FAIL)


@contextmanager
def _not_stopping() -> Iterator[None]:
    """Ignore that the sampler of a grid wants to stop `Study.optimize` after its last trial."""
    try:
        yield
    except RuntimeError as error:
        if "`Study.stop`" not in str(error):
            raise
