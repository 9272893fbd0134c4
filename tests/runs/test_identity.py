"""Runs keep their identity when options are added; what changes the numbers changes it."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from bnstudy import load
from bnstudy.config import identity as module
from bnstudy.config.composition import resolve
from bnstudy.config.identity import ADDED, essence, identity
from bnstudy.runs.record import Record
from tests.conftest import REPOSITORY
from tests.test_configs import Compose

RECORDS = REPOSITORY / "tests" / "records"
KEPT = sorted(path.parent for path in RECORDS.glob("kept/*/run.json"))
IDENTITIES = json.loads((RECORDS / "identities.json").read_text())


def as_before(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the values that keys added since have in records without them."""
    for key, value in ADDED.items():
        group, name = key.split(".")
        if name in config[group]:
            config[group][name] = value
    return config


@pytest.mark.parametrize("stored", IDENTITIES, ids=lambda stored: " ".join(stored["overrides"]))
def test_a_command_line_of_version_0_1_has_the_same_identity(
    composed: Compose, stored: dict[str, Any]
) -> None:
    assert identity(stored["config"]) == stored["identity"]
    assert identity(as_before(resolve(composed(*stored["overrides"])))) == stored["identity"]


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_a_kept_run_has_the_same_identity(folder: Path) -> None:
    record = Record.read(folder)
    assert identity(record.description.config) == record.description.identity
    assert folder.name.endswith(identity(record.description.config)[:8])


def test_kept_runs_are_paired() -> None:
    runs = load(RECORDS / "kept").runs
    complete = runs[runs["status"] == "completed"]
    assert len(complete) == 8
    norms = complete.groupby("pair")["norm"].agg(set).tolist()
    assert norms == [{"batchnorm", "none"}] * 4
    assert set(runs["status"]) == {"completed", "diverged", "interrupted"}


def test_an_added_key_counts_where_it_does_not_say_what_was_done_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = IDENTITIES[0]["config"]
    monkeypatch.setitem(module.ADDED, "optim.added", 0)

    def having(value: object) -> dict[str, Any]:
        config = deepcopy(before)
        config["optim"]["added"] = value
        return config

    assert essence(having(0)) == essence(having(0.0)) == essence(before)
    assert identity(having(0)) == identity(before)
    assert identity(having(1)) != identity(before)


def test_a_trainer_of_ones_own_counts(composed: Compose) -> None:
    plain = identity(resolve(composed()))
    assert identity(resolve(composed("trainer._target_=mine.Trainer"))) != plain
