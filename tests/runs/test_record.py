"""The record survives whatever happens to the process."""

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bnstudy.config.composition import resolve
from bnstudy.errors import DamagedFile, UserError
from bnstudy.runs.description import RunDescription
from bnstudy.runs.lease import CellInUse, hold_lease
from bnstudy.runs.long_table import Row
from bnstudy.runs.parts import Environment
from bnstudy.runs.record import Observer, Record, remove_unused_folder
from tests.conftest import Compose

CHOICES = {"norm": "batchnorm", "model": "cnn", "data": "mnist5k"}


def rows(epoch: int) -> list[Row]:
    return [
        Row(epoch, 10 * epoch, split, -1, "model", None, metric, 0.5, None)
        for split in ("train", "test")
        for metric in ("loss", "accuracy")
    ]


@pytest.fixture
def record(composed: Compose, tmp_path: Path) -> Record:
    described = RunDescription.new(resolve(composed()), "cell", CHOICES, ["seed=0"])
    return Record(tmp_path / "cell", described)


def stored(record: Record) -> dict[str, object]:
    return json.loads((record.folder / "run.json").read_text())


def test_parts_become_the_long_table(record: Record) -> None:
    with hold_lease(record.folder), record.attempt(Environment()):
        for epoch in (0, 1, 2):
            record.table.write_part(epoch, rows(epoch))
        record.table.write_part(2, rows(2))  # again, after a resume
        assert stored(record)["status"] == "running"
        record.join_parts()
    record.remove_intermediate_files()
    assert pq.read_table(record.paths.table)["epoch"].to_pylist() == [0] * 4 + [1] * 4 + [2] * 4
    assert stored(record)["status"] == "completed"
    assert stored(record)["final"] == {
        "epoch": 2,
        **{f"{split}_{m}": 0.5 for split in ("train", "test") for m in ("loss", "accuracy")},
    }
    assert not list(record.folder.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("out of memory"), "failed"), (KeyboardInterrupt(), "interrupted")],
)
def test_how_an_attempt_ended_is_recorded(
    record: Record, error: BaseException, status: str
) -> None:
    with pytest.raises(type(error)), hold_lease(record.folder), record.attempt(Environment()):
        raise error
    assert stored(record)["status"] == status
    (attempt,) = record.description.attempts
    assert attempt.status == status
    assert attempt.error == (f"RuntimeError: {error}" if status == "failed" else None)
    assert not record.is_finished


def test_a_mistake_of_the_users_leaves_nothing(record: Record) -> None:
    with pytest.raises(UserError), hold_lease(record.folder), record.attempt(Environment()):
        raise UserError("no such data")
    remove_unused_folder(record.folder, record.folder.parent)
    assert not record.folder.exists()


def test_a_mistake_of_the_users_does_not_undo_an_earlier_attempt(record: Record) -> None:
    with pytest.raises(RuntimeError), hold_lease(record.folder), record.attempt(Environment()):
        raise RuntimeError
    with pytest.raises(UserError), hold_lease(record.folder), record.attempt(Environment()):
        raise UserError("no such data")
    assert stored(record)["status"] == "failed"
    assert len(record.description.attempts) == 1


def _fail(record: Record, body: Callable[[], object], error: BaseException) -> None:
    with hold_lease(record.folder), record.attempt(Environment()):
        body()
        raise error


def test_a_mistake_of_the_users_in_a_resumed_run_changes_nothing(record: Record) -> None:
    def change_callbacks_and_metrics() -> None:
        record.description.update_config(record.description.config | {"callbacks": {}})
        record.description.config["metrics"]["names"] = ["hoyer"]

    with pytest.raises(KeyboardInterrupt):
        _fail(record, lambda: record.save_progress(0.1, diverged=False), KeyboardInterrupt())
    before = stored(record)
    for _ in range(3):
        with pytest.raises(UserError, match="no such data"):
            _fail(record, change_callbacks_and_metrics, UserError("no such data"))
        assert stored(record) == before


def test_a_user_error_during_training_is_a_failure(record: Record) -> None:
    with pytest.raises(UserError, match="full disk"):
        _fail(record, lambda: record.save_progress(0.1, diverged=False), UserError("full disk"))
    assert stored(record)["status"] == "failed"


def _in_use(folder: Path) -> bool:
    try:
        with hold_lease(folder):
            return False
    except CellInUse:
        return True


@pytest.mark.slow
def test_two_processes_never_work_in_one_cell(record: Record) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        with hold_lease(record.folder):
            assert pool.apply(_in_use, (record.folder,))
        assert not pool.apply(_in_use, (record.folder,))


def test_another_runs_record_is_not_touched(record: Record, composed: Compose) -> None:
    record.save()
    before = stored(record)
    other = RunDescription.new(resolve(composed("seed=1")), "cell", CHOICES, [])
    with pytest.raises(UserError, match="holds another run"), Record.open(record.folder, other):
        pass
    assert stored(record) == before


def test_reading_a_damaged_record_raises(record: Record) -> None:
    record.folder.mkdir()
    (record.folder / "run.json").write_text("{")
    with pytest.raises(DamagedFile, match=r"run.json is damaged"):
        Record.read(record.folder)


def test_a_resumed_run_keeps_the_metrics_of_both_configurations() -> None:
    def having(*names: str, sites: str = "act") -> dict[str, Any]:
        return {"names": list(names), "sites": [sites]}

    for now, both in ((having("b", "c"), ["b"]), (having("a", "b", sites="conv"), [])):
        described = RunDescription(
            identity="", status=None, attempts=[], config={"metrics": having("a", "b")}
        )
        described.keep_common_metrics(now)
        assert described.config["metrics"] == now | {"names": both}


def test_opening_a_cell_removes_leftovers_and_repairs_its_record(record: Record) -> None:
    folder, described = record.folder, record.description
    anew = described.model_copy(deep=True)
    with pytest.raises(UserError, match="cannot be read"), Record.open(folder):
        pass
    with Record.open(folder, described) as mine:
        assert mine.lease is not None
        (folder / ".metrics.parquet.4711.tmp").write_bytes(b"P")  # as a killed process leaves it
        with mine.attempt(Environment()):
            mine.table.write_part(0, rows(0))
            mine.join_parts()
    with Record.open(folder) as mine:
        assert not list(folder.rglob("*.tmp"))
        assert mine.is_finished
    (folder / "run.json").write_text("{")
    with Record.open(folder, anew) as mine:
        assert (folder / "run.json.damaged").read_text() == "{"
        assert mine.paths.parts() == {0: mine.paths.part(0)}  # the run goes on from them
        assert not mine.paths.table.exists()


def test_other_processes_of_a_distributed_run_write_nothing(record: Record) -> None:
    record.save()
    record.paths.table.write_bytes(b"damaged")
    before = {path: path.read_bytes() for path in record.folder.iterdir()}
    with Observer.open(record.folder, record.description) as observer:
        with observer.attempt(Environment()) as attempt:
            attempt.resumed_from_epoch = None
            observer.set_aside(observer.paths.table, "damaged")
            observer.join_parts()
            with pytest.raises(RuntimeError, match="only the first process"):
                observer.save()
        assert observer.description.attempts == []
    with pytest.raises(KeyboardInterrupt), observer.attempt(Environment()):
        raise KeyboardInterrupt
    assert {path: path.read_bytes() for path in record.folder.iterdir()} == before
