"""W&B with the real SDK, offline; CSV files."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bnstudy.models import Classifier
from tests.conftest import REPOSITORY, SMALL, CommandLine, description, only_cell

SECRET = "0123456789abcdef0123456789abcdef01234567"
QUICK = (
    *SMALL[:-1],
    "metrics.names=[unit_sparsity,silhouette]",
)


def inspect(cell: Path) -> dict[str, list[dict[str, Any]]]:
    """What W&B's own viewer reads of a cell's only run: its entries by type."""
    (folder,) = cell.glob("wandb/offline-run-*")
    deadline = time.monotonic() + 30
    while True:  # W&B's service is a process of its own, and may still be writing the last entries
        viewer = subprocess.run(
            [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        entries: dict[str, list[dict[str, Any]]] = {}
        for entry in map(json.loads, viewer.stdout.splitlines()):
            entries.setdefault(entry["type"], []).append(entry[entry["type"]])
        if "exit" in entries:
            return entries
        assert time.monotonic() < deadline, viewer.stderr
        time.sleep(0.2)


def test_each_job_is_its_own_run(command_line: CommandLine, tmp_path: Path) -> None:
    result = command_line(*QUICK, "logger=wandb", "norm=batchnorm,none", "-m")
    assert result.returncode == 0, result.stderr
    assert "wandb:" not in result.stdout + result.stderr  # no question, no noise
    cells = sorted((tmp_path / "multirun" / "mnist5k_cnn").glob("*-*/"))
    assert len(cells) == 2
    for cell in cells:
        run = description(cell)
        entries = inspect(cell)
        (begun,) = entries["run"]
        assert begun["run_id"] == run["attempts"][0]["wandb_id"]
        assert begun["run_id"].startswith(run["id"])
        assert begun["run_group"] == "mnist5k_cnn"
        assert begun["tags"] == [run["choices"]["norm"], "cnn", "mnist5k"]
        assert begun["config"]["update"]["norm"] == run["config"]["norm"]
        assert [end["exit_code"] for end in entries["exit"]] == [0]
        logged = [entry["item"] for entry in entries["history"]]
        for name in ("rep/train/block01/silhouette", "rep/test/block02/unit_sparsity"):
            assert [row["epoch"] for row in logged if name in row] == [0, 1, 2]
        assert [row["epoch"] for row in logged if "test/accuracy" in row] == [0, 1, 2]


def test_a_crash_is_marked_as_failed(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Classifier, "training_step", crash)
    with pytest.raises(RuntimeError, match="a bug"):
        command_line(*QUICK, "logger=wandb")
    cell = only_cell(tmp_path / "multirun")
    assert [end["exit_code"] for end in inspect(cell)["exit"]] == [1]
    assert description(cell)["status"] == "failed"
    assert description(cell)["attempts"][0]["error"] == "RuntimeError: a bug"


def test_a_run_that_starts_over_gets_a_new_wandb_run_and_a_resumed_one_its_own(
    command_line: CommandLine, tmp_path: Path
) -> None:
    def interrupted_and_again() -> str:
        (cell / "metrics.parquet").unlink()
        assert command_line(*QUICK, "logger=wandb").returncode == 0
        ids = [attempt["wandb_id"] for attempt in description(cell)["attempts"]]
        return "same" if ids[-1] == ids[-2] else "new"

    assert command_line(*QUICK, "logger=wandb").returncode == 0
    cell = only_cell(tmp_path / "multirun")
    (cell / "checkpoints" / "last.ckpt").unlink()
    assert interrupted_and_again() == "new"
    for epoch in (0, 1, 2):  # the parts that an interrupted run leaves behind
        rows = pq.read_table(cell / "metrics.parquet", filters=[("epoch", "=", epoch)])
        (cell / "metrics").mkdir(exist_ok=True)
        pq.write_table(rows, cell / "metrics" / f"epoch=000{epoch}.parquet")
    assert interrupted_and_again() == "same"


def test_wandb_is_asked_for_by_its_logger_alone(tmp_path: Path) -> None:
    without_wandb = "import sys; sys.modules['wandb'] = None; import bnstudy.train as t; t.main()"
    for logger, code in (("none", 0), ("wandb", 1)):
        result = subprocess.run(
            [sys.executable, "-c", without_wandb, *QUICK, "metrics=none", f"logger={logger}"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == code, result.stderr
    assert "the package wandb is not installed; pip install wandb" in result.stderr
    assert "Traceback" not in result.stderr


def test_csv_keeps_the_files_of_earlier_attempts(command_line: CommandLine, tmp_path: Path) -> None:
    assert command_line(*QUICK, "logger=csv").returncode == 0
    cell = only_cell(tmp_path / "multirun")
    (cell / "metrics.parquet").unlink()
    (cell / "checkpoints" / "last.ckpt").unlink()
    assert command_line(*QUICK, "logger=csv").returncode == 0
    files = sorted(cell.glob("csv/attempt_*/metrics.csv"))
    assert [file.parent.name for file in files] == ["attempt_1", "attempt_2"]
    for file in files:
        with file.open() as lines:
            rows = list(csv.DictReader(lines))
        epochs = [row["epoch"] for row in rows if row["rep/train/block01/silhouette"]]
        assert epochs == ["0", "1", "2"]
        assert [row["epoch"] for row in rows if row["test/accuracy"]] == ["0", "1", "2"]


def test_no_secret_reaches_a_file(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    result = command_line(*QUICK, "logger=wandb", "logger.mode=offline")
    assert result.returncode == 0, result.stderr
    assert SECRET not in result.stdout + result.stderr
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
