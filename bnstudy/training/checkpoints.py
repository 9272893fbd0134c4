"""Reading a run's checkpoints, and which one an interrupted run goes on from."""

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bnstudy.errors import UserError, first_line
from bnstudy.runs.record import Record


class ResumePoint(NamedTuple):
    """What an interrupted run goes on from.

    Attributes:
        checkpoint: Of Lightning.
        epochs: That had been trained when it was saved.
    """

    checkpoint: Path
    epochs: int


def resume_point(record: Record) -> ResumePoint | None:
    """The newest checkpoint that is whole and whose epochs were all recorded; None: from the start.

    What is damaged is set aside.
    """
    for path in (record.paths.last_checkpoint, record.paths.previous_checkpoint):
        if not path.exists():
            continue
        try:
            epochs = load_checkpoint(path)["epoch"] + 1
        except UserError as error:
            record.set_aside(path, first_line(error.__cause__ or error))
            continue
        if record.has_parts(range(epochs + 1)):
            return ResumePoint(path, epochs)
    return None


def load_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, its content verified by the checksums of its archive.

    A tensor with a flipped bit loads without complaint; the archive's CRC-32 finds it.

    Raises:
        UserError: It is damaged.
    """
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        content: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
        content["epoch"]
    except Exception as error:  # whatever a damaged file makes of its readers
        raise UserError(
            f"{checkpoint} is damaged ({first_line(error)})\n"
            "Remove it; that epoch cannot be measured any more without training another run"
        ) from error
    return content
