"""Private parts of Hydra's Optuna sweeper. Checked with hydra-optuna-sweeper 1.3.0."""

import logging
from typing import Any

from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl


def make_sweeper(study_name: str, n_trials: int, options: dict[str, Any]) -> OptunaSweeperImpl:
    """Make a sweeper that goes on with one Optuna study.

    It warns of failed trials in the log of the last cell, which may be gone; the search prints
    them itself.

    Args:
        study_name: Name of the study in the storage.
        n_trials: Number of trials to run.
        options: Other options of the sweeper.
    """
    logging.getLogger("hydra_plugins.hydra_optuna_sweeper").setLevel(logging.CRITICAL)
    return OptunaSweeperImpl(params=None, study_name=study_name, n_trials=n_trials, **options)
