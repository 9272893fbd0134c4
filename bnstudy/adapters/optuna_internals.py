"""Private parts of Hydra's Optuna sweeper. Checked with hydra-optuna-sweeper 1.3.0."""

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import optuna
from hydra_plugins.hydra_optuna_sweeper._impl import (
    OptunaSweeperImpl,
    create_params_from_overrides,
)
from optuna.distributions import BaseDistribution

Space = dict[str, BaseDistribution]


def make_space(overrides: Sequence[str]) -> Space:
    """Translate overrides such as `optim.lr=interval(0.01,1)` to Optuna's distributions by key.

    Raises:
        ValueError: Optuna does not allow an interval, such as a logarithmic one that begins at 0.
    """
    space: Space = create_params_from_overrides(list(overrides))[0]
    return space


def make_sampler(
    option: Any, space: Space
) -> tuple[optuna.samplers.BaseSampler, list[dict[str, Any]] | None]:
    """Make the sampler of `hydra/sweeper/sampler`.

    Args:
        option: Instantiated option: a sampler, or a `partial` for `hydra/sweeper/sampler=grid`.
        space: Distributions of the searched values, by key.

    Returns:
        Sampler, and all combinations of the values for a grid; None for other samplers. The search
        queues the combinations itself, because Optuna's `GridSampler` does not repeat one whose
        trial failed.
    """
    if not isinstance(option, partial):
        return option, None
    choices: Any = partial(OptunaSweeperImpl._to_grid_sampler_choices, None)  # type: ignore[arg-type]
    axes = (dict.fromkeys(choices(distribution)) for distribution in space.values())
    return optuna.samplers.RandomSampler(), [
        dict(zip(space, combination, strict=True)) for combination in product(*axes)
    ]
