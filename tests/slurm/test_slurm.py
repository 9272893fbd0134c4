"""A sweep on a real SLURM of two nodes, through whatever happens to its jobs."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bnstudy.errors import UserError
from bnstudy.runs.record import Record
from tests.conftest import SMALL, CommandLine, read_rows_by_cell

CLUSTER = Path(__file__).parent / "cluster.sh"

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("slurmctld") or not shutil.which("munged"),
        reason="needs root and the packages slurm-wlm and munge",
    ),
]

RUN = (*SMALL, "metrics=none", "trainer.max_epochs=40", "norm=batchnorm,none")

Environment = dict[str, str]
Disturbance = Callable[[Record, Environment], None]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """Environment of a process that speaks to the cluster."""
    folder = tmp_path_factory.mktemp("cluster")
    subprocess.run([CLUSTER, "start", folder], check=True, stdout=subprocess.DEVNULL)
    try:
        yield {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{CLUSTER.parent / 'bin'}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
    finally:
        subprocess.run([CLUSTER, "stop", folder], check=True)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "bnstudy.train", *arguments, "-m"]


def running(study: Path, disturbed: set[str]) -> Record | None:
    """A cell in the midst of its training that nothing has happened to."""
    for path in study.glob("*/run.json"):
        try:
            record = Record.read(path.parent)
        except UserError:
            continue
        epochs = len(list(path.parent.glob("metrics/epoch=*.parquet")))
        if (
            record.description.status == "running"
            and 2 < epochs < 30
            and path.parent.name not in disturbed
        ):
            return record
    return None


def slurm(cluster: Environment, *words: str) -> None:
    subprocess.run(words, env=cluster, check=True, capture_output=True)


def job_of(record: Record) -> str:
    job = record.description.attempts[-1].slurm
    assert job
    return job.job


def process_of(record: Record) -> int:
    pid = record.description.attempts[-1].pid
    assert pid
    return pid


def requeue(record: Record, cluster: Environment) -> None:
    shown = subprocess.run(
        ["squeue", "--noheader", "--format=%A %i"],
        env=cluster, capture_output=True, text=True, check=True,
    )  # fmt: skip
    task_of = dict(line.split() for line in shown.stdout.splitlines())
    slurm(cluster, "scontrol", "requeue", task_of[job_of(record)])


def kill(record: Record, cluster: Environment) -> None:
    os.kill(process_of(record), signal.SIGKILL)


def time_out(record: Record, cluster: Environment) -> None:
    """Send the signal that SLURM sends when a job's time is almost over."""
    os.kill(process_of(record), signal.SIGUSR2)


def lose_node(record: Record, cluster: Environment) -> None:
    """Nothing of the node answers any more, and all that ran there is dead; later it is back."""
    shown = subprocess.run(
        ["squeue", "--noheader", "--states=running", "--format=%A %N"],
        env=cluster, capture_output=True, text=True, check=True,
    )  # fmt: skip
    node_of = dict(line.split() for line in shown.stdout.splitlines())
    node = node_of[job_of(record)]
    daemon = Path(cluster["SLURM_CONF"]).parent / "run" / f"slurmd.{node}.pid"
    os.kill(int(daemon.read_text()), signal.SIGKILL)
    jobs = [job for job, of in node_of.items() if of == node]
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            environment = (process / "environ").read_bytes().split(b"\0")
            command = (process / "cmdline").read_bytes()
            if any(
                f"SLURM_JOB_ID={job}".encode() in environment
                or command.startswith(f"slurmstepd: [{job}.".encode())
                for job in jobs
            ):
                os.kill(int(process.name), signal.SIGKILL)
    daemon.unlink()
    subprocess.run(["slurmd", "-N", node], env=cluster, check=True)


