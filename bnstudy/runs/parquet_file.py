"""Parquet files with a checksum of all their bytes, so that no flipped bit is taken for a number.

Parquet's own checksums cover only the data of a page, and DuckDB does not verify them. They do not
cover the header of a page and the footer of the file, whose statistics decide which rows DuckDB
reads. The footer's metadata therefore contain a CRC-32 of the whole file, which is calculated with
zeros in place of its own digits. Verifying it takes a seventh of the time in which pyarrow reads a
footer. Files of earlier versions have no such checksum, and are decoded to find damage.
"""

import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bnstudy.errors import DamagedFile, first_line

KEY = b"bnstudy.crc32"  # key of the checksum in the file's metadata
MARK = KEY + b":"  # beginning of its value; 8 hexadecimal digits follow
ZEROS = b"0" * 8

DECODING_ERRORS = (OSError, ValueError, MemoryError, pa.ArrowException)  # from damaged content

ADVICE = "Remove it, and run the command again that made it: bnstudy.train or bnstudy.measure"


def write_table(table: pa.Table, path: Path, metadata: Mapping[bytes, bytes] = {}) -> None:
    """Write a table, with the checksum of the file.

    Args:
        table: Table; the metadata of its schema are not written.
        path: File to write.
        metadata: Metadata to write.
    """
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata(metadata)
    with pq.ParquetWriter(sink, table.schema, write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({KEY: MARK + ZEROS})
    content = bytearray(sink.getvalue())
    begin = content.rindex(MARK) + len(MARK)
    content[begin : begin + len(ZEROS)] = b"%08x" % zlib.crc32(content)
    path.write_bytes(content)


def read_table(
    path: Path,
    schema: pa.Schema,
    columns: Sequence[str] | None = None,
    advice: str = ADVICE,
) -> pa.Table:
    """Read a table, after verifying the checksum of the file.

    Args:
        path: File to read.
        schema: Expected columns.
        columns: Columns to read; None: all.
        advice: What the user has to do if the file is damaged.

    Returns:
        Table, with its metadata.

    Raises:
        FileNotFoundError: The file does not exist.
        PermissionError: The file may not be read.
        DamagedFile: The file is damaged, or has other columns.
    """
    try:
        content = path.read_bytes()
        if _matches_checksum(content) is False:
            raise ValueError("wrong checksum")
        return _decode(content, schema, columns)
    except (FileNotFoundError, PermissionError):
        raise
    except DECODING_ERRORS as error:
        raise DamagedFile(path, first_line(error), advice) from error


def find_damage(path: Path, schema: pa.Schema) -> str | None:
    """Describe the damage of a file; None if it is intact.

    A process reads a file once, and again only if its inode, size or modification time has changed.

    Args:
        path: File to check.
        schema: Expected columns.
    """
    try:
        state = path.stat()
        return _find_damage(path, schema, (state.st_ino, state.st_size, state.st_mtime_ns))
    except FileNotFoundError:
        return "it is not there"
    except OSError as error:
        return error.strerror


@lru_cache(maxsize=1 << 16)
def _find_damage(path: Path, schema: pa.Schema, state: tuple[int, ...]) -> str | None:
    content = path.read_bytes()
    match _matches_checksum(content):
        case True:
            return None
        case False:
            return "wrong checksum"
    try:
        _decode(content, schema)
    except DECODING_ERRORS as error:
        return first_line(error)
    return None


def _matches_checksum(content: bytes) -> bool | None:
    """Compare a file's content with the checksum in it; None if there is no checksum."""
    mark = content.rfind(MARK)
    if mark < 0:
        return None
    begin = mark + len(MARK)
    end = begin + len(ZEROS)
    checksum = zlib.crc32(content[end:], zlib.crc32(ZEROS, zlib.crc32(content[:begin])))
    return content[begin:end] == b"%08x" % checksum


def _decode(content: bytes, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    # From memory, because pyarrow would take a folder's name such as epoch=3 for a column.
    table = pq.read_table(
        pa.BufferReader(content), columns=columns, page_checksum_verification=True
    )
    expected = pa.schema([schema.field(name) for name in columns]) if columns else schema
    if not table.schema.equals(expected):
        raise ValueError("it has other columns")
    table.validate(full=True)  # without a checksum, text may not be UTF-8
    return table
