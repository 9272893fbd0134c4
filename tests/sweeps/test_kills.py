"""Killed at any moment and begun again, a sweep ends as if it had not been."""

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bnstudy.train import main
from tests.conftest import SMALL, description, read_rows_by_cell

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RUN = (*SMALL, "model.depth=1", "metrics=fast", "trainer.max_epochs=6")
RUN = (*RUN, "norm=batchnorm,none", "seed=0,1", "-m")

# Forks a process that has imported everything, and has no threads yet.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["bnstudy.training.build", __name__])


def sweep(folder: Path) -> None:
    """`python -m bnstudy.train`."""
    os.chdir(folder)
    os.setsid()
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    sys.argv = ["bnstudy", *RUN]
    main()


def start(folder: Path) -> Any:
    process = PROCESSES.Process(target=sweep, args=(folder,))
    process.start()
    return process


@pytest.mark.parametrize("count", [8, pytest.param(20, marks=pytest.mark.long)])
def test_a_sweep_that_is_killed_at_random_ends_with_the_undisturbed_tables(
    tmp_path: Path, count: int
) -> None:
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    process = start(undisturbed)
    began = time.monotonic()
    process.join()
    whole = time.monotonic() - began
    assert process.exitcode == 0, (undisturbed / "log.txt").read_text()

    chance = random.Random(count)
    kills = 0
    while kills < count:  # a sweep that is complete before the last kill is followed by another
        killed = tmp_path / f"killed after {kills}"
        killed.mkdir()
        process = start(killed)
        while kills < count and process.is_alive():
            process.join(chance.uniform(0.05, whole / 6))
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                kills += 1
                process = start(killed)
        process.join()
        assert process.exitcode == 0, (killed / "log.txt").read_text()
        assert_whole_and_equal(killed, undisturbed)


def assert_whole_and_equal(killed: Path, undisturbed: Path) -> None:
    rows = read_rows_by_cell(killed)
    assert rows == read_rows_by_cell(undisturbed)
    assert len(rows) == 4
    for path in killed.glob("multirun/*/*/run.json"):
        run = description(path.parent)
        assert run["status"] == "completed"
        assert [one["status"] for one in run["attempts"][:-1]] == ["interrupted"] * (
            len(run["attempts"]) - 1
        )
        left = {one.name for one in path.parent.iterdir() if not one.name.startswith(".")}
        assert left == {"run.json", "metrics.parquet", "checkpoints"}
        assert not list(path.parent.rglob("*.tmp"))
        assert [one.name for one in (path.parent / "checkpoints").iterdir()] == ["last.ckpt"]
