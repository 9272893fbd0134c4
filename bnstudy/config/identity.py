"""Identity of a run: a hash of exactly those settings that can change its numbers."""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bnstudy.config.composition import resolve

# Keys of the groups in GROUPS that change the numbers at most by rounding. They are left out of the
# identity, so that a study can be continued on another machine; the record contains where each run
# ran. All other keys of these groups count, including those that the user adds.
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
# Keys that were added in later versions, with the value that corresponds to the earlier behavior.
# A key with this value is left out, so that earlier runs keep their identity.
ADDED: dict[str, Any] = {
    "data.fill": "mean",
    "data.label_noise": 0,
    "data.samples_per_class": None,
    "model.initialization": "he",
    "model.normalizer_free": False,
    "optim.adaptive_clipping": None,
    "optim.decay_all": True,
    "optim.gamma": 0.1,
    "optim.label_smoothing": 0,
    "optim.milestones": [],
    "optim.nesterov": False,
    "optim.warmup_epochs": 0,
    "trainer._target_": "lightning.pytorch.Trainer",
}
START_TIME = "BNSTUDY_START_TIME"  # environment variable, which other processes inherit
CELL_NAME = "${cell_name:}"  # interpolation in configuration files
GROUPS = ("model", "norm", "data", "optim", "regularizer", "trainer", "probe")


def essence(config: dict[str, Any]) -> dict[str, Any]:
    """Select the settings that can change the numbers of a run, by dotted key.

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
        # 0 and 0.0 are equivalent, except in trainer: there, 1 is one batch and 1.0 all batches.
        if isinstance(value, float) and value.is_integer() and not key.startswith("trainer."):
            values[key] = int(value)
    values = {
        key: value for key, value in values.items() if key not in ADDED or value != ADDED[key]
    }
    if isinstance(devices := values.get("trainer.devices"), list):
        values["trainer.devices"] = len(devices)  # only the number of devices matters
    return values | {"seed": config["seed"]}


def identity(config: dict[str, Any]) -> str:
    """Compute the SHA-256, in hexadecimal, of the settings that can change a run's numbers.

    Args:
        config: The resolved configuration, of `bnstudy.config.resolve`.
    """
    return hashlib.sha256(json.dumps(essence(config), sort_keys=True).encode()).hexdigest()


def cell_name(config: Mapping[str, Any]) -> str:
    """Compose a readable name of a cell, such as `none-depth4-width16-seed0`.

    Args:
        config: Configuration of the cell; it need not be resolved.
    """
    model, regularizer = config["model"], config["regularizer"]["name"]
    parts = [config["norm"]["name"]]
    parts += [regularizer] if regularizer != "none" else []
    parts += [model["name"]] if "name" in model else []
    parts += [f"{key}{model[key]}" for key in ("depth", "width") if key in model]
    return "-".join([*parts, f"seed{config['seed']}"])


def folder_name(config: dict[str, Any]) -> str:
    """Return the name of the run's folder: the cell's name, then 8 digits of the identity.

    Args:
        config: The resolved configuration, of `bnstudy.config.resolve`.
    """
    return f"{config['cell']}-{identity(config)[:8]}"


def without_hydra(cfg: DictConfig) -> DictConfig:
    """Copy a configuration without Hydra's own part."""
    kept: DictConfig = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    return kept


def _resolve_cell_name(*, _root_: DictConfig) -> str:
    return cell_name(_root_)


def _resolve_cell_folder(*, _root_: DictConfig) -> str:
    return folder_name(resolve(without_hydra(_root_)))


def _resolve_start_time() -> str:
    if START_TIME not in os.environ:
        os.environ[START_TIME] = time.strftime("%Y-%m-%d_%H-%M-%S")
    return os.environ[START_TIME]


def _keys_of(path: str) -> list[str]:
    module, _, name = path.rpartition(".")
    return list(getattr(import_module(module), name))


def register_resolvers() -> None:
    """Register the resolvers of the configuration files with OmegaConf.

    `${cell_name:}` and `${cell_folder:}` name a cell, `${start_time:}` is the time when the command
    started, the same in all processes that it starts, `${folder_name:PATH}` is the last part of an
    absolute path, and `${keys_of:NAME}` lists the keys of a dictionary by its dotted name, such as
    bnstudy.metrics.METRICS.
    """
    OmegaConf.register_new_resolver("start_time", _resolve_start_time, replace=True)
    OmegaConf.register_new_resolver("cell_name", _resolve_cell_name, replace=True)
    OmegaConf.register_new_resolver("cell_folder", _resolve_cell_folder, replace=True)
    OmegaConf.register_new_resolver("keys_of", _keys_of, replace=True)
    OmegaConf.register_new_resolver(
        "folder_name", lambda path: Path(path).expanduser().resolve().name, replace=True
    )
