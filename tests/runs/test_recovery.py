"""Recovery from damaged or missing files of a cell: repeating the command gives the same table."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bnstudy.callbacks import Recorder
from tests.conftest import SMALL, CommandLine, description, edit_description, only_cell

RUN = (*SMALL, "metrics=fast", "trainer.max_epochs=4")


@pytest.fixture(autouse=True)
def _small_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrate all runs of this module alike, with and without markers: they are compared."""
    monkeypatch.setattr("bnstudy.data.module.MAX_CALIBRATION_SAMPLES", 500)


@pytest.fixture
def undisturbed(shared_folder: Path, command_line: CommandLine, tmp_path: Path) -> pa.Table:
    """The table of an undisturbed run."""
    if not (shared_folder / "complete").exists():
        assert command_line(*RUN).returncode == 0
        shutil.move(tmp_path / "multirun", shared_folder / "complete")
    return pq.read_table(only_cell(shared_folder / "complete") / "metrics.parquet")


@pytest.fixture
def complete(shared_folder: Path, undisturbed: pa.Table, tmp_path: Path) -> Path:
    """A cell that is complete."""
    shutil.copytree(shared_folder / "complete", tmp_path / "multirun")
    return only_cell(tmp_path / "multirun")


@pytest.fixture
def stopped(
    shared_folder: Path,
    undisturbed: pa.Table,
    command_line: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A cell that was stopped after its third epoch."""
    if not (shared_folder / "stopped").exists():
        save = Recorder.on_train_epoch_end

        def stop(self: Recorder, trainer, pl_module) -> None:  # type: ignore[no-untyped-def]
            save(self, trainer, pl_module)
            if trainer.current_epoch == 2:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Recorder, "on_train_epoch_end", stop)
            assert command_line(*RUN).returncode == 130
        shutil.move(tmp_path / "multirun", shared_folder / "stopped")
    shutil.copytree(shared_folder / "stopped", tmp_path / "multirun")
    return only_cell(tmp_path / "multirun")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncate_checkpoint(cell: Path) -> None:
    truncate(cell / "checkpoints" / "last.ckpt")


def truncate_both_checkpoints(cell: Path) -> None:
    truncate(cell / "checkpoints" / "last.ckpt")
    truncate(cell / "checkpoints" / "previous.ckpt")


def flip_a_bit_of_the_weights(cell: Path) -> None:
    path = cell / "checkpoints" / "last.ckpt"
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda one: one.file_size)
    content = bytearray(path.read_bytes())
    content[entry.header_offset + 200 + entry.file_size // 2] ^= 0x40
    path.write_bytes(content)


def empty_checkpoint(cell: Path) -> None:
    (cell / "checkpoints" / "last.ckpt").write_bytes(b"")


def truncate_part(cell: Path) -> None:
    truncate(cell / "metrics" / "epoch=0002.parquet")


def truncate_the_last_part(cell: Path) -> None:
    truncate(cell / "metrics" / "epoch=0003.parquet")


def lose_part(cell: Path) -> None:
    (cell / "metrics" / "epoch=0001.parquet").unlink()


def alien_part(cell: Path) -> None:
    pq.write_table(pa.table({"x": [1, 2]}), cell / "metrics" / "epoch=0001.parquet")


def truncate_record(cell: Path) -> None:
    truncate(cell / "run.json")


def alien_record(cell: Path) -> None:
    (cell / "run.json").write_text('{"name": "somebody else\'s"}')


def empty_record(cell: Path) -> None:
    (cell / "run.json").write_bytes(b"")


def truncate_table(cell: Path) -> None:
    truncate(cell / "metrics.parquet")


def alien_table(cell: Path) -> None:
    pq.write_table(pa.table({"x": [1, 2]}), cell / "metrics.parquet")


def lose_table(cell: Path) -> None:
    (cell / "metrics.parquet").unlink()


def kill_while_writing(cell: Path) -> None:
    (cell / ".run.json.4711.tmp").write_text("{")
    (cell / "checkpoints" / ".last.ckpt.4711.tmp").write_bytes(b"P")


def kill_between_renames_of_checkpoints(cell: Path) -> None:
    (cell / "checkpoints" / "last.ckpt").rename(cell / "checkpoints" / "previous.ckpt")


@pytest.mark.parametrize(
    ("damage", "goes_on_from", "named"),
    [
        (truncate_checkpoint, 2, "last.ckpt"),
        (flip_a_bit_of_the_weights, 2, "last.ckpt"),
        (empty_checkpoint, 2, "last.ckpt"),
        (truncate_part, None, "epoch=0002.parquet"),
        (truncate_the_last_part, 2, "epoch=0003.parquet"),
        (lose_part, None, None),
        (truncate_record, 3, "run.json"),
        (kill_between_renames_of_checkpoints, 3, None),
        pytest.param(truncate_both_checkpoints, None, "previous.ckpt", marks=pytest.mark.long),
        pytest.param(alien_part, None, "epoch=0001.parquet", marks=pytest.mark.long),
        pytest.param(alien_record, 3, "run.json", marks=pytest.mark.long),
        pytest.param(empty_record, 3, "run.json", marks=pytest.mark.long),
        pytest.param(kill_while_writing, 3, None, marks=pytest.mark.long),
    ],
)
def test_a_stopped_run_with_damaged_files_ends_like_an_undisturbed_one(
    stopped: Path,
    undisturbed: pa.Table,
    command_line: CommandLine,
    damage: Callable[[Path], None],
    goes_on_from: int | None,
    named: str | None,
) -> None:
    damage(stopped)
    result = command_line(*RUN)
    assert result.returncode == 0, result.stderr
    run = description(stopped)
    assert run["status"] == "completed"
    assert run["attempts"][-1]["resumed_from_epoch"] == goes_on_from
    assert pq.read_table(stopped / "metrics.parquet").equals(undisturbed)
    assert not list(stopped.rglob("*.tmp"))
    aside = {path.name for path in stopped.rglob("*.damaged")}
    if named:
        assert f"{named}.damaged" in aside
        assert f"{named} is damaged" in result.stdout
    else:
        assert not aside


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (truncate_table, "metrics.parquet"),
        (lose_table, None),
        (truncate_record, "run.json"),
        pytest.param(alien_table, "metrics.parquet", marks=pytest.mark.long),
        pytest.param(alien_record, "run.json", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize(
    "multirun",
    [pytest.param(["-m"], id="multirun"), pytest.param([], marks=pytest.mark.long, id="single")],
)
def test_a_complete_run_with_damaged_files_is_repaired(
    complete: Path,
    undisturbed: pa.Table,
    command_line: CommandLine,
    damage: Callable[[Path], None],
    named: str | None,
    multirun: list[str],
) -> None:
    damage(complete)
    result = command_line(*RUN, *multirun)
    assert result.returncode == 0, result.stderr
    assert description(complete)["status"] == "completed"
    assert pq.read_table(complete / "metrics.parquet").equals(undisturbed)
    if named:
        assert (complete / f"{named}.damaged").exists()
        assert f"{named} is damaged" in result.stdout
    final = description(complete)["final"]
    assert final["epoch"] == 4
    assert 0 < final["test_accuracy"] < 1


def test_a_file_that_was_set_aside_earlier_is_kept(
    complete: Path, command_line: CommandLine
) -> None:
    (complete / "run.json.damaged").write_text("set aside earlier")
    (complete / "run.json").unlink()
    (complete / "run.json").mkdir()
    result = command_line(*RUN)
    assert result.returncode == 0, result.stderr
    assert (complete / "run.json.damaged").read_text() == "set aside earlier"
    assert (complete / "run.json.damaged1").is_dir()


def test_a_target_from_the_record_is_not_called(stopped: Path, command_line: CommandLine) -> None:
    callbacks = {"gradient_norms": {"_target_": "os.abort"}}
    config = description(stopped)["config"] | {"callbacks": callbacks}
    edit_description(stopped, config=config, callbacks=list(callbacks))
    result = command_line(*RUN, "callbacks=[gradient_norms]")
    assert result.returncode == 1
    assert "callbacks.gradient_norms._target_=os.abort" in result.stderr


@pytest.mark.slow
def test_a_worker_that_lost_its_cell_writes_nothing_more(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Recorder.on_train_epoch_end

    def lose(self: Recorder, trainer, pl_module) -> None:  # type: ignore[no-untyped-def]
        save(self, trainer, pl_module)
        assert self.record.lease
        (self.record.folder / ".lease.2").write_text("{}")

    monkeypatch.setattr(Recorder, "on_train_epoch_end", lose)
    result = command_line(*RUN)
    assert result.returncode == 1
    assert "this process no longer holds the cell" in result.stderr
    cell = only_cell(tmp_path / "multirun")
    assert description(cell)["status"] == "running"  # of the process that took it over
    assert len(list((cell / "metrics").iterdir())) == 2
