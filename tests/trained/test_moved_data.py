"""Tests that finished runs are measured with data that have moved since training."""

from pathlib import Path

import pytest

from bnstudy import measure
from tests.conftest import CommandLine, Result, only_cell, write_images
from tests.sweeps.test_other_data import ARGUMENTS

HOW = ("--samples", "8")


@pytest.fixture
def moved(command_line: CommandLine, tmp_path: Path) -> Path:
    """A run of images that have moved from A to B since."""
    write_images(tmp_path / "A" / "images", seed=0)
    result = command_line(*ARGUMENTS, "data.root=A/images")
    assert result.returncode == 0, result.stderr
    (tmp_path / "A").rename(tmp_path / "B")
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    return only_cell(tmp_path / "multirun")


def succeeded(result: Result) -> None:
    assert result.returncode == 0, result.stderr + result.stdout


@pytest.mark.slow
def test_the_folder_of_moved_data_can_be_given(
    moved: Path, command_line: CommandLine, tmp_path: Path
) -> None:
    cell, root = str(moved), "data.root=B/images"
    names = "metrics.names=[hoyer]"
    lost = command_line(cell, names, main=measure.main)
    assert lost.returncode == 1
    assert "data.root=A/images: there is no folder" in lost.stdout
    for arguments in (
        (cell, names, root),
        ("similarity", cell, root, *HOW),
        ("map", root, cell, *HOW),
    ):
        succeeded(command_line(*arguments, main=measure.main))
    assert (moved / "maps.parquet").exists()
    write_images(tmp_path / "C" / "images", seed=1)
    other = command_line(cell, "metrics.names=[dunn]", "data.root=C/images", main=measure.main)
    assert other.returncode == 1
    assert "data.root=C/images: not the images that" in other.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("moved")
def test_the_training_command_with_more_metrics_finds_moved_data(command_line: CommandLine) -> None:
    more = [word for word in ARGUMENTS if word != "metrics=none"]
    result = command_line(*more, "metrics.names=[hoyer]", "data.root=B/images")
    succeeded(result)
    assert "measured from checkpoints: hoyer of epoch" in result.stdout


@pytest.mark.slow
def test_moved_digits_are_found_by_the_environment_variable(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BNSTUDY_DATA", str(tmp_path / "A"))
    small = [word for word in ARGUMENTS[2:] if not word.startswith(("data.", "probe."))]
    succeeded(command_line(*small, "probe.train=40", "probe.test=40"))
    (tmp_path / "A").rename(tmp_path / "B")
    monkeypatch.setenv("BNSTUDY_DATA", str(tmp_path / "B"))
    cell = only_cell(tmp_path / "multirun")
    succeeded(command_line(str(cell), "metrics.names=[hoyer]", main=measure.main))
    assert not (tmp_path / "A").exists()
