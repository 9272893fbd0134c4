"""Multiruns: which cells run, and which results and failures are printed."""

import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from bnstudy.errors import UserError
from bnstudy.runs.lease import hold_lease
from bnstudy.sweeps.multirun import QUEUED, _raise_unfinished
from tests.conftest import DIVERGING, QUICK, SMALL, CommandLine, description, edit_description

RUN = (*QUICK, "study=quick")
FOUR = (*RUN, "norm=batchnorm,none", "seed=0,1")


@pytest.fixture
def study(shared_folder: Path, command_line: CommandLine, tmp_path: Path) -> Path:
    """A study with the four cells, complete."""
    if not (shared_folder / "multirun").exists():
        assert command_line(*FOUR, "-m").returncode == 0
        shutil.move(tmp_path / "multirun", shared_folder)
    shutil.copytree(shared_folder / "multirun", tmp_path / "multirun")
    return tmp_path / "multirun" / "quick"


def cell_of(study: Path, name: str) -> Path:
    (cell,) = study.glob(f"{name}-*/")
    return cell


def attempts(study: Path) -> dict[str, int]:
    return {
        path.parent.name.rpartition("-")[0]: len(description(path.parent)["attempts"])
        for path in sorted(study.glob("*/run.json"))
    }


@pytest.mark.slow
def test_only_what_is_missing_runs(study: Path, command_line: CommandLine) -> None:
    before = attempts(study)
    result = command_line(*FOUR, "-m")
    assert result.returncode == 0
    assert "4 of 4 cells complete, 0 to resume, 0 to run\n" in result.stdout
    assert "Cell " not in result.stdout
    assert "2 seeds" in result.stdout  # the comparison is shown all the same
    assert attempts(study) == before

    shutil.rmtree(cell_of(study, "none-depth1-width4-seed1"))
    edit_description(cell_of(study, "none-depth1-width4-seed0"), status="interrupted")
    result = command_line(*FOUR, "norm=batchnorm,none,groupnorm", "-m")
    assert result.returncode == 0, result.stderr
    assert "2 of 6 cells complete, 1 to resume, 3 to run\n" in result.stdout
    assert "Cell 4 of 4:" in result.stdout
    assert "Cell 5" not in result.stdout
    assert set(attempts(study).values()) == {1, 2}
    assert sum(attempts(study).values()) == 7


@pytest.mark.slow
def test_a_dry_run_lists_and_estimates(study: Path, command_line: CommandLine) -> None:
    before = sorted(study.rglob("*"))
    result = command_line(*FOUR, "seed=0,1,2", "sweep.dry_run=true", "-m")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "4 of 6 cells complete, 0 to resume, 2 to run"
    assert [line.split()[:2] for line in lines[1:3]] == [["to", "run"], ["to", "run"]]
    assert "multirun/quick/none-depth1-width4-seed2-" in lines[2]
    assert lines[2].endswith("  2 epochs")
    assert lines[3].startswith("about 0:00:0")
    assert lines[3].endswith(" of work left")
    assert sorted(study.rglob("*")) == before
    result = command_line(*FOUR, "study=new", "sweep.dry_run=true", "-m")
    assert "not known before the first cell is complete" in result.stdout
    assert not (study.parent / "new").exists()
    more = "metrics.names=[hoyer,mean]"
    result = command_line(*FOUR, more, "seed=0", "sweep.dry_run=true", "-m")
    assert result.stdout.count("from checkpoints, no training") == 2
    assert "work left" not in result.stdout
    result = command_line(*FOUR, "sweep.redo=all", "sweep.dry_run=true", "-m")
    assert result.stdout.count("  2 epochs\n") == 4


@pytest.mark.slow
def test_redo_runs_diverged_or_all_cells_again(study: Path, command_line: CommandLine) -> None:
    diverged = cell_of(study, "none-depth1-width4-seed1")
    table = pq.read_table(diverged / "metrics.parquet")
    edit_description(diverged, status="diverged")
    assert "4 of 4 cells complete (1 diverged)," in command_line(*FOUR, "-m").stdout
    result = command_line(*FOUR, "sweep.redo=diverged", "-m")
    assert "3 of 4 cells complete, 0 to resume, 1 to run\n" in result.stdout
    assert attempts(study)["none-depth1-width4-seed1"] == 2
    assert description(diverged)["attempts"][1]["resumed_from_epoch"] is None
    assert pq.read_table(diverged / "metrics.parquet").equals(table)

    result = command_line(*FOUR, "sweep.redo=all", "-m")
    assert "0 of 4 cells complete, 0 to resume, 4 to run\n" in result.stdout
    assert sorted(attempts(study).values()) == [2, 2, 2, 3]

    (diverged / "run.json").write_text("{")
    result = command_line(*FOUR, "sweep.redo=all", "-m")
    assert result.returncode == 0, result.stderr
    assert "0 of 4 cells complete, 0 to resume, 4 to run\n" in result.stdout
    assert sorted(attempts(study).values()) == [1, 3, 3, 3]
    assert pq.read_table(diverged / "metrics.parquet").equals(table)


