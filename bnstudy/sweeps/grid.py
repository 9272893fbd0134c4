"""Cells of the grid that a multirun's arguments span."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property, reduce
from operator import getitem
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, OverrideType, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from bnstudy.adapters.hydra_internals import split_grid
from bnstudy.config.composition import complete, plain_values
from bnstudy.config.identity import CELL_NAME, copy_without_hydra, name_cell, name_cell_folder
from bnstudy.errors import UserError

Compose = Callable[[Sequence[str]], DictConfig]
NodePath = tuple[str, ...]  # names of a value's groups and of the value itself

# Interpolations with the same value in all jobs that share a composed configuration. They are not
# computed again, because that takes longer than all else that is done for a cell.
CONSTANT = re.compile(r"\$\{(oc\.env|hydra:runtime\.choices)\b[^${}]*\}")


@dataclass(frozen=True)
class Cell:
    """One cell of a grid: a configuration to run.

    Attributes:
        overrides: Hydra overrides of the cell's job.
        config: Resolved configuration of the cell.
    """

    overrides: tuple[str, ...]
    config: dict[str, Any]

    @cached_property
    def folder(self) -> Path:
        """Folder of the cell's record; it may not exist yet."""
        return Path(self.config["output_root"], self.config["study"], name_cell_folder(self.config))


def compose_cells(
    arguments: Sequence[str], compose: Compose, is_group: Callable[[str], bool]
) -> Iterator[Cell]:
    """Yield the cells of the grid that a multirun's arguments span.

    Hydra takes about 50 ms to compose a configuration. Jobs that differ only in plain values, such
    as the seed, therefore share one composed configuration where possible. For each of these jobs,
    its plain values are set in the configuration, and the interpolated values are computed again.

    Args:
        arguments: Overrides, as on the command line; the last one for a key takes precedence.
        compose: Function that composes the configuration of a job, including Hydra's own part.
        is_group: Function that returns whether a key is a configuration group.

    Yields:
        Cells with their resolved configurations.
    """
    axes = parse_axes(arguments)
    value_keys = {
        key for key, axis in axes.items() if _sweeps_plain_values(axis) and not is_group(key)
    }
    composed: dict[tuple[str, ...], _Composed] = {}
    for job in split_grid(axes.values()):
        other_overrides = tuple(override for override in job if get_key(override) not in value_keys)
        if other_overrides not in composed:
            composed[other_overrides] = _Composed(compose(job))
        base = composed[other_overrides]
        value_overrides = [override for override in job if get_key(override) in value_keys]
        if all(base.can_set(get_key(override)) for override in value_overrides):
            config = base.replace_values(value_overrides)
        else:
            config = _Composed(compose(job)).replace_values([])
        yield Cell(tuple(job), config)


def parse_axes(arguments: Sequence[str]) -> dict[str, Override]:
    """Parse overrides by key; the last one for a key takes precedence.

    Raises:
        UserError: An axis is a list with a function in it.
    """
    overrides = OverridesParser.create().parse_overrides(list(arguments))
    for override in overrides:
        value = override.value()
        items = value.list if isinstance(value, ChoiceSweep) else ()
        if any(isinstance(item, Sweep | Glob) for item in items):
            key = override.get_key_element()
            raise UserError(
                f"{override.input_line}: an axis is a list of values, or one function\n"
                f"Write all values, separated by commas, or one function after {key}="
            )
    return {override.get_key_element(): override for override in overrides}


def get_key(override: str) -> str:
    """Return the key of an override.

    Example:
        >>> get_key("model.depth=2")
        'model.depth'
    """
    return override.partition("=")[0]


def defer_to_jobs(words: Sequence[str]) -> list[str]:
    """Turn single-valued overrides of keys in a swept group into axes with one value.

    Hydra first composes a configuration without the axes. In it, the group has its default option,
    which may lack the key.

    Args:
        words: Words of a multirun's command line.

    Example:
        >>> defer_to_jobs(["norm=groupnorm,weightstandardization", "norm.num_groups=2"])
        ['norm=groupnorm,weightstandardization', 'norm.num_groups=choice(2)']
    """
    overrides = {}
    for word in words:
        with suppress(HydraException):  # an option such as -m; Hydra explains mistakes itself
            overrides[word] = OverridesParser.create().parse_override(word)
    swept = {
        override.get_key_element()
        for override in overrides.values()
        if override.is_sweep_override()
    }

    def defer(word: str) -> str:
        override = overrides.get(word)
        if override is None or override.is_sweep_override():
            return word
        key, _, value = word.partition("=")
        is_in_swept_group = any(key.startswith(f"{group}.") for group in swept)
        return f"{key}=choice({value})" if is_in_swept_group and value else word

    return [defer(word) for word in words]


