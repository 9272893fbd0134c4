"""A server that the SDK of this process takes for W&B's."""

import os
from collections.abc import Iterator

import pytest
import wandb

from tests.tracking.server import Server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    wandb.teardown()  # what it knows of another test's server
    with Server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server
        wandb.teardown()
    assert not server.unknown


@pytest.fixture(autouse=True)
def _nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_CONFIG_DIR", os.devnull + ".d")
