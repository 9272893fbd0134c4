"""The long table: its parts, its rows, and what a layer is called."""

from pathlib import Path

import duckdb
import pytest

from bnstudy.representations import Tap
from bnstudy.runs.long_table import LAYER_LABEL, WHOLE_MODEL, LongTable, Row
from bnstudy.runs.paths import CellPaths


@pytest.fixture
def table(tmp_path: Path) -> LongTable:
    return LongTable(CellPaths(tmp_path))


def rows(epoch: int) -> list[Row]:
    return [
        Row(epoch, 10 * epoch, "test", -1, WHOLE_MODEL, None, "loss", 1.0 / (1 + epoch), None),
        Row(epoch, 10 * epoch, "train", 0, "block01", "conv", "hoyer", 0.25, None),
        Row(epoch, 10 * epoch, "train", 1, "block01", "act", "hoyer", 0.5, None),
    ]


def test_a_table_is_read_in_parts_and_whole(table: LongTable) -> None:
    assert table.rows_by_epoch() == []
    assert table.find_damage() == "it is not there"
    for epoch in (0, 1, 2):
        table.write_part(epoch, rows(epoch))
    assert table.epochs_trained() == 2
    in_parts = table.rows_by_epoch()
    assert in_parts == [rows(epoch) for epoch in (0, 1, 2)]
    final = table.join_parts()
    assert (final.epoch, final.numbers) == (2, {"test_loss": 1 / 3})
    table.paths.remove_parts()
    assert table.find_damage() is None
    assert table.rows_by_epoch() == in_parts
    assert table.rows_by_epoch(until_epoch=1) == in_parts[:2]
    table.split_into_parts()
    assert table.rows_by_epoch() == in_parts
    intact = [epoch for epoch in range(4) if table.find_part_damage(epoch) is None]
    assert intact == [0, 1, 2]


def test_what_is_missing_can_be_added(table: LongTable) -> None:
    table.write_part(0, rows(0))
    table.join_parts()
    asked = (["hoyer", "nc1"], ["act"], [0], ["train"])
    assert table.find_missing(*asked) == {0: {("train", "act", "nc1")}}
    table.add_rows([Row(0, 0, "train", 0, "block01", "act", "nc1", 3.0, None)])
    assert table.find_missing(*asked) == {}
    assert table.values(0, "train", "act", "nc1") == {"block01": 3.0}


@pytest.mark.parametrize(
    ("layer", "site", "label"),
    [
        ("block01", "act", "block01"),
        ("block01", "conv", "block01.conv"),
        ("classifier", "features", "classifier.features"),
        (WHOLE_MODEL, None, WHOLE_MODEL),
    ],
)
def test_a_layers_label_is_the_same_everywhere(layer: str, site: str | None, label: str) -> None:
    assert Row(0, 0, "train", 0, layer, site, "hoyer", 0.5, None).label == label
    if site is not None:
        assert Tap(0, layer, site).label == label
    query = f"select {LAYER_LABEL} from (select $layer as layer, $site as site)"
    with duckdb.connect() as connection:
        found = connection.execute(query, {"layer": layer, "site": site}).fetchall()
    assert found == [(label,)]