@pytest.mark.parametrize(
    ("seeds", "disturbances"),
    [
        pytest.param("0", [requeue, kill], marks=pytest.mark.slow, id="two cells"),
        pytest.param(
            "0,1,2,3",
            [requeue, kill, time_out, lose_node, kill],
            marks=pytest.mark.long,
            id="eight cells",
        ),
    ],
)
def test_a_sweep_ends_with_the_undisturbed_tables_whatever_happens_to_its_jobs(
    cluster: Environment,
    command_line: CommandLine,
    tmp_path: Path,
    seeds: str,
    disturbances: list[Disturbance],
) -> None:
    run = (*RUN, f"seed={seeds}")
    is_each_alone = lose_node not in disturbances  # a node may run several cells
    disturbances = disturbances.copy()
    assert command_line(*run, "-m").returncode == 0
    study = tmp_path / "multirun" / "mnist5k_cnn"
    study.rename(tmp_path / "undisturbed")
    with (tmp_path / "output.txt").open("w") as output:
        sweep = subprocess.Popen(
            command(*run, "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1"),
            cwd=tmp_path, env=cluster, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    disturbed: set[str] = set()
    while sweep.poll() is None:
        if disturbances and (record := running(study, disturbed)):
            disturbances.pop(0)(record, cluster)
            disturbed.add(record.folder.name)
        time.sleep(0.1)
    told = (tmp_path / "output.txt").read_text()
    assert sweep.returncode == 0, told
    assert not disturbances, told
    assert read_rows_by_cell(study) == read_rows_by_cell(tmp_path / "undisturbed")
    for name in disturbed:
        record = Record.read(study / name)
        assert record.description.status == "completed"
        first, *others = record.description.attempts
        assert first.status == "interrupted"
        assert others
        assert len(others) == 1 or not is_each_alone
        assert others[-1].status == "completed"
        assert (others[-1].resumed_from_epoch or 0) >= 1  # killed between a part and its checkpoint

    again = command_line(*run, "hydra/launcher=slurm", "-m")
    assert again.returncode == 0
    assert "cells complete, 0 to resume, 0 to run" in again.stdout


@pytest.mark.long
def test_failures_and_logs_are_told(cluster: Environment, tmp_path: Path) -> None:
    arguments = [*SMALL, "metrics=none", "norm=batchnorm", "model.depth=1,9"]
    result = subprocess.run(
        command(*arguments, "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1"),
        cwd=tmp_path, env=cluster, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 1
    assert "1 of 2 cells are not finished: 1 failed" in result.stderr
    assert "model.depth=9" in result.stdout
    assert "1 completed" in result.stdout


@pytest.mark.slow
def test_a_detached_sweep_is_left_and_collected(cluster: Environment, tmp_path: Path) -> None:
    def call() -> "subprocess.CompletedProcess[str]":
        options = ["metrics=fast", "norm=batchnorm,none", "hydra.launcher.detach=true"]
        slurm_options = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1"]
        return subprocess.run(
            command(*SMALL, *options, *slurm_options, "hydra.launcher.mem_gb=1"),
            cwd=tmp_path, env=cluster, capture_output=True, text=True,
        )  # fmt: skip

    study = tmp_path / "multirun" / "mnist5k_cnn"
    first = call()
    assert first.returncode == 0, first.stderr
    assert "Submitted 2 jobs for cells and 1 for pages" in first.stdout
    assert not list(study.glob("*/metrics.parquet"))  # it has not waited
    again = call()
    assert again.returncode == 0, again.stderr
    assert "Submitted" not in again.stdout
    assert "Collect" in again.stdout
    deadline = time.monotonic() + 240
    while not (study / "report" / "index.html").exists():
        assert time.monotonic() < deadline, list(study.glob(".slurm/**/*"))
        time.sleep(0.5)
    assert len(list(study.glob("*/metrics.parquet"))) == 2
    collected = call()
    assert collected.returncode == 0, collected.stderr
    assert "2 of 2 cells complete" in collected.stdout
    assert "2 runs: 2 completed" in collected.stdout


def test_a_search_cannot_be_detached(command_line: CommandLine) -> None:
    pytest.importorskip("optuna")
    result = command_line(
        *SMALL, "hydra/sweeper=optuna", "data.validation=0.1", "hydra/launcher=slurm",
        "hydra.launcher.detach=true", "-m",
    )  # fmt: skip
    assert result.returncode == 1
    assert "hydra.launcher.detach=true is not possible with hydra/sweeper=optuna" in result.stderr
