"""Reading the file in which W&B's SDK keeps all that a run has logged.

`run-ID.wandb` is a log of protobuf messages in the format of LevelDB's logs: blocks of 32 KiB of
chunks, each with a checksum (CRC-32), its length and its place in a message. A process that is
killed may leave the last message unfinished; what comes before it is whole.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEADER = struct.Struct("<4sHB")
CHUNK = struct.Struct("<IHB")
BLOCK = 32 * 1024
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class TransactionLog:
    """What a run has logged.

    Attributes:
        rows: Of its history, by W&B's step.
        staged: Files of its artifacts, outside of the run's folder.
        exit_code: None where the run was killed, or goes on.
    """

    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    staged: list[Path] = field(default_factory=list)
    exit_code: int | None = None


def read(path: Path) -> TransactionLog:
    """Read a log as far as it is whole."""
    from wandb.proto import wandb_internal_pb2

    log = TransactionLog()
    for message in _messages(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(message)  # type: ignore[attr-defined]
        match record.WhichOneof("record_type"):
            case "history":
                items = record.history.item
                row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
                step = row.get("_step", record.history.step.num)
                log.rows.setdefault(int(step), {}).update(row)
            case "artifact":
                contents = record.artifact.manifest.contents
                log.staged += [Path(one.local_path) for one in contents if one.local_path]
            case "exit":
                log.exit_code = record.exit.exit_code
    return log


def _messages(raw: bytes) -> Iterator[bytes]:
    """The messages of a log, up to the first that is not whole."""
    if len(raw) < HEADER.size or HEADER.unpack_from(raw)[0] != b":W&B":
        return
    position, message = HEADER.size, b""
    while position + CHUNK.size <= len(raw):
        left = BLOCK - position % BLOCK
        if left < CHUNK.size:  # too short for a chunk: filled with zeros
            position += left
            continue
        checksum, length, place = CHUNK.unpack_from(raw, position)
        position += CHUNK.size
        content = raw[position : position + length]
        if len(content) < length or zlib.crc32(bytes([place]) + content) != checksum:
            return
        position += length
        message = content if place in (FULL, FIRST) else message + content
        if place in (FULL, LAST):
            yield message
