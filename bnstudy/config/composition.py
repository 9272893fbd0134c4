"""Resolved configurations: plain values, with everything that is left open filled in."""

from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from bnstudy.errors import UserError
from bnstudy.terms import PER_NORM_OPTIONS


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """The composed configuration as plain values, every interpolation resolved.

    The result says what is used: see `complete`.

    Raises:
        UserError: A value is missing, or that of this run's norm is.
    """
    config = plain_values(cfg)
    complete(config)
    return config


def plain_values(cfg: DictConfig) -> dict[str, Any]:
    """A configuration as plain values, every interpolation resolved.

    Raises:
        UserError: A value is missing.
    """
    try:
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} is missing: set it with {error.full_key}=...") from error


def complete(config: dict[str, Any]) -> None:
    """Put what is used in place of what is left open.

    The value of this run's norm stands for those that are given for each norm, and a network whose
    file says nothing of initialization has its own.

    Args:
        config: Changed in place.

    Raises:
        UserError: There is no value for this run's norm.
    """
    norm = config["norm"]["name"]
    for group, key in PER_NORM_OPTIONS:
        value = config[group].get(key)
        if isinstance(value, dict):
            if norm not in value:
                raise UserError(
                    f"{group}.{key}={value} says nothing for norm={norm}; add {norm}: ... to it"
                )
            config[group][key] = value[norm]
    config["model"].setdefault("initialization", "own")
