"""JSON schemas of the configuration files, as an editor uses them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from omegaconf import OmegaConf

from bnstudy.config import CONFIG_FOLDER
from bnstudy.config.json_schemas import SCHEMA_FOLDER, json_schemas

FILES = sorted(
    path.relative_to(CONFIG_FOLDER)
    for path in CONFIG_FOLDER.rglob("*.yaml")
    if path.relative_to(CONFIG_FOLDER).parts[0] != "hydra"  # typed by Hydra and its plugins
)
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in SCHEMA_FOLDER.glob("*.json")}


def content(text: str | Path) -> Any:
    read = OmegaConf.load(text) if isinstance(text, Path) else OmegaConf.create(text)
    return OmegaConf.to_container(read)


def problems(schema: str, content: Any) -> list[str]:
    return [error.message for error in Draft7Validator(SCHEMAS[schema]).iter_errors(content)]


def test_the_json_schemas_are_up_to_date() -> None:
    again = "python -m bnstudy.config.json_schemas writes them again"
    assert json_schemas() == SCHEMAS, again


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_json_schema_is_valid(name: str) -> None:
    Draft7Validator.check_schema(SCHEMAS[name])


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_shipped_file_names_its_schema_and_keeps_to_it(file: Path) -> None:
    path = CONFIG_FOLDER / file
    # Hydra reads `# @package` only above any other comment.
    found = re.match(
        r"(?:# @package _global_\n)?# yaml-language-server: \$schema=(\S+)\n", path.read_text()
    )
    assert found
    schema = (path.parent / found[1]).resolve()
    assert schema.is_file()
    assert schema.parent == SCHEMA_FOLDER.resolve()
    assert schema.stem == (file.parts[0] if file.parts[0] in SCHEMAS else "config")
    assert problems(schema.stem, content(path)) == []


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ("model", "{_target_: bnstudy.models.CNN, depth: '${oc.env:DEPTH}'}"),
        ("model", "{defaults: [resnet], residual_init: {batchnorm: he, none: fixup}}"),
        ("model", "{_target_: mine.Network, layers: 3}"),
        ("optim", "{name: sgd, lr: {batchnorm: 0.1, none: '${rate}'}}"),
        ("data", "{defaults: [image_folder], root: '???'}"),
        ("trainer", "{accumulate_grad_batches: 2}"),
        ("callbacks", "{clock: {_target_: mine.Clock, every: 3}}"),
        ("config", "{probe: '${other}', checkpoint_epochs: ['${trainer.max_epochs}']}"),
        ("config", "{model: {depth: 2}, hydra: {mode: MULTIRUN}}"),
    ],
)
def test_what_a_file_may_say_is_accepted(schema: str, text: str) -> None:
    assert problems(schema, content(text)) == []


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ("model", "{_target_: bnstudy.models.CNN, depth: 0}"),
        ("model", "{_target_: bnstudy.models.CNN, dept: 3}"),
        ("model", "{_target_: bnstudy.models.CNN, residual_init: he}"),
        ("model", "{defaults: [cnn], dept: 3}"),
        ("model", "{_target_: mine.Network, depth: deep}"),
        ("norm", "{name: renorm}"),
        ("norm", "{name: layernorm, momentum: 0.1}"),
        ("optim", "{name: sgd, lr: {batchnorm: fast}}"),
        ("optim", "{name: adam, betas: [0.9]}"),
        ("regularizer", "{name: cluster, target: 0.3}"),
        ("data", "{_target_: bnstudy.data.MNIST5k, classes: 3}"),
        ("data", "{flip: 1}"),
        ("trainer", "{max_steps: 5}"),
        ("metrics", "{sites: [relu]}"),
        ("metrics", "{every_n_epoch: 5}"),
        ("logger", "{_target_: bnstudy.training.loggers.no_logger, project: x}"),
        ("callbacks", "{loss_landscape: {step_size: 3}}"),
        ("config", "{trianer: {max_epochs: 3}}"),
        ("config", "{trainer: {max_epochs: 0}}"),
        ("config", "{norm: {eps: small}}"),
    ],
)
def test_a_mistake_is_marked(schema: str, text: str) -> None:
    assert problems(schema, content(text))
