"""Expectations of runs on the server, and ways to stop and upload them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import wandb

from bnstudy.dashboard import main
from bnstudy.models import Classifier
from tests.conftest import SMALL, CommandLine, Result, description, only_cell, train_until
from tests.tracking.server import ServedRun

RUN = (*SMALL[:-1], "logger=wandb", "metrics.names=[unit_sparsity,silhouette]")
VALUE = "rep/train/block01/silhouette"


def table(run: ServedRun, key: str) -> tuple[list[str], list[list[Any]]]:
    """A table that a run has logged."""
    content = json.loads(run.files[run.summary[key]["path"]])
    return content["columns"], content["data"]


def assert_whole(run: ServedRun, epochs: int = 2, steps: int = 8) -> None:
    """Every step and epoch of a run is there, once, and what it ends with."""
    losses = [row["trainer/global_step"] for row in run.history if "train/loss_step" in row]
    assert losses == list(range(epochs * steps))
    assert_every_epoch(run, epochs)


def assert_every_epoch(run: ServedRun, epochs: int) -> None:
    """Every epoch of a run is there, once; `kill -9` may cost some rows within the last epoch."""
    rows = run.history
    assert [row["epoch"] for row in rows if VALUE in row] == list(range(epochs + 1))
    measured = [row["epoch"] for row in rows if "test/probe_accuracy" in row]
    assert measured == list(range(epochs + 1))
    assert [row["epoch"] for row in rows if "test/accuracy" in row] == [0, epochs]
    assert max(Counter(row["_step"] for row in rows).values()) == 1
    assert run.exit_code == 0
    assert run.summary["status"] == "completed"
    assert run.summary["final/test_accuracy"] == rows_of_last_epoch(run)["test/accuracy"]
    assert {"run.json", "metrics.parquet"} <= {Path(name).name for name in run.files}
    assert len(table(run, "representations_table")[1]) == (epochs + 1) * 2 * 2 * 2


def rows_of_last_epoch(run: ServedRun) -> dict[str, Any]:
    return next(row for row in reversed(run.history) if "test/accuracy" in row)


def stop_at(monkeypatch: pytest.MonkeyPatch, batch: int, error: BaseException) -> None:
    """Have training stop before a batch."""
    step = Classifier.training_step

    def stopping(self: Classifier, *arguments: Any) -> Any:
        if self.global_step == batch:
            raise error
        return step(self, *arguments)

    monkeypatch.setattr(Classifier, "training_step", stopping)


def killed(folder: Path, *arguments: str) -> Path:
    """The cell of a run that is killed in its fourth epoch or soon after."""
    train_until(folder, *arguments, epoch=3)
    cell = only_cell(folder / "multirun")
    assert description(cell)["status"] == "running"
    return cell


def sync(command_line: CommandLine, study: str = "multirun/mnist5k_cnn") -> Result:
    wandb.teardown()  # it is another process, as a rule
    return command_line("sync", study, main=main)
