"""Status of sweeps, read from the study's folder alone."""

import shutil
from pathlib import Path

import pytest

from bnstudy.runs.lease import hold_lease
from bnstudy.sweep import main as sweep_main
from tests.conftest import QUICK, CommandLine, description, edit_description

RUN = (*QUICK, "study=quick", "-m")


@pytest.mark.slow
def test_every_state_is_told(command_line: CommandLine, tmp_path: Path) -> None:
    assert command_line(*RUN, "norm=batchnorm,none", "seed=0,1").returncode == 0
    study = tmp_path / "multirun" / "quick"
    done = command_line("status", "multirun/quick", main=sweep_main)
    assert done.returncode == 0
    assert done.stdout == "multirun/quick: 4 cells: 4 completed\n"

    running, failed, gone, diverged = sorted(path.parent for path in study.glob("*/run.json"))
    attempt = description(failed)["attempts"][0]
    edit_description(running, status="running", final={})
    failures = [attempt | {"error": "ValueError: one\nline two"}] * 2
    edit_description(failed, status="failed", attempts=failures)
    shutil.rmtree(gone)
    edit_description(diverged, status="diverged")
    (running / "metrics").mkdir()
    for epoch in (0, 1):
        (running / "metrics" / f"epoch={epoch:04d}.parquet").touch()
    with hold_lease(running):
        output = command_line("status", "multirun/quick", main=sweep_main).stdout
    head = "multirun/quick: 4 cells: 1 diverged, 1 running, 1 failed, 1 not begun\n"
    assert output.startswith(head)
    assert "1/2" in output
    assert f"process {attempt['pid']}" in output
    assert "line two" in output
    assert "ValueError" not in output
    assert "about 0:00:0" in output
    # Whoever held the lease is gone: it was interrupted.
    output = command_line("status", "multirun/quick", main=sweep_main).stdout
    assert "1 diverged, 1 interrupted, 1 failed, 1 not begun" in output
    (running / "run.json").write_text("{")
    output = command_line("status", "multirun/quick", main=sweep_main).stdout
    assert "1 damaged" in output


def test_mistakes_are_told(command_line: CommandLine) -> None:
    result = command_line("status", "nowhere", main=sweep_main)
    assert result.returncode == 1
    assert result.stderr.startswith("nowhere: no study is there")
    result = command_line("status", "nowhere", "--watch", "0", main=sweep_main)
    assert result.returncode == 2
    assert "at least 0.1" in result.stderr


@pytest.mark.slow
def test_it_is_shown_anew_until_it_is_stopped(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command_line(*RUN).returncode == 0
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("bnstudy.sweep.time.sleep", wait)
    result = command_line("status", "multirun/quick", "--watch", "5", main=sweep_main)
    assert result.returncode == 0
    assert waits == [5.0] * 3
    assert "1 completed" in result.stdout
