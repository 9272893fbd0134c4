"""Numbers of several versions are told apart; runs of an older one are read and gone on with."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bnstudy import __version__, measure
from bnstudy.errors import UserError
from bnstudy.runs.description import RowsOfOtherVersion, RunDescription
from bnstudy.runs.parts import Environment
from bnstudy.runs.record import Record
from bnstudy.runs.version import VERSION, comparable_version
from tests.conftest import KEPT, CommandLine, description, only_cell, read_rows

OLD = "model.initialization=he"  # the only one of version 0.1, which had no such key
COMMAND = (
    *("model.width=2", "trainer.max_epochs=2", "trainer.limit_train_batches=8", OLD),
    *("trainer.log_every_n_steps=1", "probe.train=200", "probe.test=200", "logger=none"),
    *("checkpoint_epochs=all", "study=kept"),
)
EIGHT = (*COMMAND, "norm=batchnorm,none", "model.depth=1,2", "seed=0,1", "-m")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A copy of the kept study, where a command looks for it."""
    return shutil.copytree(KEPT, tmp_path / "multirun" / "kept")


def cell_of(study: Path, name: str) -> Path:
    (cell,) = study.glob(f"{name}-*")
    return cell


def test_versions_are_compared_by_major_and_minor_number() -> None:
    assert [comparable_version(one) for one in ("0.1.0", "0.1.7", "0.2.0.dev3", "unknown")] == [
        "0.1", "0.1", "0.2", "unknown"
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("kept")
def test_an_older_study_is_complete(command_line: CommandLine) -> None:
    result = command_line(*EIGHT)
    assert result.returncode == 0, result.stderr
    assert "8 of 8 cells complete, 0 to resume, 0 to run" in result.stdout
    assert (
        "8 complete cells were trained by bnstudy 0.1. They are not compared with those of "
        f"{VERSION} and not measured again" in result.stdout
    )
    assert (
        "trained by bnstudy"
        not in command_line(*EIGHT, "sweep.redo=all", "sweep.dry_run=true").stdout
    )
    more = command_line(*EIGHT, "metrics=full")  # nothing is measured, and nothing fails
    assert more.returncode == 0, more.stderr
    assert "8 of 8 cells complete, 0 to resume" in more.stdout


def test_an_older_run_is_not_measured_again(kept: Path, command_line: CommandLine) -> None:
    before = {path: path.read_bytes() for path in kept.glob("*/metrics.parquet")}
    names = "metrics.names=[hoyer]"
    single = command_line(*COMMAND, "model.depth=1", names)
    assert single.returncode == 1
    assert "trained by bnstudy 0.1" in single.stdout
    measured = command_line("multirun/kept", names, main=measure.main)
    assert measured.returncode == 1
    assert "9 of 10 runs were not measured" not in measured.stderr  # the interrupted one, too
    assert "10 of 10 runs were not measured" in measured.stderr
    assert measured.stdout.count("the record would mix both versions") == 9
    what, todo = single.stderr.splitlines()
    assert f"trained by bnstudy 0.1; with measurements of {VERSION}" in what
    assert "sweep.redo=all" in todo
    assert "with bnstudy 0.1" in todo
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow
def test_an_interrupted_older_run_goes_on(command_line: CommandLine, tmp_path: Path) -> None:
    interrupted = cell_of(KEPT, "batchnorm-depth1-width2-seed2")
    cell = tmp_path / "multirun" / "kept" / interrupted.name
    shutil.copytree(interrupted, cell)
    result = command_line(*description(cell)["overrides"], OLD)
    assert result.returncode == 0, result.stderr
    assert only_cell(tmp_path / "multirun") == cell
    assert {row["epoch"] for row in read_rows(cell)} == {0, 1, 2, 3, 4}
    run = description(cell)
    assert run["status"] == "completed"
    assert [attempt["version"] for attempt in run["attempts"]] == ["0.1", __version__]
    assert run["attempts"][1]["resumed_from_epoch"] == 2
    record = Record.read(cell)
    assert record.description.version == VERSION
    assert record.description.other_versions() == [RowsOfOtherVersion("0.1", [0, 1, 2])]


def record_of(attempts: list[dict[str, Any]], **facts: Any) -> Record:
    description = {
        "identity": "",
        "status": "completed",
        "config": {"trainer": {"max_epochs": 4}},
        "attempts": attempts,
        "environment": {"packages": {"bnstudy": "0.1.3"}},
        "final": {"epoch": 4},
    }
    return Record(Path("cell"), RunDescription.model_validate(description | facts))


def attempt(version: str | None, resumed: int | None) -> dict[str, Any]:
    known = {} if version is None else {"version": version}
    return known | {"resumed_from_epoch": resumed, "status": "interrupted"}


@pytest.mark.parametrize(
    ("attempts", "version", "others"),
    [
        ([attempt(None, None)], "0.1", []),
        ([attempt("0.2.0", None)], "0.2", []),
        ([attempt("0.1.0", None), attempt("0.2.0", 2)], "0.2", [("0.1", [0, 1, 2])]),
        ([attempt("0.1.0", None), attempt("0.2.0", None)], "0.2", []),  # anew
        ([attempt("0.1.0", None), attempt("0.1.9", 3)], "0.1", []),
        # The last epochs were trained, but not all of their table was there: nothing new.
        ([attempt("0.1.0", None), attempt("0.2.0", 4)], "0.1", []),
        # The checkpoint after epoch 3 was damaged: epoch 3 is of the last attempt.
        (
            [attempt("0.1.0", None), attempt("0.2.0", 1), attempt("0.3.1", 2)],
            "0.3",
            [("0.1", [0, 1]), ("0.2", [2])],
        ),
        ([attempt("0.1.0", None), attempt("0.2.0", 3), attempt("0.1.0", 2)], "0.1", []),
        ([attempt("0.1.0", None), {"version": "0.2.0", "status": "running"}], "0.1", []),
    ],
)
def test_which_rows_are_of_another_version(
    attempts: list[dict[str, Any]], version: str, others: list[tuple[str, list[int]]]
) -> None:
    record = record_of(attempts)
    described = record.description
    assert described.version == version
    assert [(some.version, some.epochs) for some in described.other_versions()] == others


def test_what_was_measured_later_by_another_version() -> None:
    def later(version: str, **facts: Any) -> dict[str, Any]:
        packages = {"packages": {"bnstudy": version}}
        return {"epochs": [4], "metrics": ["dunn"], "environment": packages} | facts

    record = record_of(
        [attempt("0.2.0", None)],
        measured_later=[
            later("0.1.0"),
            later("0.2.4"),
            later("0.3.0", splits=["train"], sites=["act"]),
            later("0.3.0", epochs=[]),
        ],
    )
    assert record.description.other_versions() == [
        RowsOfOtherVersion("0.1", [4], ["dunn"]),
        RowsOfOtherVersion("0.3", [4], ["dunn"], ["train"], ["act"]),
    ]
    with pytest.raises(UserError, match=r"trained by bnstudy 0\.1; with measurements"):
        record_of([attempt(None, None)]).require_this_version()


def test_a_failed_beginning_leaves_the_version(kept: Path) -> None:
    record = Record.read(cell_of(kept, "batchnorm-depth1-width2-seed2"))
    shutil.rmtree(record.folder / "metrics")
    environment = Environment(packages={"bnstudy": "0.2.0"})
    with pytest.raises(UserError), record.attempt(environment):
        raise UserError("no such data")
    assert Record.read(record.folder).description.version == "0.1"
    stored = json.loads((record.folder / "run.json").read_text())
    assert stored["environment"]["packages"]["bnstudy"] == "0.1.0"
