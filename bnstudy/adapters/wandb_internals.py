"""Private parts of wandb and wandb-workspaces. Checked with wandb 0.31.0, wandb-workspaces 0.4.13.

`run-ID.wandb`, in which W&B's SDK keeps all that a run has logged, is a log of protobuf messages in
the format of LevelDB's logs: blocks of 32 KiB of chunks, each with a checksum (CRC-32), its length
and its place in a message. A process that is killed may leave the last message unfinished; what
comes before it is whole.
"""

import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from bnstudy.redaction import redact

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

HEADER = struct.Struct("<4sHB")
CHUNK = struct.Struct("<IHB")
BLOCK = 32 * 1024
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def without_launch() -> AbstractContextManager[Any]:
    """Keep `wandb.init` from looking for W&B Launch, which imports modules for seconds."""
    import wandb

    return patch.object(wandb.Run, "_detect_and_apply_job_inputs", lambda run: None, create=True)


def redacted_command_line() -> AbstractContextManager[Any]:
    """Keep credentials out of the command line, which `wandb.init` writes to W&B's files."""
    return patch.object(sys, "argv", redact("\n".join(sys.argv)).split("\n"))


def flush_settings(seconds: float) -> dict[str, Any]:
    """Return settings: no list of requirements, rows written to the disk every so many seconds."""
    return {"x_save_requirements": False, "x_transaction_log_flush_interval": seconds}


QUIET_SETTINGS: dict[str, Any] = {"x_disable_stats": True, "x_save_requirements": False}


def read_transaction_log(path: Path) -> Iterator[Any]:
    """Read the records (`wandb_internal_pb2.Record`) of a run's log as far as it is whole."""
    from wandb.proto import wandb_internal_pb2

    for message in _messages(path.read_bytes()):
        yield wandb_internal_pb2.Record.FromString(message)  # type: ignore[attr-defined]


def _messages(raw: bytes) -> Iterator[bytes]:
    """Yield the messages of a log, up to the first that is not whole."""
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


def view_spec(view: "Workspace") -> str:
    """Return the JSON in which W&B keeps a workspace view."""
    text: str = view._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
    return text


def name_view(view: "Workspace", name: str) -> None:
    """Give a workspace view a fixed name in its address; the view of that name is then updated.

    Raises:
        ValueError: The server has no such view yet, or no such project.
    """
    from wandb_workspaces.workspaces import Workspace

    view._internal_name = name
    view._internal_id = Workspace.from_url(view.url)._internal_id
