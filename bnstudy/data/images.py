"""Images and labels of a data set, in memory or mapped from a file."""

import hashlib
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnstudy.data.contents import absolute
from bnstudy.errors import UserError
from bnstudy.files import replacing
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
                raise ValueError(
                    f"{split} images are {images.dtype} {tuple(images.shape)}; "
                    "expected uint8, N x C x H x W, N > 0"
                )
            if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
                raise ValueError(
                    f"{split} labels are {labels.dtype} {tuple(labels.shape)}; "
                    f"expected int64, {len(images)}"
                )
            if labels.min() < 0 or labels.max() >= len(self.class_names):
                raise ValueError(
                    f"{split} labels are not all from 0 to {len(self.class_names) - 1}, the number "
                    "of class names - 1"
                )
        if self.images["train"].shape[1:] != self.images["test"].shape[1:]:
            raise ValueError("training and test images differ in shape")

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of all pixels and labels, in hexadecimal."""
        digest = hashlib.sha256()
        for split in SPLITS:
            for values in (self.images[split], self.labels[split]):
                digest.update(str(tuple(values.shape)).encode())
                digest.update(np.ascontiguousarray(values.numpy()).data)
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write to one file, atomically."""
        arrays: dict[str, Any] = {"class_names": self.class_names}
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


@dataclass(frozen=True)
class MappedImages:
    """Copy of a data set's images on the disk, which is mapped into memory.

    The processes of one machine share the mapped memory, which the operating system can free.

    Attributes:
        facts: File of the labels, class names, shape and SHA-256 (npz). The file of the pixels is
            next to it: uint8, N x C x H x W, training images first.
    """

    facts: Path

    @property
    def pixels(self) -> Path:
        """File of the pixels."""
        return self.facts.with_suffix(".uint8")

    def save(
        self, shape: tuple[int, int, int], labels: dict[Split, Tensor], class_names: Sequence[str]
    ) -> None:
        """Write the facts, atomically; the file of the pixels must exist.

        Args:
            shape: Channels, height and width of an image.
            labels: Labels by split, int64.
            class_names: Names of the classes, in the order of the labels.
        """
        images = self._map(shape, labels, class_names)
        arrays: dict[str, Any] = {f"{split}_labels": labels[split].numpy() for split in SPLITS}
        with replacing(self.facts) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                shape=shape,
                class_names=class_names,
                sha256=images.sha256,
                **arrays,
            )

    def load(self) -> Images | None:
        """Map the pixels, and verify their SHA-256; None if a file does not exist or is damaged."""
        try:
            with self.facts.open("rb") as file, np.load(file) as content:
                labels: dict[Split, Tensor] = {
                    split: torch.from_numpy(content[f"{split}_labels"]) for split in SPLITS
                }
                shape = tuple(map(int, content["shape"]))
                images = self._map(shape, labels, tuple(map(str, content["class_names"])))
                return images if images.sha256 == str(content["sha256"]) else None
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
            return None

    def _map(
        self, shape: Sequence[int], labels: dict[Split, Tensor], class_names: Sequence[str]
    ) -> Images:
        counts = [len(labels[split]) for split in SPLITS]
        size = sum(counts) * math.prod(shape)
        if self.pixels.stat().st_size != size:
            raise ValueError(f"{self.pixels} has another size than {size}")
        # Not shared: if this process changed a pixel, the file would stay as it is.
        mapped = torch.from_file(str(self.pixels), shared=False, size=size, dtype=torch.uint8)
        by_split = zip(SPLITS, mapped.reshape(-1, *shape).split(counts), strict=True)
        return Images(dict(by_split), labels, tuple(class_names))


def make_folder(key: str, value: str) -> Path:
    """Make the folder that a configuration key names, unless it exists; return its absolute path.

    Args:
        key: Key of the configuration, for the error message.
        value: Value of the key.

    Raises:
        UserError: The path is a file, or the folder cannot be made.
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
