"""Runs with the real SDK online, against a local server."""

from pathlib import Path
from typing import Any

import pytest

from bnstudy.callbacks import Recorder
from bnstudy.tracking.wandb_run import warn_once
from tests.conftest import DIVERGING, CommandLine, description, only_cell
from tests.tracking.runs import (
    RUN,
    assert_every_epoch,
    assert_whole,
    killed,
    stop_at,
    sync,
    table,
)
from tests.tracking.server import KEY, Server


@pytest.mark.slow
def test_a_run_is_there_whole(command_line: CommandLine, server: Server, tmp_path: Path) -> None:
    result = command_line(*RUN, "logger.checkpoint=true")
    assert result.returncode == 0, result.stderr
    assert "wandb" not in (result.stdout + result.stderr).lower()
    cell = only_cell(tmp_path / "multirun")
    (run,) = server.runs.values()
    assert_whole(run)
    assert (run.project, run.group, run.name) == ("bnstudy", "mnist5k_cnn", cell.name)
    assert (run.job_type, run.tags) == ("train", ["batchnorm", "cnn", "mnist5k"])
    config = {key: value["value"] for key, value in run.config.items() if key != "_wandb"}
    assert config | {"callbacks": {}} == description(cell)["config"]  # W&B leaves empty ones out
    columns, rows = table(run, "representations_table")
    assert columns == ["layer", "epoch", "split", "metric", "value"]
    at_the_end = [
        value
        for _, epoch, split, metric, value in rows
        if (epoch, split, metric) == (2, "train", "silhouette")
    ]
    assert run.summary["final/silhouette"] == pytest.approx(sum(at_the_end) / 2)
    made = {one["artifactTypeName"]: one for one in server.artifacts.values()}
    assert set(made) == {"run_table", "model"}
    assert made["model"]["state"] == "COMMITTED"
    checkpoint = (cell / "checkpoints" / "last.ckpt").read_bytes()
    assert checkpoint in server.storage.values()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "status", "exit_code"),
    [
        (RuntimeError("a bug"), "failed", 1),
        (KeyboardInterrupt(), "interrupted", 130),
        (SystemExit(), "interrupted", 143),  # what Lightning makes of SIGTERM
    ],
)
def test_a_run_that_stops_goes_on_in_its_run(
    command_line: CommandLine,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: str,
    exit_code: int,
) -> None:
    with monkeypatch.context() as patched:
        stop_at(patched, 11, error)
        if status == "failed":
            with pytest.raises(RuntimeError, match="a bug"):
                command_line(*RUN)
        else:
            assert command_line(*RUN).returncode == exit_code
    (run,) = server.runs.values()
    assert (run.summary["status"], run.exit_code) == (status, exit_code)
    assert run.history[-1]["trainer/global_step"] == 10  # of the second epoch, which is not done
    assert command_line(*RUN).returncode == 0
    assert list(server.runs) == [run.id]
    assert_whole(run)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_in_its_run(
    command_line: CommandLine, server: Server, tmp_path: Path
) -> None:
    arguments = (*RUN, "trainer.max_epochs=12")
    cell = killed(tmp_path, *arguments)
    (run,) = server.runs.values()
    assert run.exit_code is None  # W&B's server finds it crashed when it hears no more of it
    assert command_line(*arguments).returncode == 0
    assert description(cell)["attempts"][1]["resumed_from_epoch"] >= 2
    assert list(server.runs) == [run.id]
    assert_every_epoch(run, epochs=12)


