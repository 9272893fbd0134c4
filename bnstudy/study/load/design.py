"""Design of a study: the keys of the configuration in which its runs differ."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bnstudy.terms import PER_NORM_OPTIONS

TREATMENT_PREFIXES = ("norm.", "regularizer.")  # of the keys that form a treatment
COLUMN_OF_KEY = {"model.depth": "depth", "model.width": "width", "optim.lr": "lr"}


@dataclass(frozen=True)
class Design:
    """Keys of the configuration in which the runs of a study differ.

    Attributes:
        options: Swept options of a norm or regularizer; each combination of their values is a
            treatment.
        per_treatment: Keys of `PER_NORM_OPTIONS` that vary over the study but have one value per
            norm and regularizer, such as a learning rate.
        grid: Other keys except the seed; treatments are compared at each point of this grid.
    """

    options: tuple[str, ...]
    per_treatment: tuple[str, ...]
    grid: tuple[str, ...]

    @classmethod
    def from_runs(cls, treatments: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> "Design":
        """Find the design of some runs.

        Args:
            treatments: Norm and regularizer of each run.
            configs: Configuration of each run, as `select_identity_options` returns it.
        """
        configs_by_treatment = defaultdict(list)
        for treatment, config in zip(treatments, configs, strict=True):
            configs_by_treatment[treatment].append(config)
        swept = set[str]().union(*map(_find_varying_keys, configs_by_treatment.values()))
        varying = _find_varying_keys(configs)
        per_treatment = varying & {f"{group}.{key}" for group, key in PER_NORM_OPTIONS} - swept
        options = {key for key in swept if key.startswith(TREATMENT_PREFIXES)}
        grid = (
            {key for key in varying if not key.startswith(TREATMENT_PREFIXES)}
            - per_treatment
            - {"seed"}
        )
        return cls(tuple(sorted(options)), tuple(sorted(per_treatment)), tuple(sorted(grid)))


def _find_varying_keys(configs: Sequence[Mapping[str, Any]]) -> set[str]:
    """Find the keys that do not have the same value in all configurations."""
    values: dict[str, set[str]] = defaultdict(set)
    for config in configs:
        for key, value in config.items():
            values[key].add(str(value))
    counts = Counter(key for config in configs for key in config)
    return {key for key in values if len(values[key]) > 1 or counts[key] < len(configs)}


def format_options(config: Mapping[str, Any], keys: Iterable[str]) -> str:
    """Format the values of those keys that a configuration has, such as momentum=0.1 eps=0.001."""
    return " ".join(f"{key.rpartition('.')[2]}={config[key]}" for key in keys if key in config)
