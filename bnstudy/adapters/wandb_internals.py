"""Private parts of wandb and wandb-workspaces. Checked with wandb 0.31.0, wandb-workspaces 0.4.13.

W&B's SDK writes everything that a run logs to the file `run-ID.wandb`. It is a log of protobuf
messages in the format of LevelDB's logs: blocks of 32 KiB that consist of chunks. Each chunk has a
checksum (CRC-32), its length and its kind: a full message, or the first, a middle or the last chunk
of a message. If a process is killed, the last message may be incomplete; all earlier ones are
complete.
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
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4  # kinds of chunks


def without_launch() -> AbstractContextManager[Any]:
    """Keep `wandb.init` from looking for W&B Launch, whose imports take seconds."""
    import wandb

    return patch.object(wandb.Run, "_detect_and_apply_job_inputs", lambda run: None, create=True)


def redacted_command_line() -> AbstractContextManager[Any]:
    """Keep credentials out of the command line, which `wandb.init` writes to W&B's files."""
    return patch.object(sys, "argv", redact("\n".join(sys.argv)).split("\n"))


def flush_settings(seconds: float) -> dict[str, Any]:
    """Return settings to write rows to disk at an interval, and to save no list of requirements."""
    return {"x_save_requirements": False, "x_transaction_log_flush_interval": seconds}


QUIET_SETTINGS: dict[str, Any] = {"x_disable_stats": True, "x_save_requirements": False}


def read_transaction_log(path: Path) -> Iterator[Any]:
    """Yield the records (`wandb_internal_pb2.Record`) of a run's log before any damage."""
    from wandb.proto import wandb_internal_pb2

    for message in _messages(path.read_bytes()):
        yield wandb_internal_pb2.Record.FromString(message)  # type: ignore[attr-defined]


def _messages(raw: bytes) -> Iterator[bytes]:
    """Yield the messages of a log, up to the first one that is incomplete or damaged."""
    if len(raw) < HEADER.size or HEADER.unpack_from(raw)[0] != b":W&B":
        return
    position, message = HEADER.size, b""
    while position + CHUNK.size <= len(raw):
        remaining = BLOCK - position % BLOCK
        if remaining < CHUNK.size:  # too short for a chunk: filled with zeros
            position += remaining
            continue
        checksum, length, kind = CHUNK.unpack_from(raw, position)
        position += CHUNK.size
        content = raw[position : position + length]
        if len(content) < length or zlib.crc32(bytes([kind]) + content) != checksum:
            return
        position += length
        message = content if kind in (FULL, FIRST) else message + content
        if kind in (FULL, LAST):
            yield message


def view_spec(view: "Workspace") -> str:
    """Return the JSON in which W&B keeps a workspace view."""
    text: str = view._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
    return text


def name_view(view: "Workspace", name: str) -> None:
    """Give a workspace view a fixed name in its address, so that saving it updates that view.

    Raises:
        ValueError: The server has no such view yet, or no such project.
    """
    from wandb_workspaces.workspaces import Workspace

    view._internal_name = name
    view._internal_id = Workspace.from_url(view.url)._internal_id
