"""Runs keep their identity when options are added; what changes the numbers changes it."""

import json
from copy import deepcopy
from typing import Any

import pytest

from bnstudy import load
from bnstudy.config import identity as module
from bnstudy.config.composition import resolve
from bnstudy.config.identity import ADDED_KEYS, compute_identity, select_identity_options
from bnstudy.runs.record import Record
from tests.conftest import KEPT, Compose

IDENTITIES = json.loads((KEPT.parent / "identities.json").read_text())


def as_before(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the values that keys added since have in records without them."""
    for key, value in ADDED_KEYS.items():
        group, name = key.split(".")
        if name in config[group]:
            config[group][name] = value
    if config["probe"] == {"train": 2000, "test": 2000}:  # the default since 0.2
        config["probe"] = {"train": None, "test": None}
    return config


@pytest.mark.slow
@pytest.mark.parametrize("stored", IDENTITIES, ids=lambda stored: " ".join(stored["overrides"]))
def test_a_command_line_of_version_0_1_has_the_same_identity(
    composed: Compose, stored: dict[str, Any]
) -> None:
    assert compute_identity(stored["config"]) == stored["identity"]
    config = as_before(resolve(composed(*stored["overrides"])))
    assert compute_identity(config) == stored["identity"]


@pytest.mark.parametrize("cell", sorted(path.parent.name for path in KEPT.glob("*/run.json")))
def test_a_kept_run_has_the_same_identity(cell: str) -> None:
    run = Record.read(KEPT / cell).description
    assert compute_identity(run.config) == run.identity
    assert cell.endswith(run.identity[:8])


def test_kept_runs_are_paired() -> None:
    runs = load(KEPT).runs
    complete = runs[runs["status"] == "completed"]
    assert len(complete) == 8
    norms = complete.groupby("pair")["norm"].agg(set).tolist()
    assert norms == [{"batchnorm", "none"}] * 4
    assert set(runs["status"]) == {"completed", "diverged", "interrupted"}


def test_an_added_key_counts_where_it_does_not_say_what_was_done_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = IDENTITIES[0]["config"]
    monkeypatch.setitem(module.ADDED_KEYS, "optim.added", 0)

    def having(value: object) -> dict[str, Any]:
        config = deepcopy(before)
        config["optim"]["added"] = value
        return config

    options = [select_identity_options(config) for config in (having(0), having(0.0), before)]
    assert options[0] == options[1] == options[2]
    assert compute_identity(having(0)) == compute_identity(before)
    assert compute_identity(having(1)) != compute_identity(before)


def test_a_trainer_of_ones_own_counts(composed: Compose) -> None:
    plain = compute_identity(resolve(composed()))
    assert compute_identity(resolve(composed("trainer._target_=mine.Trainer"))) != plain


@pytest.mark.slow
def test_what_cannot_change_the_numbers_is_not_part_of_the_identity(composed: Compose) -> None:
    plain = compute_identity(resolve(composed()))
    for same in (
        "logger=csv",
        "metrics=none",
        "callbacks=all",
        "data.root=elsewhere",
        "study=other",
        "trainer.accelerator=cpu",
        "optim.lr={batchnorm:0.01,none:0.5}",
        "checkpoint_epochs=all",
        "output_root=elsewhere",
        "experiment=quickstart",
        "optim.weight_decay=0",
        "trainer.devices=[1]",
    ):
        assert compute_identity(resolve(composed(same))) == plain, same
    others = [
        "norm=none",
        "norm.momentum=0.2",
        "model.depth=2",
        "model.width=8",
        "optim=adam",
        "optim.lr=0.02",
        "data.batch_size=32",
        "data.flip=true",
        "data.validation=0.1",
        "trainer.max_epochs=7",
        "trainer.precision=bf16-mixed",
        "trainer.devices=2",
        "+trainer.accumulate_grad_batches=2",
        "trainer=ddp",
        "probe.train=1000",
        "seed=1",
    ]
    identities = {compute_identity(resolve(composed(other))) for other in others}
    assert len(identities | {plain}) == len(others) + 1


@pytest.mark.parametrize(
    ("experiment", "stored"), [("paper_mnist", "ff7f5334"), ("paper_cifar10", "a190b4ea")]
)
def test_the_papers_experiments_keep_their_identity_and_its_5000_samples(
    composed: Compose, experiment: str, stored: str
) -> None:
    config = resolve(composed(f"experiment={experiment}"))
    assert config["probe"] == {"train": None, "test": None}
    assert compute_identity(config).startswith(stored)


@pytest.mark.slow
def test_an_image_folder_is_told_apart_by_its_name_and_not_by_its_path(composed: Compose) -> None:
    def of(root: str) -> str:
        return compute_identity(resolve(composed("data=image_folder", f"data.root={root}")))

    assert of("/here/cats") == of("/there/cats") != of("/here/dogs")


def test_he_is_what_earlier_records_mean_by_saying_nothing(composed: Compose) -> None:
    he, torch_ = (resolve(composed(f"model.initialization={scheme}")) for scheme in ("he", "torch"))
    earlier = he | {"model": {k: v for k, v in he["model"].items() if k != "initialization"}}
    assert compute_identity(earlier) == compute_identity(he) != compute_identity(torch_)
