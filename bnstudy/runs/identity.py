"""What a run *is*: everything that can change its numbers, and nothing that cannot."""

import hashlib
import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bnstudy.config import resolve

# Of the groups that shape the numbers, the keys that do not, but for rounding: a study can be begun
# on one machine and go on on another, and the record says where each run ran. What else a group
# holds counts, also what the user adds to it.
WITHOUT_EFFECT = {
    "data": {"root", "cache"},
    "trainer": {
        "_target_",
        "accelerator",
        "benchmark",
        "compile",
        "detect_anomaly",
        "log_every_n_steps",
        "profiler",
        "strategy",
    },
}
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
    if isinstance(devices := values["trainer.devices"], list):
        values["trainer.devices"] = len(devices)  # which ones they are does not matter
    return values | {"seed": config["seed"]}


def identity(config: dict[str, Any]) -> str:
    """SHA-256, in hexadecimal, of what can change the numbers of a run.

    Args:
        config: The resolved configuration, of `bnstudy.config.resolve`.
    """
    return hashlib.sha256(json.dumps(essence(config), sort_keys=True).encode()).hexdigest()


def _cell_name(*, _root_: DictConfig) -> str:
    """What people tell a cell by, of what its model has: none-depth4-width16-seed0."""
    model, regularizer = _root_.model, _root_.regularizer.name
    parts = [_root_.norm.name]
    parts += [regularizer] if regularizer != "none" else []
    parts += [model.name] if "name" in model else []
    parts += [f"{key}{model[key]}" for key in ("depth", "width") if key in model]
    return "-".join([*parts, f"seed{_root_.seed}"])


def _cell_folder(*, _root_: DictConfig) -> str:
    """The name of the run's folder: `cell` for people, then 8 digits of the identity."""
    config = resolve(OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key != "hydra"]))
    return f"{config['cell']}-{identity(config)[:8]}"


def register_resolvers() -> None:
    """Make `${cell_name:}`, `${cell_folder:}` and `${folder_name:PATH}` known to OmegaConf."""
    OmegaConf.register_new_resolver("cell_name", _cell_name, replace=True)
    OmegaConf.register_new_resolver("cell_folder", _cell_folder, replace=True)
    OmegaConf.register_new_resolver(
        "folder_name", lambda path: Path(path).expanduser().resolve().name, replace=True
    )
