"""Keys and values that a configuration may have."""

import dataclasses
import inspect
import subprocess
import sys
from collections import defaultdict
from copy import deepcopy
from typing import Any, get_args

import pytest
from omegaconf import OmegaConf

from bnstudy.config import CONFIG_FOLDER
from bnstudy.config.composition import resolve
from bnstudy.config.schema import (
    FORMER_PRECISIONS,
    PRECISIONS,
    RECIPE_KEYS,
    ChosenGroup,
    Config,
    Data,
    Logger,
    Model,
    Norm,
    Optim,
    Regularizer,
    validate,
)
from bnstudy.errors import UserError
from bnstudy.models.optimizers import OPTIMIZERS, Recipe
from tests.conftest import Compose

# Keys that no file has: torch's own arguments of an optimizer, and the name of any data set.
IN_NO_FILE = {
    "optim": {
        *("dampening", "nesterov", "eps", "amsgrad", "decoupled_weight_decay"),
        *("maximize", "foreach", "fused"),
    },
    "data": {"name"},
}
CHOSEN: dict[str, type[ChosenGroup]] = {
    "model": Model,
    "norm": Norm,
    "optim": Optim,
    "regularizer": Regularizer,
    "data": Data,
    "logger": Logger,
}
COMPOSED: dict[str, Any] = {}


@pytest.fixture
def config(composed: Compose) -> dict[str, Any]:
    if not COMPOSED:  # once: it takes most of a second
        COMPOSED.update(resolve(composed("callbacks=all")))
    return deepcopy(COMPOSED)


def refusal(config: dict[str, Any]) -> str:
    with pytest.raises(UserError) as refused:
        validate(config)
    return str(refused.value)


def changed(config: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    config = deepcopy(config)
    *groups, name = key.split(".")
    values = config
    for group in groups:
        values = values.setdefault(group, {})
    values[name] = value
    return config


@pytest.mark.parametrize(
    ("key", "value", "takes"),
    [
        ("seed", True, "an integer of at least 0"),
        ("seed", 1.0, "an integer of at least 0"),
        ("seed", "1", "an integer of at least 0"),
        ("study", ".hidden", "a folder's name, without / and % and not beginning with a dot"),
        ("study", "", "a folder's name, without / and % and not beginning with a dot"),
        ("study", "50%j", "a folder's name, without / and % and not beginning with a dot"),
        ("output_root", "", "a folder's path"),
        (
            "logger.project",
            "a/b",
            "a name of at most 128 characters, without / \\ # ? % :, or null",
        ),
        ("cell", 3.0, "a folder's name, without / and % and not beginning with a dot"),
        ("model.depth", 0, "an integer of at least 1"),
        ("model.depth", None, "an integer of at least 1"),
        ("model.width", "4", "a number above 0"),
        ("model.width", float("nan"), "a number above 0"),
        ("model.initialization", "lecun", "torch, he, xavier, orthogonal, own"),
        ("norm.name", "renorm", ", ".join(Norm.keys_of)),
        ("norm.momentum", 0, "a number above 0, at most 1"),
        ("optim.name", "lion", "sgd, adam"),
        ("optim.lr", True, "a number above 0"),
        ("optim.momentum", 1, "a number from 0 to below 1"),
        ("optim.schedule", "stair", "constant, cosine, step"),
        ("data.flip", 1, "true or false"),
        ("data.root", 2024, "text, or null"),
        (
            "trainer.devices",
            [],
            "a number of devices of at least 1, or a list of them such as [0,2]",
        ),
        (
            "trainer.devices",
            [0, -1],
            "a number of devices of at least 1, or a list of them such as ",
        ),
        ("trainer.limit_train_batches", 2.5, "a number of batches of at least 1, or a share above"),
        ("trainer.limit_val_batches", 0, "a number of batches of at least 1, or a share above 0"),
        ("trainer.limit_val_batches", float("inf"), "a number of batches of at least 1, or a "),
        ("trainer.precision", 7, "32-true, 16-mixed, bf16-mixed, 16-true, bf16-true, 64-true, "),
        ("trainer.gradient_clip_val", "1", "a number, or null"),
        ("trainer.gradient_clip_algorithm", "l2", "norm, value, or null"),
        ("metrics.sites", ["relu"], "a list of conv, norm, act, features, such as [act]"),
        ("metrics.sites", [["act"]], "a list of conv, norm, act, features, such as [act]"),
        ("callbacks.loss_landscape.step_sizes", [0.1, 0], "a list of numbers above 0, such as "),
        ("metrics.memory_budget", float("inf"), "a finite number above 0"),
        ("metrics.memory_budget", float("nan"), "a finite number above 0"),
        ("callbacks.activation_drift.memory_budget", float("inf"), "a finite number above 0"),
        ("probe.train", 0, "an integer of at least 1, or null"),
        ("probe", 5, "keys, each with its value"),
        ("checkpoint_epochs", [0, "last"], "a list of epochs such as [0,5,10], or all"),
        ("sweep.redo", "some", "failed, diverged, all, or null"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused(
    config: dict[str, Any], key: str, value: object, takes: str
) -> None:
    message = refusal(changed(config, key, value))
    assert message.startswith(f"{key}={value} is not allowed; expected {takes}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.width", 4),
        ("optim.weight_decay", 0),
        ("optim.nesterov", True),
        ("trainer.devices", [0, 2]),
        ("trainer.limit_train_batches", 8),
        ("trainer.limit_train_batches", 0.5),
        ("trainer.limit_val_batches", 2.0),
        ("trainer.precision", 16),
        ("trainer.precision", "bf16"),
        ("trainer.precision", None),
        ("trainer.accumulate_grad_batches", 2),
        ("trainer._target_", "mine.Trainer"),
        ("data.name", "digits"),
        ("checkpoint_epochs", "all"),
        ("probe.test", None),
        ("callbacks.clock", {"_target_": "mine.Clock", "every_n_steps": 0}),
    ],
)
def test_a_value_that_is_allowed_is_not_refused(
    config: dict[str, Any], key: str, value: object
) -> None:
    validate(changed(config, key, value))


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("trianer", "did you mean trainer?"),
        ("model.dept", "did you mean depth?"),
        ("model.shortcuts", "there are _target_, depth, initialization, width"),
        ("norm.num_groups", "there are eps, momentum, name, position"),
        ("optim.betas", "there are "),
        ("regularizer.strength", "there are name"),
        ("data.classes", "there are "),
        ("logger.api_key", "there are _target_, checkpoint, entity, mode, project"),
        ("metrics.every_n_epoch", "did you mean every_n_epochs?"),
        ("probe.validation", "there are test, train"),
        ("sweep.dry", "did you mean dry_run?"),
        ("callbacks.loss_landscape.step_size", "did you mean step_sizes?"),
    ],
)
def test_a_key_that_does_not_exist_is_refused(config: dict[str, Any], key: str, hint: str) -> None:
    message = refusal(changed(config, key, 1))
    assert message.startswith(f"{key}: there is no such key; {hint}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("model", "depth", 0),
        ("data", "batch_size", 0),
        ("logger", "mode", "sometimes"),
        ("trainer", "max_epochs", 0),
        ("callbacks.loss_landscape", "every_n_steps", 0),
    ],
)
def test_a_target_of_the_users_has_free_keys_beside_the_known_ones(
    config: dict[str, Any], group: str, key: str, value: object
) -> None:
    own = changed(config, f"{group}._target_", "mine.Own")
    validate(changed(own, f"{group}.mine", object()))
    assert f"{group}.{key}={value} is not allowed" in refusal(changed(own, f"{group}.{key}", value))


