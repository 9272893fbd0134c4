"""Local W&B server, and isolation from the real one."""

import os
from collections.abc import Iterator

import pytest
import wandb

from tests.tracking.server import Server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that the SDK of this process takes for W&B's."""
    wandb.teardown()  # forget the server of another test
    with Server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server
        wandb.teardown()
    assert not server.unknown


@pytest.fixture(autouse=True)
def _isolated_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the SDK from reporting errors to W&B, and from reading the user's settings."""
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_CONFIG_DIR", os.devnull + ".d")
