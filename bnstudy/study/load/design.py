"""Design of a study: in which keys of the configuration its runs differ."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bnstudy.terms import PER_NORM_OPTIONS

TREATMENT = ("norm.", "regularizer.")  # keys of what is compared


NAMES = {"model.depth": "depth", "model.width": "width", "optim.lr": "lr"}  # of columns


@dataclass(frozen=True)
class Design:
    """Keys of the configuration in which the runs of a study differ.

    Attributes:
        options: Options of a normalization or a regularizer that were swept: each value is a
            treatment.
        own: Keys of which each treatment has one value, such as a learning rate.
        grid: Other keys but the seed: treatments are compared at each point.
    """

    options: tuple[str, ...]
    own: tuple[str, ...]
    grid: tuple[str, ...]

    @classmethod
    def of(cls, treatments: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> "Design":
        """Find the design of some runs.

        Args:
            treatments: Normalization of each, with its regularizer.
            configs: Configuration of each, of `bnstudy.config.identity.essence`.
        """
        of_treatment = defaultdict(list)
        for treatment, config in zip(treatments, configs, strict=True):
            of_treatment[treatment].append(config)
        swept = set[str]().union(*(_varying(some) for some in of_treatment.values()))
        varying = _varying(configs)
        own = varying & {f"{group}.{key}" for group, key in PER_NORM_OPTIONS} - swept
        options = {key for key in swept if key.startswith(TREATMENT)}
        grid = {key for key in varying if not key.startswith(TREATMENT)} - own - {"seed"}
        return cls(tuple(sorted(options)), tuple(sorted(own)), tuple(sorted(grid)))


def _varying(configs: Sequence[Mapping[str, Any]]) -> set[str]:
    """The keys that do not have the same value everywhere."""
    values: dict[str, set[str]] = defaultdict(set)
    for config in configs:
        for key, value in config.items():
            values[key].add(str(value))
    everywhere = Counter(key for config in configs for key in config)
    return {
        key for key, found in values.items() if len(found) > 1 or everywhere[key] < len(configs)
    }


def format_options(config: Mapping[str, Any], keys: Iterable[str]) -> str:
    """Write options in words, such as momentum=0.1 eps=0.001, without those that are absent."""
    return " ".join(f"{key.rpartition('.')[2]}={config[key]}" for key in keys if key in config)
