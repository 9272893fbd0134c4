"""Options that measure only during training, compared with those of finished runs."""

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
    had, kept = record.description.callbacks, record.description.config.get("callbacks", {})
    without = [name for name in callbacks if name not in had]
    other = [
        f"callbacks.{name}.{key}={kept[name][key]} instead of {value}"
        for name, options in callbacks.items()
        if name in had and name in kept
        for key, value in options.items()
        if key != "memory_budget" and kept[name].get(key, value) != value
    ]
    had_metrics = record.description.config["metrics"]
    other += [
        f"metrics.{key}={had_metrics.get(key, default)} instead of {metrics[key]}"
        for key, default in ONLY_IN_TRAINING.items()
        if metrics[key] not in (default, had_metrics.get(key, default))
    ]
    parts = [f"without callbacks={','.join(without)}"] if without else []
    parts += [f"with {', '.join(other)}"] if other else []
    return " and ".join(parts)


def print_missing_options(description: str) -> None:
    """Print what one run lacks, if anything.

    Args:
        description: Result of `describe_missing_options`.
    """
    if description:
        _print("  this run was", description, "it")


def print_missing_options_of_cells(descriptions: Iterable[str]) -> None:
    """Print what complete cells lack, once for all cells that lack the same.

    Args:
        descriptions: Results of `describe_missing_options`.
    """
    for description, number in Counter(filter(None, descriptions)).items():
        were, them = ("was", "it") if number == 1 else ("were", "them")
        _print(f"{format_count(number, 'complete cell')} {were}", description, them)


def _print(subject: str, description: str, them: str) -> None:
    console.print(
        f"{subject} trained {description}; these measure only during training: choose another "
        f"study=NAME to train {them} with the requested options",
        style="yellow",
    )
