"""Verified reading of a run's checkpoints, and the choice of the one to resume from."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from bnstudy.errors import DamagedFile, first_line
from bnstudy.runs.record import Record

# Keys that every checkpoint must have, with the types of their values.
REQUIRED_KEYS = {"epoch": int, "global_step": int, "state_dict": dict}
ADVICE = "Remove it; its epoch can only be measured if the run is trained again"


def find_resume_point(record: Record) -> tuple[Path, int] | None:
    """Find the newest undamaged checkpoint whose epochs were all recorded.

    Damaged files are renamed: see `bnstudy.runs.paths`.

    Args:
        record: Record of the run.

    Returns:
        Checkpoint to resume from, and the number of epochs trained before it was saved; None if the
        run has to start from the beginning.
    """
    for path in (record.paths.last_checkpoint, record.paths.previous_checkpoint):
        if not path.exists():
            continue
        try:
            epochs = load_checkpoint(path)["epoch"] + 1
        except DamagedFile as error:
            record.set_aside(path, error.reason)
            continue
        if record.verify_parts(range(epochs + 1)):
            return path, epochs
    return None


def load_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU, and verify the checksums of its archive.

    torch.load does not notice flipped bits in a tensor; the CRC-32 of the zip archive does.

    Args:
        checkpoint: File of the checkpoint.

    Raises:
        DamagedFile: The file is damaged.
        PermissionError: The file may not be read.
    """
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        content: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
        for key, kind in REQUIRED_KEYS.items():
            if not isinstance(content[key], kind):
                raise TypeError(f"{key} is of type {type(content[key]).__name__}")
    except PermissionError:
        raise
    except Exception as error:  # damaged files raise errors of many classes
        raise DamagedFile(checkpoint, first_line(error), ADVICE) from error
    return content