def test_what_callbacks_stand_in_for_cannot_be_set(config: dict[str, Any]) -> None:
    message = refusal(changed(config, "trainer.max_steps", 5))
    assert message.startswith("trainer.max_steps cannot be set: bnstudy relies on its own ")


def test_some_groups_are_checked_alone() -> None:
    validate({})
    validate({"metrics": {"names": [], "sites": ["act"]}})
    validate({"sweep": {"redo": None}})
    assert refusal({"sweep": {"redo": "no"}}).startswith("sweep.redo=no is not allowed")


def test_validation_changes_nothing(config: dict[str, Any]) -> None:
    before = deepcopy(config)
    validate(config)
    assert repr(config) == repr(before)  # which tells 1 from 1.0 and from True, and has an order


def test_precisions_are_those_of_lightning() -> None:
    from lightning.fabric.plugins.precision import precision

    assert set(PRECISIONS) == set(get_args(precision._PRECISION_INPUT_STR))
    assert set(FORMER_PRECISIONS) == set(get_args(precision._PRECISION_INPUT_STR_ALIAS))


def test_torch_is_not_imported() -> None:
    program = "import bnstudy.config.schema, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("group", CHOSEN)
def test_the_keys_of_each_choice_are_those_of_its_files(group: str) -> None:
    model = CHOSEN[group]
    in_files: dict[str, set[str]] = defaultdict(set)
    for path in (CONFIG_FOLDER / group).glob("*.yaml"):
        if OmegaConf.is_missing(OmegaConf.load(path), model.chosen_by):
            continue  # the user's own
        keys = set(OmegaConf.load(path))
        choice = OmegaConf.to_container(OmegaConf.load(path))[model.chosen_by]
        in_files[choice] |= keys - {model.chosen_by}
    known = {
        choice: set(keys) - (IN_NO_FILE.get(group, set()) - in_files[choice])
        for choice, keys in model.keys_of.items()
    }
    assert known == in_files


def test_every_key_of_a_choice_has_a_type_and_every_type_a_key() -> None:
    for model in CHOSEN.values():
        typed = {field.alias or name for name, field in model.model_fields.items()}
        assert typed == {model.chosen_by}.union(*model.keys_of.values())


def test_every_group_of_files_has_a_model() -> None:
    folders = {path.name for path in CONFIG_FOLDER.iterdir() if path.is_dir()}
    assert folders - {"debug", "experiment", "hydra"} <= set(Config.model_fields)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_keys_of_an_optimizer_are_torchs(name: str) -> None:
    of_torch = set(inspect.signature(OPTIMIZERS[name]).parameters)
    ignored = {"params", "capturable", "differentiable"}
    recipe = {field.name for field in dataclasses.fields(Recipe)}
    assert set(Optim.keys_of[name]) - recipe == of_torch - ignored
    assert set(RECIPE_KEYS) == recipe
