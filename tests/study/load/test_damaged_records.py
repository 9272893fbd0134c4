"""Studies whose files are damaged, or were written by hand, are read or explained."""

import copy
import json
import random
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bnstudy import load
from bnstudy.errors import UserError
from bnstudy.study.study import Study
from bnstudy.sweeps.status import StudyStatus
from bnstudy.tracking.workspace import find_measured
from tests.conftest import KEPT, flip_bit
from tests.study.studies import Studies

VALUES = (None, True, -1, 1.5, "x", [], {}, [None], {"a": 1}, 10**12)
MUTATIONS = 50


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two kept runs."""
    for cell in KEPT.glob("*-depth1-width2-seed1-*"):
        shutil.copytree(cell, tmp_path / "study" / cell.name, ignore=lambda *_: ["checkpoints"])
    return tmp_path / "study"


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from places(value, (*path, key))


def replaced(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    content = copy.deepcopy(content)
    node = content
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return content


def without(content: Any, path: tuple[Any, ...]) -> Any:
    content = copy.deepcopy(content)
    node = content
    for key in path[:-1]:
        node = node[key]
    del node[path[-1]]
    return content


def look_at(folder: Path) -> Study:
    Console(width=200).print(StudyStatus(folder))
    study = load(folder)
    with suppress(UserError):  # the runs are not comparable any more
        study.effects()
    return study


@pytest.mark.slow
def test_values_of_other_types_are_read_or_told(study: Path) -> None:
    record = next(study.glob("batchnorm-*-seed1-*")) / "run.json"
    content = json.loads(record.read_text())
    found, chance = list(places(content)), random.Random(0)
    for number in range(MUTATIONS):
        path = chance.choice(found)
        record.write_text(json.dumps(replaced(content, path, VALUES[number % len(VALUES)])))
        look_at(study)


@pytest.mark.slow
def test_fields_that_are_missing_are_read_or_told(study: Path) -> None:
    record = next(study.glob("batchnorm-*-seed1-*")) / "run.json"
    content = json.loads(record.read_text())
    for path in [path for path in places(content) if path[:-1] in ((), ("config",))][1:]:
        record.write_text(json.dumps(without(content, path)))
        Console().print(StudyStatus(study))
        runs = load(study).runs.set_index("cell")
        assert runs.loc[record.parent.name, "ended"] or runs.loc[record.parent.name, "remark"]


def test_a_damaged_table_is_left_out_and_told(
    studies: Studies, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        studies.add("none", seed, layers={"silhouette": [0.1, 0.2]})
    table = studies.add("none", 3, layers={"silhouette": [0.1, 0.2]}).paths.table
    flip_bit(table, 1 / 3)
    assert len(load(studies.folder).results) == 3
    told = capsys.readouterr().out
    assert "is left out: metrics.parquet is damaged (wrong checksum); bnstudy.measure" in told
    assert find_measured(studies.folder).layers == ["block01", "block02"]
    assert f"{table} is left out, as it is damaged (wrong checksum)" in capsys.readouterr().out
    assert [cell.name for cell in StudyStatus(studies.folder).select_cells("damaged")] == [
        table.parent.name
    ]


def test_a_table_of_another_run_is_left_out_and_told(
    studies: Studies, capsys: pytest.CaptureFixture[str]
) -> None:
    first = studies.add("none", 0, accuracy=0.25, loss=0.5)
    second = studies.add("none", 1, accuracy=0.75, loss=0.5)
    diverged = studies.add("none", 2, accuracy=0.25, loss=float("nan"), status="diverged")
    assert load(studies.folder).results["ended"].all()
    shutil.copy(first.paths.table, second.paths.table)
    shutil.copy(first.paths.table, diverged.paths.table)
    capsys.readouterr()
    study = load(studies.folder)
    assert study.results["seed"].tolist() == [0]
    told = capsys.readouterr().out
    assert (
        "metrics.parquet is not the table of this run.json (final test_accuracy 0.25 instead of "
        "0.75); restore the one that belongs to another run, or train the run again"
    ) in told
    assert "_loss 0.5 instead of nan)" in told


def test_the_final_numbers_of_old_records_are_those_of_their_tables() -> None:
    runs = load(KEPT).runs
    assert not runs["remark"].str.contains("is not the table", na=False).any()
    assert runs.loc[runs["status"].isin(["completed", "diverged"]), "ended"].all()


def test_folders_in_the_place_of_files_are_told(studies: Studies) -> None:
    records = [studies.add("none", seed) for seed in range(3)]
    for path in (records[0].paths.table, records[1].paths.record):
        path.unlink()
        path.mkdir()
    study = look_at(studies.folder)
    assert len(study.results) == 1
    assert study.runs["remark"].str.contains("Is a directory").sum() == 2


def test_a_study_of_damaged_records_alone_is_refused(studies: Studies) -> None:
    for seed in range(2):
        studies.add("none", seed).paths.record.write_text("[1]")
    with pytest.raises(UserError, match=r"none of its 2 run.json can be read") as raised:
        load(studies.folder)
    assert len(str(raised.value).splitlines()) == 2


@pytest.mark.parametrize("name", ["s[12]", "epoch=3", "a'b", "50%j"])
def test_special_characters_in_a_studys_name_have_no_effect(studies: Studies, name: str) -> None:
    studies.add("none", 0, accuracy=0.25)
    shutil.copytree(studies.folder, studies.folder.parent / "s1")
    folder = Path(shutil.move(studies.folder, studies.folder.parent / name))
    rows = load(folder).metrics("accuracy", split="test")
    assert rows["value"].tolist() == [0.25]
    assert rows["epoch"].tolist() == [5]
