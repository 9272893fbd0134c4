"""Progress of a multirun, and the studies whose results it shows."""

from types import SimpleNamespace

import pytest
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from bnstudy.sweeps.progress import SweepProgress
from tests.conftest import QUICK, CommandLine


@pytest.mark.slow
def test_jobs_are_counted_and_the_time_left_told(command_line: CommandLine) -> None:
    result = command_line(*QUICK, "norm=batchnorm,none", "seed=range(2)", "-m")
    assert result.returncode == 0, result.stderr
    heads = [line for line in result.stdout.splitlines() if line.startswith("Cell ")]
    assert [head.split(":")[0] for head in heads] == [f"Cell {n} of 4" for n in (1, 2, 3, 4)]
    assert "left" not in heads[0]
    assert "about 0:00:0" in heads[3]


def test_the_time_left_is_that_of_the_relaunched_cells(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("bnstudy.sweeps.progress.time", SimpleNamespace(monotonic=lambda: now))
    progress = SweepProgress()
    for total in (3, 1):  # the worker of one of three cells died
        monkeypatch.setattr(SweepProgress, "total", total)
        for number in range(total):
            config = OmegaConf.create(
                {"hydra": {"job": {"num": number}, "overrides": {"task": ["seed=0"]}}}
            )
            progress.on_job_start(config)
            now += 10
            trained = SimpleNamespace(has_trained=True)
            progress.on_job_end(config, JobReturn(_return_value=trained))
    times = [line.partition(" · ")[2] for line in capsys.readouterr().out.splitlines()]
    assert times == ["", "about 0:00:20 left", "about 0:00:10 left", "about 0:00:10 left"]


@pytest.mark.slow
def test_a_sweep_over_studies_shows_each(command_line: CommandLine) -> None:
    assert command_line(*QUICK, "study=before").returncode == 0
    result = command_line(*QUICK, "study=one,two", "-m")
    assert "multirun/one/ (1 run: 1 completed" in result.stdout
    assert "multirun/two/ (1 run: 1 completed" in result.stdout
    assert "before" not in result.stdout
