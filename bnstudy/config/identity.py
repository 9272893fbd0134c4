"""Identity of a run: a hash of all options that can change its numbers by more than rounding."""

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

# Groups whose keys are part of the identity, including the keys that the user adds.
GROUPS = ("model", "norm", "data", "optim", "regularizer", "trainer", "probe")
# Keys that change the numbers at most by rounding. They are left out of the identity, so that a
# study can be continued on another machine; each run's record says where the run was trained.
IGNORED_KEYS = {
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
ADDED_KEYS: dict[str, Any] = {
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
CELL_NAME = "${cell_name:}"  # default of `cell` in conf/train.yaml


def select_identity_options(config: dict[str, Any]) -> dict[str, Any]:
    """Select the options that can change the numbers of a run, by dotted key.

    Args:
        config: Resolved configuration, from `bnstudy.config.composition.resolve`.
    """
    values = {
        f"{group}.{key}": value
        for group in GROUPS
        for key, value in config[group].items()
        if key not in IGNORED_KEYS.get(group, ())
    }
    for key, value in values.items():
        # 0 and 0.0 are equivalent, except in trainer: there, 1 is one batch and 1.0 all batches.
        if isinstance(value, float) and value.is_integer() and not key.startswith("trainer."):
            values[key] = int(value)
    values = {
        key: value
        for key, value in values.items()
        if key not in ADDED_KEYS or value != ADDED_KEYS[key]
    }
    if isinstance(devices := values.get("trainer.devices"), list):
        values["trainer.devices"] = len(devices)  # only the number of devices matters
    return values | {"seed": config["seed"]}


def compute_identity(config: dict[str, Any]) -> str:
    """Compute the SHA-256, in hexadecimal, of the options that can change a run's numbers.

    Args:
        config: Resolved configuration, from `bnstudy.config.composition.resolve`.
    """
    options = json.dumps(select_identity_options(config), sort_keys=True)
    return hashlib.sha256(options.encode()).hexdigest()


def name_cell(config: Mapping[str, Any]) -> str:
    """Compose a readable name of a cell, such as `none-depth4-width16-seed0`.

    Cells that differ in other options share this name; their folders differ in the identity.

    Args:
        config: Configuration of the cell; it need not be resolved.
    """
    model, regularizer = config["model"], config["regularizer"]["name"]
    words = [config["norm"]["name"]]
    words += [regularizer] if regularizer != "none" else []
    words += [model["name"]] if "name" in model else []
    words += [f"{key}{model[key]}" for key in ("depth", "width") if key in model]
    return "-".join([*words, f"seed{config['seed']}"])


def name_cell_folder(config: dict[str, Any]) -> str:
    """Compose the name of a cell's folder: the cell's name, then 8 digits of the identity.

    Args:
        config: Resolved configuration, from `bnstudy.config.composition.resolve`.
    """
    return f"{config['cell']}-{compute_identity(config)[:8]}"


def copy_without_hydra(cfg: DictConfig) -> DictConfig:
    """Copy a configuration without Hydra's own part."""
    copy: DictConfig = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    return copy


def _resolve_cell_name(*, _root_: DictConfig) -> str:
    return name_cell(_root_)


def _resolve_cell_folder(*, _root_: DictConfig) -> str:
    return name_cell_folder(resolve(copy_without_hydra(_root_)))


def _resolve_start_time() -> str:
    if START_TIME not in os.environ:
        os.environ[START_TIME] = time.strftime("%Y-%m-%d_%H-%M-%S")
    return os.environ[START_TIME]


def _list_keys(path: str) -> list[str]:
    module, _, name = path.rpartition(".")
    return list(getattr(import_module(module), name))


def register_resolvers() -> None:
    """Register the resolvers of the configuration files with OmegaConf.

    - `${cell_name:}`: name of the cell, from `name_cell`.
    - `${cell_folder:}`: name of the cell's folder, from `name_cell_folder`.
    - `${start_time:}`: time when the command started; all processes that it starts have the same.
    - `${folder_name:PATH}`: last component of PATH after it is made absolute.
    - `${keys_of:NAME}`: keys of a dictionary with a dotted name, such as bnstudy.metrics.METRICS.
    """
    OmegaConf.register_new_resolver("start_time", _resolve_start_time, replace=True)
    OmegaConf.register_new_resolver("cell_name", _resolve_cell_name, replace=True)
    OmegaConf.register_new_resolver("cell_folder", _resolve_cell_folder, replace=True)
    OmegaConf.register_new_resolver("keys_of", _list_keys, replace=True)
    OmegaConf.register_new_resolver(
        "folder_name", lambda path: Path(path).expanduser().resolve().name, replace=True
    )
