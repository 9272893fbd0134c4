"""Preparation of command lines for Hydra, and conversion of configurations to plain values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from bnstudy.config import CONFIG_FOLDER
from bnstudy.errors import UserError
from bnstudy.files import replacing
from bnstudy.redaction import redact_values
from bnstudy.terms import PER_NORM_OPTIONS


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Convert a composed configuration to plain values, and complete them with `complete`.

    Args:
        cfg: Composed configuration, without Hydra's own part.

    Raises:
        UserError: A value is missing, or an option has no value for this run's norm.
    """
    config = plain_values(cfg)
    complete(config)
    return config


def plain_values(cfg: DictConfig) -> dict[str, Any]:
    """Convert a configuration to plain values, with all interpolations resolved.

    Raises:
        UserError: A value is missing.
    """
    try:
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} is missing: set it with {error.full_key}=...") from error


# Keys of a run that have no default elsewhere, so that they cannot be deleted from it.
REQUIRED_KEYS = (
    *("seed", "study", "cell", "output_root", "checkpoint_epochs"),
    *("model", "model._target_", "norm", "norm.name", "regularizer", "regularizer.name"),
    *("optim", "optim.name", "data", "data._target_", "logger", "logger._target_"),
    *("trainer", "trainer._target_", "trainer.max_epochs", "metrics", "metrics.names", "callbacks"),
    *("probe", "probe.train", "probe.test"),
    *("sweep", "sweep.redo", "sweep.dry_run", "sweep.objective"),
)


def is_group(key: str) -> bool:
    """Check whether a key is a config group of which one option is selected."""
    return key != "callbacks" and (CONFIG_FOLDER / key).is_dir()


def check_overrides(words: Sequence[str]) -> None:
    """Verify that no word sets a group to a list or deletes a required key.

    Hydra's own messages on these two mistakes do not help. Only the group `callbacks` takes a list.

    Args:
        words: Words of the command line.

    Raises:
        UserError: A word sets another group to a list, or deletes one of `REQUIRED_KEYS`.

    Examples:
        >>> check_overrides(["norm=[batchnorm,none]"])
        Traceback (most recent call last):
        bnstudy.errors.UserError: norm=[batchnorm,none]: expected one option
        For a run with each, write norm=batchnorm,none, and -m at the end of the command
        >>> check_overrides(["~norm"])
        Traceback (most recent call last):
        bnstudy.errors.UserError: ~norm: norm is required
        Set it with norm=..., or leave out ~norm to keep its default
    """
    for word in words:
        deleted = word.removeprefix("~").partition("=")[0]
        if word.startswith("~") and deleted in REQUIRED_KEYS:
            raise UserError(
                f"{word}: {deleted} is required\n"
                f"Set it with {deleted}=..., or leave out {word} to keep its default"
            )
        group, _, value = word.lstrip("+").partition("=")
        if value.startswith("[") and is_group(group):
            raise UserError(
                f"{word}: expected one option\nFor a run with each, write "
                f"{group}={value.strip('[]')}, and -m at the end of the command"
            )


def select_own_classes(words: Sequence[str]) -> list[str]:
    """Select the option `own` of each group for which the command line sets only `_target_`.

    The keys of the group's default option belong to another class, so they would be wrong. The keys
    that the command line sets are added to the empty group with `++`.

    Args:
        words: Words of the command line.

    Example:
        >>> select_own_classes(["model._target_=mine.Net", "model.blocks=2,3", "-m"])
        ['model=own', '++model._target_=mine.Net', '++model.blocks=2,3', '-m']
    """
    for group in ("model", "data"):
        keys = {word.lstrip("+").partition("=")[0] for word in words}
        if f"{group}._target_" in keys and group not in keys:
            added = (f"++{word}" if word.startswith(f"{group}.") else word for word in words)
            words = [f"{group}=own", *added]
    return list(words)


# libyaml's loader takes a tenth of the time, where PyYAML was built with it.
FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def redact_files(folder: Path) -> None:
    """Remove credentials from the YAML files in a folder, such as Hydra's .hydra folder."""
    for path in folder.glob("*.yaml"):
        content = yaml.load(path.read_text(), FAST_LOADER)
        if (redacted := redact_values(content)) != content:
            with replacing(path) as temporary:
                OmegaConf.save(OmegaConf.create(redacted), temporary)


def complete(config: dict[str, Any]) -> None:
    """Change and add values, so that the configuration contains what the run uses.

    An option with one value per norm gets the value of this run's norm. A network without an
    `initialization` gets `own`. Names that Hydra reads as integers become text.

    Args:
        config: Plain values; changed in place.

    Raises:
        UserError: An option has no value for this run's norm.
    """
    norm = config["norm"]["name"]
    for group, key in PER_NORM_OPTIONS:
        value = config[group].get(key)
        if isinstance(value, dict):
            if norm not in value:
                raise UserError(
                    f"{group}.{key}={value} has no value for norm={norm}; add {norm}: ... to it"
                )
            config[group][key] = value[norm]
    config["model"].setdefault("initialization", "own")
    for key in ("study", "cell", "output_root"):
        if type(config.get(key)) is int:  # True is an int as well
            config[key] = str(config[key])
