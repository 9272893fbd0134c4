"""Uploads of runs without W&B's files, and with W&B settings from the environment."""

from pathlib import Path

import pytest

from tests.conftest import CommandLine
from tests.study.studies import Studies
from tests.tracking.runs import sync
from tests.tracking.server import Server

RUN_ID = "01234567-01234567-1"


@pytest.fixture
def study(studies: Studies) -> Path:
    """Study with one run, whose W&B folder is empty."""
    record = studies.add("batchnorm")
    (record.paths.wandb / f"offline-run-20260101_000000-{RUN_ID}").mkdir(parents=True)
    return studies.folder


@pytest.mark.slow
def test_a_run_without_a_transaction_log_is_uploaded_from_its_record(
    command_line: CommandLine, server: Server, study: Path
) -> None:
    result = sync(command_line, str(study))
    assert result.returncode == 0, result.stderr
    assert "1 run: 1 uploaded" in result.stdout
    (run,) = server.runs.values()
    assert run.id == RUN_ID
    assert (run.summary["status"], run.exit_code) == ("completed", 0)
    assert [row["epoch"] for row in run.history if "test/accuracy" in row] == [5]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"WANDB_FINISH_TIMEOUT": "0.01", "WANDB_FINISH_TIMEOUT_RAISES": "true"},
        {"WANDB_MODE": "offline"},
    ],
    ids=["timeout", "offline"],
)
def test_a_page_is_uploaded_whatever_the_environment_says(
    command_line: CommandLine,
    server: Server,
    study: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
) -> None:
    page = study / "report" / "index.html"
    page.parent.mkdir()
    page.write_text("<!doctype html><title>A study</title>")
    server.delay = 0.1
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert f"{page}: uploaded" in sync(command_line, str(study)).stdout
    (run,) = (run for run in server.runs.values() if run.job_type == "report")
    assert run.exit_code == 0
    assert page.read_bytes() in server.storage.values()
