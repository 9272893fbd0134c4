"""The data sets that torchvision knows, with their official splits."""

import gzip
import os
import pickle
import zlib
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torchvision import datasets

from bnstudy.data.images import Images, existing_folder
from bnstudy.data.module import ImageDataModule
from bnstudy.errors import UserError
from bnstudy.terms import SPLITS, Split

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# Where torchvision looks, below root; told to the user when nothing is there.
EXPECTED = {
    "MNIST": f"MNIST/raw/ with {', '.join(IDX_FILES)} (.gz or unpacked)",
    "FashionMNIST": f"FashionMNIST/raw/ with {', '.join(IDX_FILES)} (.gz or unpacked)",
    "CIFAR10": "cifar-10-python.tar.gz, or the folder cifar-10-batches-py unpacked from it",
    "CIFAR100": "cifar-100-python.tar.gz, or the folder cifar-100-python unpacked from it",
}
SIZES: Mapping[str, dict[Split, int]] = {
    "MNIST": {"train": 60_000, "test": 10_000},
    "FashionMNIST": {"train": 60_000, "test": 10_000},
    "CIFAR10": {"train": 50_000, "test": 10_000},
    "CIFAR100": {"train": 50_000, "test": 10_000},
}
DAMAGE = (
    AssertionError, EOFError, IndexError, KeyError, OSError, RuntimeError, ValueError,
    gzip.BadGzipFile, pickle.UnpicklingError, zlib.error,
)  # fmt: skip


class TorchvisionImages(ImageDataModule):
    """MNIST, FashionMNIST, CIFAR10 or CIFAR100.

    Files that lie under `root` are read without a network; otherwise they are downloaded there.
    """

    def __init__(self, dataset: str, **options: Any) -> None:
        if dataset not in SIZES:
            raise UserError(f"data.dataset={dataset} is not known; it takes {', '.join(SIZES)}")
        super().__init__(**options)
        self.dataset = dataset

    def load(self) -> Images:
        """Read both splits, downloading them first where they are not there."""
        root = existing_folder("data.root", self.root)
        # Two processes do not download at once; a folder that is read-only is only read.
        writable = os.access(root, os.W_OK)
        with FileLock(root / f".{self.dataset}.lock") if writable else nullcontext():
            splits = {split: self._read(root, split) for split in SPLITS}
        return Images(
            {split: _channels_first(splits[split].data) for split in SPLITS},
            {split: torch.as_tensor(splits[split].targets).long() for split in SPLITS},
            tuple(splits["train"].classes),
        )

    def _read(self, root: Path, split: Split) -> Any:
        source = getattr(datasets, self.dataset)
        try:
            try:
                data = source(root, train=split == "train", download=False)
            except RuntimeError as error:
                if "download=True" not in str(error):  # torchvision's words for "not there"
                    raise
                data = source(root, train=split == "train", download=True)
        except DAMAGE as error:
            present = any((root / part).exists() for part in self._parts())
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"data {self.dataset}: {'damaged' if present else 'not'} in data.root={root}, "
                f"and it could not be downloaded ({reason})\n"
                f"Expected in that folder: {EXPECTED[self.dataset]}"
            ) from error
        if len(data) != SIZES[self.dataset][split]:
            raise UserError(
                f"data {self.dataset}: damaged in data.root={root}, the {split} split has "
                f"{len(data):,} images and not {SIZES[self.dataset][split]:,}\n"
                f"Expected in that folder: {EXPECTED[self.dataset]}"
            )
        return data

    def _parts(self) -> tuple[str, ...]:
        source = getattr(datasets, self.dataset)
        if issubclass(source, datasets.MNIST):
            return (f"{self.dataset}/raw",)
        return (source.base_folder, source.filename)


def _channels_first(images: Any) -> torch.Tensor:
    """N x H x W or N x H x W x C to N x C x H x W."""
    pixels: torch.Tensor = torch.as_tensor(images)
    return pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
