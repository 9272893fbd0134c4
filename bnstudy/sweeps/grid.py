"""The cells of a multirun's grid."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf

from bnstudy.adapters.hydra_internals import split_grid
from bnstudy.config.composition import complete, plain_values
from bnstudy.config.identity import CELL_NAME, cell_name, folder_name, without_hydra

Compose = Callable[[Sequence[str]], DictConfig]


@dataclass(frozen=True)
class Cell:
    """One point of a grid.

    Attributes:
        overrides: Of its job.
        config: Its resolved configuration.
    """

    overrides: tuple[str, ...]
    config: dict[str, Any]

    @cached_property
    def folder(self) -> Path:
        """Where its record is, or will be."""
        return Path(self.config["output_root"], self.config["study"], folder_name(self.config))


def cells(
    arguments: Sequence[str], compose: Compose, is_group: Callable[[str], bool]
) -> Iterator[Cell]:
    """The cells of the grid that a multirun's arguments span, each with its configuration.

    To compose a configuration takes Hydra 50 ms. It is done once for every choice of groups; an
    axis that is a plain value, as a seed, is then set in the result, unless something else in the
    configuration follows from it.

    Args:
        arguments: Overrides, as on the command line; of several for one key the last counts.
        compose: Composes the configuration of a job, with Hydra's own part.
        is_group: Whether a key is a configuration group.
    """
    axes = {
        override.get_key_element(): override
        for override in OverridesParser.create().parse_overrides(list(arguments))
    }
    values = {key for key, axis in axes.items() if _is_plain_value(axis) and not is_group(key)}
    composed: dict[tuple[str, ...], _Composed] = {}
    for job in split_grid(axes.values()):
        choice = tuple(override for override in job if _key(override) not in values)
        if choice not in composed:
            composed[choice] = _Composed(compose(job))
        base = composed[choice]
        own = [override for override in job if _key(override) in values]
        if all(base.can_set(_key(override)) for override in own):
            config = base.having(own)
        else:
            config = _Composed(compose(job)).having([])
        yield Cell(tuple(job), config)


class _Composed:
    """A composed configuration, to be had with other values."""

    def __init__(self, cfg: DictConfig) -> None:
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(cfg)  # for ${hydra:...}
        try:
            own = without_hydra(cfg)
            self.values = plain_values(own)
        finally:
            HydraConfig.instance().cfg = before
        self.names_itself = OmegaConf.to_container(own, resolve=False)["cell"] == CELL_NAME  # type: ignore[index,call-overload]
        if self.names_itself:  # and follows the values that are set
            del own["cell"]
        self.interpolations = [text for text in _texts(own) if "${" in text]

    def can_set(self, key: str) -> bool:
        """Whether to set a value is all that the override of that key does."""
        *groups, name = key.split(".")
        node: Any = self.values
        for group in groups:
            node = node.get(group) if isinstance(node, dict) else None
        mentioned = any(name in text for text in self.interpolations)
        return isinstance(node, dict) and name in node and not mentioned

    def having(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The configuration with other values.

        Args:
            overrides: Of keys that can be set.
        """
        # Only what is changed is copied: of thousands of cells that takes most of the time.
        config = {
            key: dict(one) if isinstance(one, dict) else one for key, one in self.values.items()
        }
        for override in overrides:
            *groups, name = _key(override).split(".")
            node = config
            for group in groups:
                node[group] = dict(node[group])
                node = node[group]
            node[name] = _value(override)
        complete(config)
        if self.names_itself:
            config["cell"] = cell_name(config)
        return config


def _is_plain_value(override: Override) -> bool:
    return (
        override.is_discrete_sweep()
        and override.type is OverrideType.CHANGE
        and override.package is None
        and "{" not in str(override.input_line)  # Hydra merges what is a dictionary
    )


def _key(override: str) -> str:
    return override.partition("=")[0]


@cache
def _value(override: str) -> Any:
    return OverridesParser.create().parse_override(override).value()


def _texts(cfg: DictConfig) -> list[str]:
    """Every value of a configuration that is a text, as it was written."""
    found: list[str] = []
    nodes: list[Any] = [OmegaConf.to_container(cfg, resolve=False)]
    while nodes:
        match nodes.pop():
            case dict() as node:
                nodes.extend(node.values())
            case list() as node:
                nodes.extend(node)
            case str() as text:
                found.append(text)
    return found