@pytest.mark.slow
def test_a_cell_that_failed_three_times_is_left_alone_until_asked_for(
    study: Path, command_line: CommandLine
) -> None:
    cell = cell_of(study, "none-depth1-width4-seed1")
    for path in (cell / "metrics.parquet", *(cell / "checkpoints").iterdir()):
        path.unlink()
    failed = {"started": "2026-01-01T00:00:00+00:00", "status": "failed", "error": "Boom: no"}
    edit_description(cell, status="failed", attempts=[failed] * 3)
    result = command_line(*FOUR, "-m")
    assert result.returncode == 0
    expected = "3 of 4 cells complete, 0 to resume, 0 to run, 1 skipped after 3 failures"
    assert expected in result.stdout
    assert "sweep.redo=failed runs them" in result.stdout
    assert len(description(cell)["attempts"]) == 3

    result = command_line(*FOUR, "sweep.redo=failed", "-m")
    assert result.returncode == 0
    assert description(cell)["status"] == "completed"


@pytest.mark.slow
def test_failures_are_told_and_stop_nothing(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bnstudy.training.fit import build_classifier

    def break_one(config: dict[str, Any], data: Any) -> Any:
        if config["norm"]["name"] == "batchnorm" and config["seed"] == 1:
            raise RuntimeError("a line before\nit broke")
        return build_classifier(config, data)

    with monkeypatch.context() as patched:
        patched.setattr("bnstudy.training.fit.build_classifier", break_one)
        result = command_line(*FOUR, "optim.lr=0.01,-1", "-m")
    assert result.returncode == 1
    assert "6 of 8 cells" not in result.stderr
    assert (
        "5 of 8 cells are not finished: 5 failed, 0 lost their worker or launcher" in result.stderr
    )
    table = "".join(result.stdout.split())
    assert "optim.lr=-1isnotallowed" in table
    assert "itbroke" in table
    assert "train.log" in table
    (log,) = tmp_path.glob("multirun/quick/*/train.log")
    assert "RuntimeError: a line before\nit broke" in log.read_text()
    failed = description(log.parent)
    assert failed["status"] == "failed"

    result = command_line(*FOUR, "-m")
    assert result.returncode == 0
    assert "3 of 4 cells complete, 0 to resume, 1 to run\n" in result.stdout


def test_a_cell_with_a_queued_job_is_called_queued(capsys: pytest.CaptureFixture[str]) -> None:
    cells: Any = [SimpleNamespace(folder=Path("multirun", "quick", name)) for name in "ab"]
    with pytest.raises(
        UserError, match="0 failed, 0 lost their worker or launcher, 1 still queued\n"
    ):
        _raise_unfinished(cells, {cells[1].folder: QUEUED})
    assert "b      queued" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=-1", "optim.lr=-1 is not allowed; expected a number above 0\n"),
        (
            "optim.lr=0,-1",
            "optim.lr=0 is not allowed; expected a number above 0\n"
            "optim.lr=-1 is not allowed; expected a number above 0\n",
        ),
    ],
)
def test_a_mistake_in_all_cells_is_told_once_before_any_is_launched(
    override: str, message: str, command_line: CommandLine, tmp_path: Path
) -> None:
    result = command_line(*RUN, "norm=batchnorm,none", override, "-m")
    assert (result.returncode, result.stdout, result.stderr) == (1, "", message)
    assert not list(tmp_path.glob("multirun/*/*"))


def test_cells_that_are_not_allowed_are_named_before_any_is_launched(
    command_line: CommandLine,
) -> None:
    axis = "model.depth=1,2.0"
    dry = command_line(*RUN, axis, "sweep.dry_run=true", "-m")
    assert dry.returncode == 0
    _, not_allowed, to_run = dry.stdout.splitlines()[:3]
    assert not_allowed.startswith("  not allowed multirun/quick/batchnorm-depth2.0-width4-seed0-")
    assert not_allowed.endswith(
        "  model.depth=2.0 is not allowed; expected an integer of at least 1"
    )
    assert to_run.startswith("  to run     multirun/quick/batchnorm-depth1-width4-seed0-")
    result = command_line(*RUN, axis, "-m")
    assert result.returncode == 1
    assert result.stdout.index(not_allowed) < result.stdout.index("Cell 1 of 2")


def test_a_mistake_that_only_the_data_show_is_told_once_for_all_cells(
    command_line: CommandLine,
) -> None:
    result = command_line(*QUICK, "norm=batchnorm,none", "data.shift=99", "-m")
    assert result.returncode == 1
    first, second = result.stderr.splitlines()[:2]
    assert first == "2 of 2 cells failed:"
    assert second.startswith("data.shift=99")
    assert "Repeat the command" not in result.stderr


def test_a_grid_without_cells_is_complete(command_line: CommandLine) -> None:
    result = command_line(*QUICK, "seed=range(0,0)", "-m")
    assert result.returncode == 0
    assert "0 of 0 cells complete" in result.stdout


