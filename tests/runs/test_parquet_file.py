"""No flipped bit of a Parquet file is taken for a number; files of earlier versions are read."""

import random
from collections import Counter
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bnstudy.errors import DamagedFile
from bnstudy.runs.long_table import SCHEMA
from bnstudy.runs.parquet_file import find_damage, read_table, write_table

FLIPS = 400

TABLE = pa.table(
    {
        "epoch": [0, 1, 1],
        "step": [0, 8, 8],
        "split": ["train", "train", "test"],
        "layer_index": [-1, 0, 1],
        "layer": ["model", "block01", "block02"],
        "site": [None, "act", "act"],
        "metric": ["loss", "hoyer", "hoyer"],
        "value": [2.5, 0.25, float("inf")],
        "reason": [None, None, "no reason"],
    },
    schema=SCHEMA,
)


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "metrics.parquet"
    write_table(TABLE, path)
    whole, chance = path.read_bytes(), random.Random(0)
    found: Counter[str] = Counter()
    for number in range(FLIPS):
        place = chance.randrange(8 * len(whole))
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path = tmp_path / f"{number}.parquet"
        path.write_bytes(flipped)
        damage = find_damage(path, SCHEMA)
        found["damaged" if damage else "intact"] += 1
        if damage:
            with pytest.raises(DamagedFile, match=r"is damaged \(.+\)\n"):
                read_table(path, SCHEMA)
        else:  # a bit of the checksum's name: the file is like an earlier version's
            assert read_table(path, SCHEMA).equals(TABLE)
            assert pa.table(duckdb.connect().read_parquet(str(path)).to_arrow_table()).equals(TABLE)
    assert found["damaged"] > 0.98 * FLIPS


def test_a_file_is_one_of_parquets_own(tmp_path: Path) -> None:
    path = tmp_path / "epoch=3" / "one.parquet"
    path.parent.mkdir()
    write_table(TABLE, path, {b"about": b"it"})
    assert pq.ParquetFile(path, page_checksum_verification=True).read().equals(TABLE)
    table = read_table(path, SCHEMA)
    assert table.equals(TABLE)  # no column from the folder's name
    assert table.schema.metadata == {b"about": b"it"}
    assert read_table(path, SCHEMA, ["metric", "value"]).column_names == ["metric", "value"]


def test_files_without_a_checksum_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "old.parquet"
    pq.write_table(TABLE, path)
    assert find_damage(path, SCHEMA) is None
    assert read_table(path, SCHEMA).equals(TABLE)
    whole = path.read_bytes()
    place = whole.index(b"block01")
    path.write_bytes(whole[:place] + b"\xff\xfe" + whole[place + 2 :])  # no UTF-8
    assert find_damage(path, SCHEMA)
    path.write_bytes(whole[: len(whole) // 2])
    assert find_damage(path, SCHEMA)
    pq.write_table(pa.table({"x": [1]}), path)
    assert find_damage(path, SCHEMA) == "it has other columns"


def test_a_table_that_is_absent_or_a_folder_is_damaged(tmp_path: Path) -> None:
    assert find_damage(tmp_path / "none.parquet", SCHEMA) == "it is not there"
    (tmp_path / "folder.parquet").mkdir()
    assert find_damage(tmp_path / "folder.parquet", SCHEMA) == "Is a directory"