class _Composed:
    """Composed configuration in which plain values can be replaced without Hydra."""

    def __init__(self, cfg: DictConfig) -> None:
        self.config = copy_without_hydra(cfg)
        self.hydra: Any = OmegaConf.masked_copy(cfg, "hydra")
        with self._hydra_config():
            self.values = plain_values(self.config)
        raw: dict[str, Any] = OmegaConf.to_container(self.config, resolve=False)  # type: ignore[assignment]
        self.has_default_name = raw["cell"] == CELL_NAME
        if self.has_default_name:  # the name depends on the values that are set
            del raw["cell"]
        self.interpolations = dict(_interpolations(raw))
        OmegaConf.set_readonly(self.config, False)
        OmegaConf.set_struct(self.config, False)

    def can_set(self, key: str) -> bool:
        """Return whether an override of the key can be applied without Hydra."""
        *groups, name = key.split(".")
        node: Any = self.values
        for group in groups:
            node = node.get(group) if isinstance(node, dict) else None
        # `self.hydra` is that of one job. Values that read other parts of it than the choices,
        # which all jobs share, must be composed for each job.
        uses_hydra = any("hydra:" in text for text in self.interpolations.values())
        return isinstance(node, dict) and name in node and not uses_hydra

    def replace_values(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Return a copy of the configuration with some values replaced.

        Args:
            overrides: Overrides of keys for which `can_set` is true. Each call must replace the
                same keys, because interpolations also see the values that earlier calls have set.
        """
        values = {tuple(get_key(override).split(".")): _value(override) for override in overrides}
        if self.interpolations:
            values |= self._interpolate(values)
        # Copy only what changes: with thousands of cells, a deep copy would dominate the run time.
        config = {
            key: dict(option) if isinstance(option, dict) else option
            for key, option in self.values.items()
        }
        for (*groups, name), value in values.items():
            node = config
            for group in groups:
                node[group] = dict(node[group])
                node = node[group]
            node[name] = value
        complete(config)
        if self.has_default_name:
            config["cell"] = name_cell(config)
        return config

    def _interpolate(self, values: Mapping[NodePath, Any]) -> dict[NodePath, Any]:
        """Return the interpolated values, by path, after setting other values.

        All are computed again, because an interpolation need not name the values that it depends
        on: `${cell_name:}` depends on the seed, and `${optim}` on the learning rate.
        """
        for path, value in values.items():
            OmegaConf.update(self.config, ".".join(path), value, merge=False)
        interpolated: dict[NodePath, Any] = {}
        with self._hydra_config():
            for path in self.interpolations:
                value = reduce(getitem, path, self.config)
                is_node = OmegaConf.is_config(value)
                interpolated[path] = (
                    OmegaConf.to_container(value, resolve=True) if is_node else value
                )
        return interpolated

    @contextmanager
    def _hydra_config(self) -> Iterator[None]:
        """Let interpolations find Hydra's part of this configuration."""
        before = HydraConfig.instance().cfg
        HydraConfig.instance().cfg = self.hydra
        try:
            yield
        finally:
            HydraConfig.instance().cfg = before


def _sweeps_plain_values(override: Override) -> bool:
    # Dictionaries are excluded, as Hydra merges them instead of replacing them.
    return (
        override.is_discrete_sweep()
        and override.type is OverrideType.CHANGE
        and override.package is None
        and "{" not in str(override.input_line)
    )


@cache
def _value(override: str) -> Any:
    return OverridesParser.create().parse_override(override).value()


def _interpolations(node: Any, path: NodePath = ()) -> Iterator[tuple[NodePath, str]]:
    """Yield the path and text of each interpolated value that is not constant.

    A list counts as one value. Constant interpolations are removed from the texts.
    """
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _interpolations(value, (*path, name))
    elif "${" in (text := CONSTANT.sub("", str(node))):
        yield path, text
