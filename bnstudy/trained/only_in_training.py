"""Requested options that measure only during training, compared with those of finished runs."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from bnstudy.config.without_effect import ONLY_IN_TRAINING
from bnstudy.runs.record import Record
from bnstudy.terminal import console
from bnstudy.terms import format_count


def describe_missing_options(
    record: Record, metrics: Mapping[str, Any], callbacks: Mapping[str, Any] | None = None
) -> str:
    """Describe requested options that measure only during training and that a run lacks.

    Args:
        record: Record of the run.
        metrics: Requested configuration group `metrics`.
        callbacks: Requested configuration group `callbacks`.

    Returns:
        Description such as "without callbacks=hessian and with metrics.folds=0 instead of 4"; empty
        if the run lacks nothing.
    """
    callbacks = callbacks or {}
    config = record.description.config
    active, recorded = record.description.callbacks, config.get("callbacks", {})
    without = [name for name in callbacks if name not in active]
    different = [
        f"callbacks.{name}.{key}={recorded[name][key]} instead of {value}"
        for name, options in callbacks.items()
        if name in active and name in recorded
        for key, value in options.items()
        if key != "memory_budget" and recorded[name].get(key, value) != value
    ]
    recorded_metrics = config["metrics"]
    different += [
        f"metrics.{key}={recorded_metrics.get(key, default)} instead of {metrics[key]}"
        for key, default in ONLY_IN_TRAINING.items()
        if metrics[key] not in (default, recorded_metrics.get(key, default))
    ]
    phrases = [f"without callbacks={','.join(without)}"] if without else []
    phrases += [f"with {', '.join(different)}"] if different else []
    return " and ".join(phrases)


def print_missing_options(description: str) -> None:
    """Print the options that one run lacks, if any.

    Args:
        description: Result of `describe_missing_options`.
    """
    if description:
        _print_advice("  this run was", description, "it")


def print_missing_options_of_cells(descriptions: Iterable[str]) -> None:
    """Print the options that complete cells lack, once for all cells that lack the same ones.

    Args:
        descriptions: Results of `describe_missing_options`.
    """
    for description, number in Counter(filter(None, descriptions)).items():
        verb, pronoun = ("was", "it") if number == 1 else ("were", "them")
        _print_advice(f"{format_count(number, 'complete cell')} {verb}", description, pronoun)


def _print_advice(subject: str, description: str, pronoun: str) -> None:
    console.print(
        f"{subject} trained {description}; these measure only during training: choose another "
        f"study=NAME to train {pronoun} with the requested options",
        style="yellow",
    )
