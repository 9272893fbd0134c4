"""Options of a configuration that have no effect in combination with its other options.

A combination that cannot have an effect in any run is an error. If the effect depends on the length
of the training, or on an option that a study may vary, there is only a warning. An experiment that
`debug=fast` shortens should still run, and so should the cell of a sweep over `data.shift=0,4` that
has no border to fill.
"""

from collections.abc import Iterator
from typing import Any

from bnstudy.config.targets import TARGET
from bnstudy.errors import UserError
from bnstudy.terms import is_provided

DEFAULT_GAMMA = 0.1  # value of optim.gamma in conf/

# Options of metrics that act only during training, and their values without effect.
ONLY_IN_TRAINING: dict[str, Any] = {"at_steps": [], "folds": 0}

# Options that act only through another one: key, value without effect, and the other key.
DEPENDENT = (
    ("data.fill", "mean", "data.shift"),
    ("optim.decay_all", True, "optim.weight_decay"),
    ("optim.decoupled_weight_decay", False, "optim.weight_decay"),
    ("optim.dampening", 0, "optim.momentum"),
    ("trainer.gradient_clip_algorithm", None, "trainer.gradient_clip_val"),
)


def refuse_without_effect(config: dict[str, Any]) -> None:
    """Raise an error if an option cannot have an effect in any run.

    Args:
        config: Configuration of a run, or some of its groups, with allowed keys and values.

    Raises:
        UserError: There is such an option.
    """
    metrics = config.get("metrics", {})
    if metrics.get("folds") and metrics.get("names") == []:
        raise UserError(
            f"metrics.folds={metrics['folds']} has no effect with metrics.names=[]: no metric is "
            "measured on parts of the probe set\n"
            "Choose metrics, such as metrics=fast, or set metrics.folds=0"
        )


def find_without_effect(config: dict[str, Any], steps_per_epoch: int) -> Iterator[str]:
    """Describe options of a run that will have no effect, or only a part of it.

    Args:
        config: Resolved configuration.
        steps_per_epoch: Optimizer steps in an epoch.

    Yields:
        Sentences for the user, one for each option.
    """
    has_own_data = not is_provided(config["data"].get(TARGET))
    for key, neutral, other in DEPENDENT:
        if key.startswith("data.") and has_own_data:
            continue
        group, _, name = other.partition(".")
        if name not in config[group] and other != "trainer.gradient_clip_val":
            continue  # the default of the library applies, which need not be 0
        value, other_value = _get_option(config, key), _get_option(config, other)
        if value not in (None, neutral) and not other_value:
            yield (
                f"{key}={_format_value(value)} has no effect with "
                f"{other}={_format_value(other_value)}"
            )
    schedule, gamma = config["optim"].get("schedule"), config["optim"].get("gamma")
    if schedule != "step" and gamma not in (None, DEFAULT_GAMMA):
        yield (
            f"optim.gamma={gamma} has no effect with optim.schedule={_format_value(schedule)}: "
            "only step multiplies the learning rate by it"
        )
    yield from _find_beyond_training(config, steps_per_epoch)


def _find_beyond_training(config: dict[str, Any], steps_per_epoch: int) -> Iterator[str]:
    """Describe options that name epochs or steps that training does not have."""
    optim, metrics, epochs = config["optim"], config["metrics"], config["trainer"]["max_epochs"]
    length = f"with trainer.max_epochs={epochs}"
    warmup = optim.get("warmup_epochs", 0)
    if warmup >= epochs:
        yield (
            f"optim.warmup_epochs={warmup:g} {length}: the learning rate rises until the last "
            "step, and no epoch is trained with the whole optim.lr"
        )
    milestones = optim.get("milestones", [])
    if late := [epoch for epoch in milestones if epoch >= epochs]:
        yield f"optim.milestones={late} {length}: the learning rate does not fall there"
    if early := [epoch for epoch in milestones if epoch < warmup < epochs]:
        yield (
            f"optim.milestones={early} with optim.warmup_epochs={warmup:g}: the learning rate "
            "falls only when the warm-up ends, and then at once"
        )
    kept = config.get("checkpoint_epochs", [])
    if kept != "all" and (late := [epoch for epoch in kept if epoch > epochs]):
        yield f"checkpoint_epochs={late} {length}: there are no such epochs"
    if metrics.get("at_steps", []) != "log2":
        yield from _find_unmeasured_steps(metrics, epochs, steps_per_epoch)


def _find_unmeasured_steps(
    metrics: dict[str, Any], epochs: int, steps_per_epoch: int
) -> Iterator[str]:
    """Describe the steps of `metrics.at_steps` after which nothing is measured."""
    steps, last = sorted(metrics.get("at_steps", [])), epochs * steps_per_epoch
    if late := [step for step in steps if step > last]:
        yield (
            f"metrics.at_steps={late}: not measured, because the last of the {epochs} x "
            f"{steps_per_epoch} steps of this run is {last}"
        )
    every = metrics.get("every_n_epochs", 1)
    # The last step of an epoch is measured as that epoch, if at all.
    left_out = [
        step
        for step in steps
        if step < last and step % steps_per_epoch == 0 and step // steps_per_epoch % every
    ]
    if left_out:
        yield (
            f"metrics.at_steps={left_out}: not measured, because each of these steps ends an epoch "
            f"that metrics.every_n_epochs={every} leaves out"
        )


def _get_option(config: dict[str, Any], key: str) -> Any:
    group, _, name = key.partition(".")
    return config[group].get(name)


def _format_value(value: Any) -> str:
    """Format a value as on the command line."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