@pytest.mark.long
def test_a_run_that_goes_on_one_epoch_earlier_is_there_whole(
    command_line: CommandLine, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        stop_at(patched, 19, KeyboardInterrupt())
        assert command_line(*RUN, "trainer.max_epochs=3").returncode == 130
    cell = only_cell(tmp_path / "multirun")
    (cell / "checkpoints" / "last.ckpt").write_bytes(b"damaged")
    assert command_line(*RUN, "trainer.max_epochs=3").returncode == 0
    assert description(cell)["attempts"][-1]["resumed_from_epoch"] == 1
    (run,) = server.runs.values()
    assert_whole(run, epochs=3)


@pytest.mark.long
def test_a_run_that_starts_over_gets_a_run_of_its_own(
    command_line: CommandLine, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        stop_at(patched, 3, KeyboardInterrupt())
        assert command_line(*RUN).returncode == 130
    assert command_line(*RUN).returncode == 0
    first, second = server.runs.values()
    assert first.summary["status"] == "interrupted"
    assert len(first.history) == 4  # before training, and three batches
    assert_whole(second)


@pytest.mark.slow
def test_a_diverged_run_is_a_result(
    command_line: CommandLine, server: Server, tmp_path: Path
) -> None:
    assert command_line(*RUN[:-1], "metrics=none", "norm=none", *DIVERGING).returncode == 0
    (run,) = server.runs.values()
    assert description(only_cell(tmp_path / "multirun"))["status"] == "diverged"
    assert (run.summary["status"], run.exit_code) == ("diverged", 0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a bad server for a second each."""
    monkeypatch.setattr("bnstudy.tracking.wandb_run.BEGIN_TIMEOUT", 1.0)
    monkeypatch.setattr("bnstudy.tracking.wandb_run.END_TIMEOUT", 1.0)
    monkeypatch.setattr("bnstudy.training.loggers._unreachable", set())
    warn_once.cache_clear()


@pytest.mark.long
def test_a_slow_server_has_the_whole_run(command_line: CommandLine, server: Server) -> None:
    server.delay = 0.3
    assert command_line(*RUN).returncode == 0
    server.delay = 0.0
    (run,) = server.runs.values()
    assert_whole(run)


@pytest.mark.long
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("bad", ["errs", "is not there"])
def test_runs_of_a_server_that_is_bad_from_the_beginning_are_uploaded_later(
    command_line: CommandLine, server: Server, bad: str
) -> None:
    if bad == "errs":
        server.errs = True
    else:
        server.go_away()
    result = command_line(*RUN, "seed=0,1", "-m")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("W&B stores these runs offline") == 1
    assert "bnstudy.dashboard sync multirun/mnist5k_cnn" in result.stderr
    assert KEY not in result.stdout + result.stderr
    if bad == "errs":
        server.errs = False
    else:
        server.start()
    assert not server.runs
    synced = sync(command_line)
    assert synced.returncode == 0, synced.stderr
    assert "2 runs: 2 uploaded" in synced.stdout
    assert len(server.cells) == 2
    for run in server.cells:
        assert_whole(run)
    again = sync(command_line)
    assert "2 runs: 2 already there" in again.stdout
    for run in server.cells:
        assert_whole(run)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("bad", [pytest.param("errs", marks=pytest.mark.long), "is not there"])
def test_a_run_whose_server_goes_bad_is_uploaded_later(
    command_line: CommandLine, server: Server, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    record = Recorder.on_train_epoch_end

    def then_bad(self: Recorder, trainer: Any, pl_module: Any) -> None:
        record(self, trainer, pl_module)
        if bad == "errs":
            server.errs = True
        else:
            server.go_away()

    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "on_train_epoch_end", then_bad)
        result = command_line(*RUN, "logger.checkpoint=true")
    assert result.returncode == 0, result.stderr
    assert "W&B's server does not answer" in result.stderr
    server.errs = False
    if bad != "errs":
        server.start()
    (run,) = server.runs.values()
    assert run.exit_code is None
    synced = sync(command_line)
    assert synced.returncode == 0, synced.stderr + synced.stdout
    assert "1 run: 1 uploaded" in synced.stdout
    assert_whole(run)
    made = {one["artifactTypeName"]: one["state"] for one in server.artifacts.values()}
    assert made == {"run_table": "COMMITTED", "model": "COMMITTED"}
    assert "1 already there" in sync(command_line).stdout
