"""Data set of images in memory."""

import hashlib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from bnstudy.data.contents import absolute
from bnstudy.errors import UserError
from bnstudy.files import CANNOT_WRITE, replacing
from bnstudy.terms import SPLITS, Split


@dataclass(frozen=True)
class Images:
    """Images and labels of both splits.

    Attributes:
        images: Images by split, uint8, N x C x H x W, 0 to 255.
        labels: Labels by split, int64, N, from 0 to the number of classes - 1.
        class_names: Names of the classes, in the order of the labels.
    """

    images: dict[Split, Tensor]
    labels: dict[Split, Tensor]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        for split in SPLITS:
            images, labels = self.images[split], self.labels[split]
            if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
                raise ValueError(f"{split} images: {images.dtype} {tuple(images.shape)}")
            if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
                raise ValueError(f"{split} labels: {labels.dtype} {tuple(labels.shape)}")
            if labels.min() < 0 or labels.max() >= len(self.class_names):
                raise ValueError(f"{split} labels are not all below {len(self.class_names)}")
        if self.images["train"].shape[1:] != self.images["test"].shape[1:]:
            raise ValueError("training and test images differ in shape")

    def fingerprint(self) -> str:
        """Compute the SHA-256 of all pixels and labels, in hexadecimal."""
        digest = hashlib.sha256()
        for split in SPLITS:
            for values in (self.images[split], self.labels[split]):
                digest.update(str(tuple(values.shape)).encode())
                digest.update(np.ascontiguousarray(values.numpy()).data)
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write to one file, atomically."""
        arrays: dict[str, Any] = {"class_names": np.array(self.class_names)}
        for split in SPLITS:
            arrays[f"{split}_images"] = self.images[split].numpy()
            arrays[f"{split}_labels"] = self.labels[split].numpy()
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Images | None":
        """Read a file that `save` wrote; None if it does not exist or is damaged."""
        try:
            with path.open("rb") as file, np.load(file) as content:
                return cls(
                    {split: torch.from_numpy(content[f"{split}_images"]) for split in SPLITS},
                    {split: torch.from_numpy(content[f"{split}_labels"]) for split in SPLITS},
                    tuple(map(str, content["class_names"])),
                )
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
            return None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file in the body, so that of several processes one makes the files of a data set.

    If there can be no lock, in a folder that is read-only or another user's or on a file system
    without locks, the body runs without it: the files may be there already.

    Args:
        path: Lock file.
    """
    lock = FileLock(path, mode=0o666)  # other users of a shared folder take it as well
    try:
        lock.acquire()
    except NotImplementedError:  # raised by filelock for such a file system
        pass
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
    try:
        yield
    finally:
        lock.release()


def existing_folder(key: str, value: str) -> Path:
    """Create the folder of a configuration key if it does not exist, and return its absolute path.

    Args:
        key: Key of the configuration, for the error message.
        value: Value of the key.

    Raises:
        UserError: The path is a file, or the folder cannot be created.
    """
    folder = absolute(value)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "is a file" if folder.is_file() else str(error.strerror).lower()
        raise UserError(
            f"{key}={value}: {reason}; set {key} to a folder that can be written to"
        ) from error
    return folder
