"""Notes of jobs that are submitted and not waited for."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bnstudy.sweeps import detached
from bnstudy.sweeps.detached import JOBS, submit


class Launcher:
    """A launcher whose jobs are numbered by the cells' names."""

    params: dict[str, Any] = {}  # noqa: RUF012

    def launch(self, jobs: list[list[str]], first: int) -> list[str]:
        return [f"{name}_0" for (name,) in jobs]


def cells(study: Path, *names: str) -> Any:
    return [SimpleNamespace(folder=study / name, overrides=(name,)) for name in names]


def test_jobs_stay_noted_if_the_page_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(command: list[str], **options: Any) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="sbatch: error:\nno such partition")

    monkeypatch.setattr(detached.subprocess, "run", refuse)
    submit(cells(tmp_path, "11", "12"), Launcher())  # type: ignore[arg-type]
    assert json.loads((tmp_path / JOBS).read_text()) == {"11": "11_0", "12": "12_0"}
    printed = capsys.readouterr().out
    assert "does not take the job of the page (sbatch: error: no such partition)" in printed
    assert "Submitted 2 jobs for cells and 0 for pages" in printed


def test_commands_at_once_note_all_their_jobs(tmp_path: Path) -> None:
    names = [str(number) for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        for _ in threads.map(lambda name: detached._add_jobs(tmp_path, {name: name}), names):
            pass
    assert sorted(json.loads((tmp_path / JOBS).read_text())) == sorted(names)
