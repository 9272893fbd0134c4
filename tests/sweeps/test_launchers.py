"""Each launcher, for real: the same records, whatever brings the jobs to their processes."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SMALL, CommandLine, description, read_rows_by_cell

RUN = (*SMALL, "model.depth=1", "metrics=fast", "norm=batchnorm,none", "-m")


def train(folder: Path, launcher: str) -> "subprocess.CompletedProcess[str]":
    """Run a sweep without OMP_NUM_THREADS, as most users do."""
    environment = {key: one for key, one in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment |= {"HOME": str(folder), "RAY_AUTH_MODE": "disabled"}  # ray writes to the home
    return subprocess.run(
        [sys.executable, "-m", "bnstudy.train", *RUN, f"hydra/launcher={launcher}"],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param("joblib", marks=pytest.mark.slow),
        pytest.param("ray", marks=pytest.mark.long),
        pytest.param("slurm_local", marks=pytest.mark.long),  # the same engine as SLURM's
    ],
)
def test_launchers_do_the_same(launcher: str, tmp_path: Path, command_line: CommandLine) -> None:
    if launcher == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    result = train(tmp_path, launcher)
    assert result.returncode == 0, result.stderr
    assert "sweep status multirun/mnist5k_cnn --watch" in result.stdout
    assert "2 completed" in result.stdout
    cells = [description(path.parent) for path in tmp_path.glob("multirun/*/*/run.json")]
    assert len({cell["attempts"][0]["pid"] for cell in cells}) == 2
    found = read_rows_by_cell(tmp_path / "multirun")
    shutil.rmtree(tmp_path / "multirun")
    assert command_line(*RUN).returncode == 0
    assert found == read_rows_by_cell(tmp_path / "multirun")

    if launcher == "joblib":
        # Not more threads than there are cores.
        assert {cell["environment"]["threads"] for cell in cells} == {1}
        failing = command_line(*RUN, "hydra/launcher=joblib", "optim.lr=0.01,-1")
        assert failing.returncode == 1
        assert "2 of 4 cells complete" in failing.stdout
        assert "2 of 4 cells failed:\noptim.lr=-1 is not allowed" in failing.stderr
