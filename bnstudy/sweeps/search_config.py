"""The options of `hydra/sweeper=optuna`.

They are not in a file of conf/: Hydra's Optuna plugin has an option of that name, whose place they
take.
"""

from math import inf
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

OPTIONS: dict[str, Any] = {
    "_target_": "hydra_plugins.bnstudy.Search",
    "defaults": [{"sampler": "tpe"}],  # hydra/sweeper/sampler=random, cmaes, grid, ...
    # What is searched; on the command line KEY=interval(a,b) adds to it.
    "params": {"optim.lr": "tag(log, interval(0.0001, 1.0))"},
    "n_trials": 20,  # of each search, all in all
    "n_jobs": 1,  # trials at a time
    "storage": None,  # of every trial of every search: search.db in the study's folder
    "max_failure_rate": 1.0,  # a trial that raises does not stop the others
    "search_space": None,
    "custom_search_space": None,
}


def register_search() -> None:
    """Make `hydra/sweeper=optuna` our search, where its plugin is installed."""
    Plugins.instance()  # finds the plugins, and with them their options
    store = ConfigStore.instance()
    if "optuna.yaml" in store.list("hydra/sweeper"):
        store.store(group="hydra/sweeper", name="optuna", node=OPTIONS, provider="bnstudy")


def worst_value(objective: str) -> float:
    """The value that a search gives to a run that diverged.

    Args:
        objective: A loss, or an accuracy.
    """
    return inf if objective.endswith("_loss") else 0.0
