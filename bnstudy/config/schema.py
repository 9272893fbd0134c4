"""Values that each configuration key may have."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnstudy.errors import UserError
from bnstudy.terms import SITES

SCHEDULES = ("constant", "cosine")

INITIALIZATIONS = ("torch", "he", "xavier", "orthogonal", "own")


@dataclass(frozen=True)
class Rule:
    """What a configuration key may hold."""

    allowed: str
    accepts: Callable[[Any], bool]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _integer(minimum: int) -> Rule:
    return Rule(
        f"an integer of at least {minimum}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= minimum,
    )


def _optional(rule: Rule) -> Rule:
    return Rule(f"{rule.allowed}, or null", lambda value: value is None or rule.accepts(value))


def _choice(*options: str) -> Rule:
    return Rule(", ".join(options), lambda value: value in options)


_folder_name = Rule(
    "a folder's name, without / and not beginning with a dot",
    lambda value: (
        isinstance(value, str) and Path(value).name == value and not value.startswith(".")
    ),
)

_boolean = Rule("true or false", lambda value: isinstance(value, bool))

_not_negative = Rule("a number of at least 0", lambda value: _number(value) and value >= 0)

_positive = Rule("a number above 0", lambda value: _number(value) and value > 0)

_share = Rule("a number above 0, at most 1", lambda value: _number(value) and 0 < value <= 1)

_fraction = Rule("a number from 0 to below 1", lambda value: _number(value) and 0 <= value < 1)

RULES: dict[str, Rule] = {
    "seed": _integer(0),
    "sweep.redo": _optional(_choice("failed", "diverged", "all")),
    "sweep.dry_run": _boolean,
    "sweep.objective": _choice(
        "validation_accuracy", "validation_loss", "train_accuracy", "train_loss"
    ),
    "study": _folder_name,
    "cell": _folder_name,
    "model.depth": _integer(1),
    "model.width": _positive,
    "model.initialization": _choice(*INITIALIZATIONS),
    "model.residual_init": _choice("he", "zero", "fixup"),
    "norm.eps": _positive,
    "norm.momentum": _share,  # at 0 the running statistics would stay 0 and 1
    "norm.num_groups": _integer(1),
    "norm.ghost_size": _integer(2),
    "norm.position": _choice("pre", "post"),
    "regularizer.strength": _not_negative,
    "regularizer.layers": Rule(
        "a list of layers' names or patterns, such as [block04]",
        lambda value: isinstance(value, list) and value != [] and all(map(_is_text, value)),
    ),
    "regularizer.target": Rule(
        "a share from 0 to 1, or a norm's name",
        lambda value: _is_text(value) or (_number(value) and 0 <= value <= 1),
    ),
    "optim.lr": _positive,
    "optim.momentum": _fraction,
    "optim.weight_decay": _not_negative,
    "optim.betas": Rule(
        "two numbers from 0 to below 1, such as [0.9,0.999]",
        lambda value: (
            isinstance(value, list) and len(value) == 2 and all(map(_fraction.accepts, value))
        ),
    ),
    "optim.schedule": _choice(*SCHEDULES),
    "optim.trainable": _choice("all", "norm"),
    "data.batch_size": _integer(1),
    "data.flip": _boolean,
    "data.shift": _integer(0),
    "data.validation": _fraction,
    "data.image_size": _optional(_integer(1)),
    "data.classes": _integer(2),
    "data.groups_per_class": _integer(1),
    "data.samples_per_group": Rule(
        "an integer of at least 1 for train and one for test",
        lambda value: isinstance(value, dict) and all(map(_integer(1).accepts, value.values())),
    ),
    "data.noise": Rule(
        "a finite number of at least 0", lambda value: _number(value) and 0 <= value < float("inf")
    ),
    "data.channels": _integer(1),
    "trainer.max_epochs": _integer(1),
    "trainer.devices": Rule(  # auto and -1 are another number, and other numbers, elsewhere
        "a number of devices of at least 1, or a list of them such as [0,2]",
        lambda value: (
            _integer(1).accepts(value)
            or (isinstance(value, list) and value != [] and all(map(_integer(0).accepts, value)))
        ),
    ),
    "trainer.limit_train_batches": _positive,
    "trainer.limit_val_batches": _positive,
    "trainer.compile": _boolean,
    "logger.mode": _optional(_choice("online", "offline", "disabled")),
    "logger.checkpoint": _boolean,
    "metrics.every_n_epochs": _integer(1),
    "metrics.sites": Rule(
        f"a list of {', '.join(SITES)}, such as [act]",
        lambda value: isinstance(value, list) and value != [] and set(value) <= set(SITES),
    ),
    "metrics.memory_budget": _positive,
    "callbacks.loss_landscape.every_n_steps": _integer(1),
    "callbacks.loss_landscape.step_sizes": Rule(
        "a list of numbers above 0, such as [0.01,0.1]",
        lambda value: (
            isinstance(value, list) and value != [] and all(map(_positive.accepts, value))
        ),
    ),
    "callbacks.gradient_norms.every_n_steps": _integer(1),
    "callbacks.activation_drift.memory_budget": _positive,
    "metrics.names": Rule("a list of metrics' names", lambda value: isinstance(value, list)),
    "probe.train": _optional(_integer(1)),
    "probe.test": _optional(_integer(1)),
    "checkpoint_epochs": Rule(
        "a list of epochs such as [0,5,10], or all",
        lambda value: (
            value == "all" or (isinstance(value, list) and all(map(_integer(0).accepts, value)))
        ),
    ),
}

# Of Lightning's Trainer: a run goes to the end of its last epoch, and is evaluated, measured and
# recorded at each one's end, by callbacks of ours.
FIXED = {
    "barebones",
    "callbacks",
    "check_val_every_n_epoch",
    "default_root_dir",
    "enable_checkpointing",
    "enable_model_summary",
    "enable_progress_bar",
    "fast_dev_run",
    "logger",
    "max_steps",
    "max_time",
    "min_epochs",
    "min_steps",
    "num_sanity_val_steps",
    "plugins",
    "reload_dataloaders_every_n_epochs",
    "use_distributed_sampler",
    "val_check_interval",
}


def validate(config: dict[str, Any]) -> None:
    """Check the values of a resolved configuration, or of some of its groups.

    Raises:
        UserError: A value is not allowed.
    """
    for key, rule in RULES.items():
        *groups, name = key.split(".")
        values = config
        for group in groups:
            values = values.get(group, {})
        if name in values and not rule.accepts(values[name]):
            raise UserError(f"{key}={values[name]} is not allowed; it takes {rule.allowed}")
    for key in FIXED & config.get("trainer", {}).keys():
        raise UserError(
            f"trainer.{key} cannot be set: a run goes on to the end of trainer.max_epochs, and is "
            "evaluated and recorded at the end of each epoch"
        )