@pytest.mark.slow
def test_a_cell_that_two_points_of_the_grid_share_runs_once(
    command_line: CommandLine, tmp_path: Path
) -> None:
    result = command_line(*RUN, "seed=0,0", "optim.weight_decay=0,0.0", "-m")
    assert result.returncode == 0, result.stderr
    assert "0 of 1 cells complete, 0 to resume, 1 to run\n" in result.stdout
    assert "Progress: python" not in result.stdout  # the basic launcher shows it here
    assert list(attempts(tmp_path / "multirun" / "quick").values()) == [1]


@pytest.mark.slow
def test_a_diverged_run_is_no_failure(command_line: CommandLine, tmp_path: Path) -> None:
    result = command_line(*RUN, "norm=none", *DIVERGING, "-m")
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("multirun/quick/*/run.json")
    assert description(path.parent)["status"] == "diverged"


@pytest.mark.slow
def test_a_cell_of_another_process_is_let_be(study: Path, command_line: CommandLine) -> None:
    cell = cell_of(study, "none-depth1-width4-seed1")
    edit_description(cell, status="running")
    with hold_lease(cell):
        result = command_line(*FOUR, "-m")
    assert result.returncode == 1
    assert "3 of 4 cells complete, 0 to resume, 0 to run, 1 running elsewhere\n" in result.stdout
    assert "1 of 4 cells are not finished" in result.stderr
    assert "1 still running elsewhere" in result.stderr
    assert len(description(cell)["attempts"]) == 1


@pytest.mark.slow
def test_a_cell_that_another_process_takes_first_has_not_failed(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(folder: Path) -> Any:
        from bnstudy.runs.lease import CellInUse

        raise CellInUse(f"{folder}: another")

    monkeypatch.setattr("bnstudy.runs.record.hold_lease", taken)
    result = command_line(*RUN, "-m")
    assert result.returncode == 1
    assert "Running elsewhere: " in result.stdout
    assert "Failed" not in result.stdout
    assert "0 failed, 0 lost their worker or launcher, 1 still running elsewhere" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_study_that_can_only_be_read_is_shown_and_not_continued(
    study: Path, command_line: CommandLine
) -> None:
    if subprocess.run(["mount", "--bind", study.parent, study.parent], check=False).returncode:
        pytest.skip("mounting is not permitted")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", study.parent], check=True)
        result = command_line(*FOUR, "-m")
        assert result.returncode == 0, result.stderr
        assert "4 of 4 cells complete" in result.stdout
        for arguments in ((*FOUR, "seed=0,7", "-m"), (*RUN, "seed=7")):
            result = command_line(*arguments)
            assert result.returncode == 1
            assert len(result.stderr.splitlines()) == 2, result.stderr
            assert "Read-only file system" in result.stderr
            assert "output_root=FOLDER" in result.stderr
    finally:
        subprocess.run(["umount", study.parent], check=True)


@pytest.mark.slow
def test_metrics_that_are_asked_for_later_are_measured(
    study: Path, command_line: CommandLine
) -> None:
    more = (*FOUR, "metrics=fast", "metrics.names=[hoyer]")
    result = command_line(*more, "-m")
    assert result.returncode == 0
    assert "0 of 4 cells complete, 4 to measure, 0 to resume, 0 to run\n" in result.stdout
    assert result.stdout.count("measured from checkpoints: hoyer of epoch 2") == 4
    result = command_line(*more, "-m")
    assert (
        "4 of 4 cells complete (4 without checkpoints to measure the requested metrics), 0 to "
        "resume" in result.stdout
    )
    assert "Cell " not in result.stdout
    assert set(attempts(study).values()) == {1}


@pytest.mark.slow
def test_the_multirun_flag_may_stand_anywhere(command_line: CommandLine) -> None:
    expected = "0 of 2 cells complete"
    dry = ("sweep.dry_run=true", *RUN)
    for arguments in (("-m", *dry, "seed=0,1"), ("seed=0,1", "-m", *dry), (*dry, "seed=0,1", "-m")):
        result = command_line(*arguments)
        assert result.returncode == 0
        assert expected in result.stdout


@pytest.mark.slow
def test_what_is_wrong_with_the_sweep_itself_is_told(command_line: CommandLine) -> None:
    result = command_line(*FOUR, "sweep.redo=some", "-m")
    assert result.returncode == 1
    assert (
        result.stderr == "sweep.redo=some is not allowed; expected failed, diverged, all, or null\n"
    )
    result = command_line(*RUN, "sweep.redo=all")
    assert result.returncode == 1
    assert "add -m" in result.stderr
    result = command_line(*FOUR, "norm=batchnorm,bogus", "-m")
    assert result.returncode == 1
    assert "norm=bogus does not exist" in result.stderr


def test_hydras_sweep_folder_cannot_be_set(command_line: CommandLine) -> None:
    result = command_line(*RUN, "hydra.sweep.dir=elsewhere", "-m")
    assert result.returncode == 1
    assert "hydra.sweep.dir=elsewhere cannot be set" in result.stderr


@pytest.mark.slow
def test_brackets_of_an_override_are_printed(command_line: CommandLine) -> None:
    names = "metrics.names=[hoyer]"
    result = command_line(*SMALL, names, "model.depth=1,9", "-m")
    assert result.returncode == 1
    assert names in result.stdout
