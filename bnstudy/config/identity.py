"""What a run *is*: everything that can change its numbers, and nothing that cannot."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bnstudy.config.composition import resolve

# Of the groups that shape the numbers, the keys that do not, but for rounding: a study can be begun
# on one machine and go on on another, and the record says where each run ran. What else a group
# holds counts, also what the user adds to it.
WITHOUT_EFFECT = {
    "data": {"root", "cache"},
    "trainer": {
        "accelerator",
        "benchmark",
        "compile",
        "detect_anomaly",
        "log_every_n_steps",
        "profiler",
        "strategy",
    },
}
# Keys that records of some version do not have, with the value that says what that version did:
# with this value a key is left out, so that the runs keep their identity.
ADDED: dict[str, Any] = {
    "model.initialization": "he",
    "trainer._target_": "lightning.pytorch.Trainer",
}
CELL_NAME = "${cell_name:}"  # how a configuration asks for it
GROUPS = ("model", "norm", "data", "optim", "regularizer", "trainer", "probe")


def essence(config: dict[str, Any]) -> dict[str, Any]:
    """What can change the numbers of a run, by dotted key.

    Args:
        config: The resolved configuration, of `bnstudy.config.resolve`.
    """
    values = {
        f"{group}.{key}": value
        for group in GROUPS
        for key, value in config[group].items()
        if key not in WITHOUT_EFFECT.get(group, ())
    }
    for key, value in values.items():
        # 0 and 0.0 are the same, but to Lightning 1 batch and 1.0 of all of them are not.
        if isinstance(value, float) and value.is_integer() and not key.startswith("trainer."):
            values[key] = int(value)
    values = {key: one for key, one in values.items() if key not in ADDED or one != ADDED[key]}
    if isinstance(devices := values.get("trainer.devices"), list):
        values["trainer.devices"] = len(devices)  # which ones they are does not matter
    return values | {"seed": config["seed"]}


def identity(config: dict[str, Any]) -> str:
    """SHA-256, in hexadecimal, of what can change the numbers of a run.

    Args:
        config: The resolved configuration, of `bnstudy.config.resolve`.
    """
    return hashlib.sha256(json.dumps(essence(config), sort_keys=True).encode()).hexdigest()


def cell_name(config: Mapping[str, Any]) -> str:
    """What people tell a cell by, of what its model has: none-depth4-width16-seed0.

    Args:
        config: The configuration, of which it reads a few values.
    """
    model, regularizer = config["model"], config["regularizer"]["name"]
    parts = [config["norm"]["name"]]
    parts += [regularizer] if regularizer != "none" else []
    parts += [model["name"]] if "name" in model else []
    parts += [f"{key}{model[key]}" for key in ("depth", "width") if key in model]
    return "-".join([*parts, f"seed{config['seed']}"])


def folder_name(config: dict[str, Any]) -> str:
    """The name of the run's folder: `cell` for people, then 8 digits of the identity.

    Args:
        config: The resolved configuration, of `bnstudy.config.resolve`.
    """
    return f"{config['cell']}-{identity(config)[:8]}"


def without_hydra(cfg: DictConfig) -> DictConfig:
    """The configuration of a run, without Hydra's own."""
    own: DictConfig = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    return own


def _resolve_cell_name(*, _root_: DictConfig) -> str:
    return cell_name(_root_)


def _resolve_cell_folder(*, _root_: DictConfig) -> str:
    return folder_name(resolve(without_hydra(_root_)))


def register_resolvers() -> None:
    """Make `${cell_name:}`, `${cell_folder:}` and `${folder_name:PATH}` known to OmegaConf."""
    OmegaConf.register_new_resolver("cell_name", _resolve_cell_name, replace=True)
    OmegaConf.register_new_resolver("cell_folder", _resolve_cell_folder, replace=True)
    OmegaConf.register_new_resolver(
        "folder_name", lambda path: Path(path).expanduser().resolve().name, replace=True
    )
