"""What a multirun shows of its progress, and which studies it came to."""

from pathlib import Path

import pytest

from tests.conftest import SMALL, CommandLine

QUICK = ("metrics=none", "model.depth=1", *SMALL[1:])


@pytest.mark.slow
def test_jobs_are_counted_and_the_time_left_told(command_line: CommandLine) -> None:
    result = command_line(*QUICK, "norm=batchnorm,none", "seed=range(2)", "-m")
    assert result.returncode == 0, result.stderr
    heads = [line for line in result.stdout.splitlines() if line.startswith("Cell ")]
    assert [head.split(":")[0] for head in heads] == [f"Cell {n} of 4" for n in (1, 2, 3, 4)]
    assert "left" not in heads[0]
    assert "about 0:00:0" in heads[3]


@pytest.mark.slow
def test_a_sweep_over_studies_shows_each(command_line: CommandLine, tmp_path: Path) -> None:
    assert command_line(*QUICK, "study=before").returncode == 0
    result = command_line(*QUICK, "study=one,two", "-m")
    assert "multirun/one/ (1 run: 1 completed" in result.stdout
    assert "multirun/two/ (1 run: 1 completed" in result.stdout
    assert "before" not in result.stdout
