"""A complete cell is complete for the data that it was trained on."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bnstudy.data import ImageFolder
from tests.conftest import (
    QUICK,
    CommandLine,
    Result,
    assert_trains_without_torch,
    description,
    only_cell,
    write_images,
)

ARGUMENTS = (
    *("data=image_folder", "data.cache=cache", *QUICK),
    *("data.batch_size=4", "probe.train=12", "probe.test=12"),
)
GRID = (*ARGUMENTS, "norm=batchnorm,none", "-m")


@pytest.fixture
def trained(command_line: CommandLine, tmp_path: Path) -> Callable[..., Result]:
    """A cell is trained on A/images; returns the command line with other arguments."""
    write_images(tmp_path / "A" / "images", seed=0)
    write_images(tmp_path / "B" / "images", seed=1)
    result = command_line(*ARGUMENTS, "data.root=A/images")
    assert result.returncode == 0, result.stderr
    return command_line


def refused(result: Result, *words: str) -> None:
    assert result.returncode == 1
    what, todo = result.stderr.splitlines()
    for word in ("not the images that multirun/image_folder_cnn/batchnorm-depth1", *words):
        assert word in what
    assert "study=NAME" in todo
    assert "complete" not in result.stdout


@pytest.mark.slow
def test_another_folder_of_the_same_name_is_refused(trained: CommandLine, tmp_path: Path) -> None:
    for more in ((), ("norm=batchnorm,none", "-m"), ("-m", "sweep.dry_run=true")):
        refused(
            trained(*ARGUMENTS, "data.root=B/images", *more),
            "data.root=B/images", "data.root=A/images",
        )  # fmt: skip
    only_cell(tmp_path / "multirun")  # no other was begun
    assert "1 of 2 cells complete" in trained(*GRID, "data.root=A/images").stdout
    elsewhere = trained(*GRID, "data.root=B/images", "study=other")
    assert elsewhere.returncode == 0, elsewhere.stderr
    anew = trained(*GRID, "data.root=B/images", "sweep.redo=all")
    assert anew.returncode == 0, anew.stderr
    (cell,) = tmp_path.glob("multirun/image_folder_cnn/batchnorm-*")
    assert description(cell)["config"]["data"]["root"] == "B/images"


@pytest.mark.slow
def test_files_that_are_added_or_changed_are_refused_until_they_are_put_back(
    trained: CommandLine, tmp_path: Path
) -> None:
    path = tmp_path / "A" / "images" / "test" / "ant" / "0.bmp"
    before = path.read_bytes()
    added = path.with_name("added.bmp")
    added.write_bytes(before)
    refused(trained(*GRID, "data.root=A/images"), "data.root=A/images: not the images")
    added.unlink()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 255]))
    refused(trained(*ARGUMENTS, "data.root=A/images"))
    path.write_bytes(before)
    again = trained(*GRID, "data.root=A/images")
    assert "1 of 2 cells complete, 0 to resume, 1 to run" in again.stdout, again.stderr


@pytest.mark.slow
def test_a_complete_cell_stays_complete_without_its_data(
    trained: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "A").rename(tmp_path / "elsewhere")
    assert trained(*ARGUMENTS, "data.root=A/images").returncode == 0
    result = trained(*ARGUMENTS, "data.root=A/images", "-m")
    assert result.returncode == 0, result.stderr
    assert "1 of 1 cells complete" in result.stdout


@pytest.mark.slow
def test_data_that_are_not_there_are_reported_once_before_launching(
    command_line: CommandLine, tmp_path: Path
) -> None:
    result = command_line(*GRID, "data.root=lost/images", "seed=0,1")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 2
    assert "data.root=lost/images: there is no folder" in result.stderr
    assert "Cell 1 of" not in result.stdout
    assert not list(tmp_path.glob("multirun/*/*/"))


@pytest.mark.slow
def test_no_result_is_removed_for_want_of_data(
    trained: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "A").rename(tmp_path / "elsewhere")
    result = trained(*ARGUMENTS, "data.root=A/images", "sweep.redo=all", "-m")
    assert result.returncode == 1
    assert "there is no folder" in result.stderr
    assert description(only_cell(tmp_path / "multirun"))["status"] == "completed"


@pytest.mark.slow
def test_an_interrupted_cell_is_not_gone_on_with(trained: CommandLine, tmp_path: Path) -> None:
    (only_cell(tmp_path / "multirun") / "metrics.parquet").unlink()
    refused(trained(*GRID, "data.root=B/images"))


@pytest.mark.slow
def test_the_files_of_a_data_set_are_listed_once_per_sweep(
    trained: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trained(*GRID, "data.root=A/images", "seed=0,1").returncode == 0
    scanned: list[str] = []
    from bnstudy.data import contents

    find = contents.ImageTree.scan
    monkeypatch.setattr(
        contents.ImageTree, "scan", lambda root: (scanned.append(str(root)), find(root))[1]
    )
    with monkeypatch.context() as patch:
        patch.setattr(ImageFolder, "load", None)
        result = trained(*GRID, "data.root=A/images", "seed=0,1")
    assert "4 of 4 cells complete" in result.stdout, result.stderr
    assert len(scanned) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("trained")
def test_complete_cells_are_recognized_without_torch(tmp_path: Path) -> None:
    assert_trains_without_torch(tmp_path, *ARGUMENTS, "data.root=A/images")
