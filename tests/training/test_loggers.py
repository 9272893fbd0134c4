"""W&B with the real SDK, offline; CSV files."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, SMALL, CommandLine, description, only_cell

SECRET = "0123456789abcdef0123456789abcdef01234567"
RUN = (*SMALL, "metrics.names=[unit_sparsity,silhouette]")


def inspect(cell: Path) -> dict[str, list[dict[str, Any]]]:
    """Entries of a cell's only run by type, as W&B's own viewer reads them."""
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


@pytest.mark.long
def test_each_job_is_its_own_run(command_line: CommandLine, tmp_path: Path) -> None:
    result = command_line(*RUN, "logger=wandb", "norm=batchnorm,none", "-m")
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
        assert [row["epoch"] for row in logged if "test/accuracy" in row] == [0, 2]


@pytest.mark.long
def test_only_the_wandb_logger_needs_wandb(tmp_path: Path) -> None:
    without_wandb = "import sys; sys.modules['wandb'] = None; import bnstudy.train as t; t.main()"

    def train(logger: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", without_wandb, *RUN, f"logger={logger}"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
        )

    refused = train("wandb")
    assert refused.returncode == 1
    assert "the package wandb is not installed; pip install wandb" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert train("none").returncode == 0


@pytest.mark.slow
def test_csv_keeps_the_files_of_earlier_attempts(command_line: CommandLine, tmp_path: Path) -> None:
    assert command_line(*RUN, "logger=csv").returncode == 0
    cell = only_cell(tmp_path / "multirun")
    (cell / "metrics.parquet").unlink()
    (cell / "checkpoints" / "last.ckpt").unlink()
    assert command_line(*RUN, "logger=csv").returncode == 0
    files = sorted(cell.glob("csv/attempt_*/metrics.csv"))
    assert [file.parent.name for file in files] == ["attempt_1", "attempt_2"]
    for file in files:
        with file.open() as lines:
            rows = list(csv.DictReader(lines))
        epochs = [row["epoch"] for row in rows if row["rep/train/block01/silhouette"]]
        assert epochs == ["0", "1", "2"]
        assert [row["epoch"] for row in rows if row["test/probe_accuracy"]] == ["0", "1", "2"]
        assert [row["epoch"] for row in rows if row["test/accuracy"]] == ["0", "2"]


@pytest.mark.slow
def test_the_api_key_is_in_no_output_or_file_of_an_offline_run(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    result = command_line(*RUN, "logger=wandb", "logger.mode=offline")
    assert result.returncode == 0, result.stderr
    assert SECRET not in result.stdout + result.stderr
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
