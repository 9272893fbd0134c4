"""Options of `hydra/sweeper=optuna`.

They are registered in code instead of a file in conf/, because they replace the options that
Hydra's Optuna plugin registers under the same name.
"""

from math import inf
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

OPTIONS: dict[str, Any] = {
    "_target_": "hydra_plugins.bnstudy.Search",
    "defaults": [{"sampler": "tpe"}],  # hydra/sweeper/sampler=random, cmaes, grid, ...
    # Searched values by key; KEY=interval(a,b) on the command line adds one.
    "params": {"optim.lr": "tag(log, interval(0.0001, 1.0))"},
    "n_trials": 20,  # per search, including those of earlier sweeps
    "n_jobs": 1,  # number of trials that run at the same time
    "storage": None,  # URL of the database; None: search.db in the study's folder
    "max_failure_rate": 1.0,  # a larger share of failed trials in one launch ends the search
    "custom_search_space": None,
}


def register_search() -> None:
    """Register the options of `hydra/sweeper=optuna` if Hydra's Optuna plugin is installed."""
    Plugins.instance()  # discovers the plugins, which register their options
    store = ConfigStore.instance()
    if "optuna.yaml" in store.list("hydra/sweeper"):
        store.store(group="hydra/sweeper", name="optuna", node=OPTIONS, provider="bnstudy")


def worst_value(objective: str) -> float:
    """Return the objective's value that a search assigns to a diverged run.

    Args:
        objective: Name of a loss or an accuracy, such as `validation_accuracy`.
    """
    return inf if objective.endswith("_loss") else 0.0
