"""Runs with the real SDK offline: what they leave in their study, and its way to a server."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bnstudy.runs.lease import hold_lease
from bnstudy.tracking import transaction_log
from bnstudy.tracking.transaction_log import TransactionLog
from tests.conftest import REPOSITORY, CommandLine, description, only_cell
from tests.tracking.runs import (
    RUN,
    VALUE,
    assert_every_epoch,
    assert_whole,
    killed,
    stop_at,
    sync,
)
from tests.tracking.server import Server

OFFLINE = (*RUN, "logger.mode=offline")


def log_of(cell: Path) -> TransactionLog:
    """Log of the latest run, once W&B's service, a process of its own, has written it."""
    (folder,) = cell.glob("wandb/offline-run-*")
    (file,) = folder.glob("*.wandb")
    deadline = time.monotonic() + 30
    while (log := transaction_log.read_log(file)).exit_code is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return log


def assert_whole_on_disk(log: TransactionLog, epochs: int, steps: int = 8) -> None:
    rows = [log.rows[step] for step in sorted(log.rows)]
    assert [row["epoch"] for row in rows if VALUE in row] == list(range(epochs + 1))
    assert [row["epoch"] for row in rows if "test/accuracy" in row] == [0, epochs]
    losses = [row["trainer/global_step"] for row in rows if "train/loss_step" in row]
    assert losses == list(range(epochs * steps))
    assert log.exit_code == 0


@pytest.mark.slow
def test_w_and_bs_own_viewer_reads_the_same(command_line: CommandLine, tmp_path: Path) -> None:
    assert command_line(*OFFLINE).returncode == 0
    cell = only_cell(tmp_path / "multirun")
    log = log_of(cell)
    (folder,) = cell.glob("wandb/offline-run-*")
    viewer = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    entries = [json.loads(line) for line in viewer.stdout.splitlines()]
    rows = [entry["history"]["item"] for entry in entries if entry["type"] == "history"]
    for row, own in zip(rows, [log.rows[step] for step in sorted(log.rows)], strict=True):
        scalars = {key: value for key, value in row.items() if isinstance(value, int | float)}
        of_tables = {key for key in scalars if key.startswith("representations_table")}
        assert {key: scalars[key] for key in scalars.keys() - of_tables}.items() <= own.items()


@pytest.mark.slow
def test_all_of_it_lies_in_the_study_and_is_uploaded_once(
    command_line: CommandLine, server: Server, tmp_path: Path
) -> None:
    assert command_line(*OFFLINE).returncode == 0
    assert not server.runs
    cell = only_cell(tmp_path / "multirun")
    staged = log_of(cell).staged
    assert staged
    assert all(path.is_relative_to(cell) for path in staged)
    synced = sync(command_line)
    assert synced.returncode == 0, synced.stderr
    assert "1 run: 1 uploaded" in synced.stdout
    (run,) = server.cells
    assert_whole(run)
    assert run.streamed("wandb-events.jsonl")  # system metrics
    assert run.group == "mnist5k_cnn"
    again = sync(command_line)
    assert "1 run: 1 already there" in again.stdout
    assert_whole(run)


@pytest.mark.long
def test_a_study_that_was_moved_is_uploaded_with_its_tables(
    command_line: CommandLine, server: Server, tmp_path: Path
) -> None:
    assert command_line(*OFFLINE).returncode == 0
    log_of(only_cell(tmp_path / "multirun"))
    shutil.move(tmp_path / "multirun" / "mnist5k_cnn", tmp_path / "elsewhere")
    synced = sync(command_line, "elsewhere")
    assert synced.returncode == 0, synced.stderr
    (run,) = server.runs.values()
    assert_whole(run)
    assert [one["state"] for one in server.artifacts.values()] == ["COMMITTED"]


@pytest.mark.long
def test_an_upload_that_was_interrupted_goes_on(
    command_line: CommandLine, server: Server, tmp_path: Path
) -> None:
    assert command_line(*OFFLINE).returncode == 0
    log_of(only_cell(tmp_path / "multirun"))
    assert sync(command_line).returncode == 0
    (run,) = server.runs.values()
    history = run.lines["wandb-history.jsonl"]
    run.lines["wandb-history.jsonl"] = {line: history[line] for line in sorted(history)[:5]}
    run.lines.pop("wandb-summary.json")
    run.exit_code = None
    assert "1 uploaded" in sync(command_line).stdout
    assert_whole(run)


@pytest.mark.long
def test_a_run_that_was_killed_goes_on_offline_and_is_uploaded_once(
    command_line: CommandLine, server: Server, tmp_path: Path
) -> None:
    arguments = (*OFFLINE, "trainer.max_epochs=40")
    cell = killed(tmp_path, *arguments)

    assert "1 uploaded" in sync(command_line).stdout
    (run,) = server.runs.values()
    assert (run.summary["status"], run.exit_code) == ("interrupted", 1)

    assert command_line(*arguments).returncode == 0
    attempts = description(cell)["attempts"]
    assert attempts[1]["resumed_from_epoch"] >= 2
    assert len({attempt["wandb_id"] for attempt in attempts}) == 1
    log = log_of(cell)
    rows = [log.rows[step] for step in sorted(log.rows)]
    assert [row["epoch"] for row in rows if VALUE in row] == list(range(41))
    assert "1 uploaded" in sync(command_line).stdout
    assert_every_epoch(run, epochs=40)
    assert "1 already there" in sync(command_line).stdout


@pytest.mark.long
def test_a_run_that_goes_on_offline_has_it_all(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        stop_at(patched, 11, KeyboardInterrupt())
        assert command_line(*OFFLINE).returncode == 130
    assert command_line(*OFFLINE).returncode == 0
    cell = only_cell(tmp_path / "multirun")
    assert_whole_on_disk(log_of(cell), epochs=2)
    assert len(list(cell.glob("wandb/earlier/offline-run-*"))) == 1


@pytest.mark.slow
def test_a_cell_that_is_being_trained_is_left_alone(
    command_line: CommandLine, server: Server, tmp_path: Path
) -> None:
    assert command_line(*OFFLINE).returncode == 0
    cell = only_cell(tmp_path / "multirun")
    log_of(cell)
    with hold_lease(cell):
        synced = sync(command_line)
    assert "1 run: 1 running" in synced.stdout
    assert not server.runs


@pytest.mark.long
def test_each_job_of_joblib_is_a_whole_run(server: Server, tmp_path: Path) -> None:
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    subprocess.run(
        [sys.executable, "-m", "bnstudy.train", *RUN, *launcher, "norm=batchnorm,none", "-m"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        check=True,
    )
    assert len(server.runs) == 2
    for run in server.runs.values():
        assert_whole(run)


@pytest.mark.slow
def test_the_report_page_is_a_run_of_its_own(
    command_line: CommandLine, server: Server, tmp_path: Path
) -> None:
    assert command_line(*OFFLINE).returncode == 0
    log_of(only_cell(tmp_path / "multirun"))
    page = tmp_path / "multirun" / "mnist5k_cnn" / "report" / "index.html"
    page.parent.mkdir()
    page.write_text("<!doctype html><title>A study</title>")
    assert sync(command_line).returncode == 0
    (run,) = (run for run in server.runs.values() if run.job_type == "report")
    assert (run.group, run.exit_code) == ("mnist5k_cnn", 0)
    (artifact,) = (a for a in server.artifacts.values() if a["artifactTypeName"] == "report")
    assert artifact["state"] == "COMMITTED"
    assert page.read_bytes() in server.storage.values()
    assert "report/index.html: already there" in sync(command_line).stdout
