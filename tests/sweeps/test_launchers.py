"""Each launcher, for real: the same records, whatever brings the jobs to their processes."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import SMALL, description

RUN = ("model.depth=1", *SMALL[1:], "metrics=fast", "norm=batchnorm,none", "-m")


def train(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    home = {"HOME": str(folder), "RAY_AUTH_MODE": "disabled"}  # ray writes to the home folder
    return subprocess.run(
        [sys.executable, "-m", "bnstudy.train", f"output_root={folder}", *RUN, *arguments],
        cwd=folder, env={**os.environ, **home}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip


def tables(folder: Path) -> dict[str, Any]:
    return {
        path.parent.name: pq.read_table(path).to_pylist()
        for path in folder.glob("*/*/metrics.parquet")
    }


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the default launcher's jobs come to."""
    folder = tmp_path_factory.mktemp("basic")
    os.environ["OMP_NUM_THREADS"] = "1"
    assert train(folder).returncode == 0
    return tables(folder)


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param("joblib", marks=pytest.mark.slow),
        pytest.param("ray", marks=pytest.mark.slow),
        pytest.param("slurm_local", marks=pytest.mark.long),  # the same engine as SLURM's
    ],
)
def test_launchers_do_the_same(launcher: str, basic: dict[str, Any], tmp_path: Path) -> None:
    if launcher == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    result = train(tmp_path, f"hydra/launcher={launcher}")
    assert result.returncode == 0, result.stderr
    assert "2 completed" in result.stdout
    assert tables(tmp_path) == basic
    pids = {
        description(path.parent)["attempts"][0]["pid"] for path in tmp_path.glob("*/*/run.json")
    }
    assert os.getpid() not in pids
    assert len(pids) > 1

    if launcher == "joblib":  # it costs a while
        result = train(tmp_path, f"hydra/launcher={launcher}", "optim.lr=0.01,-1")
        assert result.returncode == 1
        assert "2 of 4 cells complete" in result.stdout
        assert "2 of 4 cells have not ended: 2 failed" in result.stderr


@pytest.mark.slow
def test_joblib_does_not_ask_for_more_threads_than_there_are_cores(tmp_path: Path) -> None:
    environment = {key: one for key, one in os.environ.items() if key != "OMP_NUM_THREADS"}
    subprocess.run(
        [sys.executable, "-m", "bnstudy.train", *RUN, "hydra/launcher=joblib"],
        cwd=tmp_path, env=environment, check=True, capture_output=True,
    )  # fmt: skip
    for path in tmp_path.glob("multirun/*/*/run.json"):
        assert description(path.parent)["environment"]["threads"] == 1
