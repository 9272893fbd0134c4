"""Data sets of torchvision, with their official splits."""

import gzip
import os
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torchvision import datasets

from bnstudy.data.contents import (
    TORCHVISION_FILES,
    FilesIdentity,
    identify_torchvision,
    list_torchvision_files,
)
from bnstudy.data.images import Images, make_folder
from bnstudy.data.module import ImageDataModule
from bnstudy.errors import UserError
from bnstudy.files import locked, replacing
from bnstudy.terms import SPLITS, Split

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class Source:
    """Properties of a data set, and of torchvision's class for it.

    Attributes:
        expected: Description of the expected files, for error messages.
        sizes: Number of images of each split.
        split_argument: Function that returns the keyword argument that selects a split.
        channel_axis: Axis of the channels in the attribute `data`; None if there is no such axis.
        labels_attribute: Name of the attribute with the labels.
    """

    expected: str
    sizes: Mapping[Split, int]
    split_argument: Callable[[Split], dict[str, Any]] = lambda split: {"train": split == "train"}
    channel_axis: int | None = None
    labels_attribute: str = "targets"


def _mnist_source(name: str) -> Source:
    return Source(
        expected=f"{name}/raw/ with {', '.join(IDX_FILES)} (.gz or unpacked)",
        sizes={"train": 60_000, "test": 10_000},
    )


def _cifar_source(name: str) -> Source:
    archive, folder = TORCHVISION_FILES[name]
    return Source(
        expected=f"{archive}, or the folder {folder} unpacked from it",
        sizes={"train": 50_000, "test": 10_000},
        channel_axis=3,
    )


SOURCES = {
    "MNIST": _mnist_source("MNIST"),
    "FashionMNIST": _mnist_source("FashionMNIST"),
    "KMNIST": _mnist_source("KMNIST"),
    "CIFAR10": _cifar_source("CIFAR10"),
    "CIFAR100": _cifar_source("CIFAR100"),
    "SVHN": Source(
        expected="train_32x32.mat and test_32x32.mat",
        sizes={"train": 73_257, "test": 26_032},
        split_argument=lambda split: {"split": split},
        channel_axis=1,
        labels_attribute="labels",
    ),
}
CIFAR_FOLDERS = {  # folder that an archive contains, by the archive's name
    TORCHVISION_FILES[name][0]: TORCHVISION_FILES[name][1] for name in ("CIFAR10", "CIFAR100")
}
DIGITS = tuple(map(str, range(10)))  # class names of SVHN, which torchvision does not provide
# Exceptions that torchvision raises for missing or damaged files.
READ_ERRORS = (
    AssertionError, EOFError, IndexError, KeyError, OSError, RuntimeError, ValueError,
    pickle.UnpicklingError, tarfile.TarError, zlib.error,
)  # fmt: skip


class TorchvisionImages(ImageDataModule):
    """One of the data sets MNIST, FashionMNIST, KMNIST, CIFAR10, CIFAR100 and SVHN.

    Files that do not exist below `root` are downloaded there.
    """

    def __init__(self, dataset: str, root: str, **options: Any) -> None:
        if dataset not in SOURCES:
            raise UserError(f"data.dataset={dataset} is unknown; expected {', '.join(SOURCES)}")
        super().__init__(**options)
        self.dataset = dataset
        self.root = root

    def load(self) -> Images:
        """Read both splits, after downloading files that do not exist."""
        source = SOURCES[self.dataset]
        root = make_folder("data.root", self.root)
        with locked(root / f".{self.dataset}.lock"), _unpacked(self.dataset, root) as folder:
            splits = {split: self._read_split(source, folder, split) for split in SPLITS}
        return Images(
            {split: _channels_first(splits[split].data, source.channel_axis) for split in SPLITS},
            {
                split: torch.as_tensor(getattr(splits[split], source.labels_attribute))
                for split in SPLITS
            },
            tuple(getattr(splits["train"], "classes", DIGITS)),
        )

    def files_identity(self) -> FilesIdentity | None:
        """Return the identity of the data set's files below `root`; None if there are none."""
        return identify_torchvision(self.dataset, self.root)

    def _read_split(self, source: Source, folder: Path, split: Split) -> Any:
        """Read a split, after downloading files that do not exist.

        Raises:
            UserError: The files cannot be read or downloaded, or are damaged.
        """
        dataset_class = getattr(datasets, self.dataset)
        read = partial(dataset_class, folder, **source.split_argument(split))
        try:
            try:
                dataset = read(download=False)
            except RuntimeError as error:
                if "download=True" not in str(error):  # torchvision's message for missing files
                    raise
                dataset = read(download=True)
        except READ_ERRORS as error:
            has_files = bool(list_torchvision_files(self.dataset, folder))
            if has_files and isinstance(error, PermissionError):
                raise UserError(
                    f"data {self.dataset}: {error.filename} cannot be read ({error.strerror})\n"
                    "Make it readable, or set data.root to another folder"
                ) from error
            reason = " ".join(str(error).split()) or type(error).__name__
            state = "damaged" if has_files else "not there"
            raise UserError(
                f"data {self.dataset}: {state} in data.root={self.root}, and could not be "
                f"downloaded ({reason})\n"
                f"Set data.root to a folder with {source.expected}"
            ) from error
        if len(dataset) != source.sizes[split]:
            raise UserError(
                f"data {self.dataset}: damaged in data.root={self.root}, the {split} split has "
                f"{len(dataset):,} images and not {source.sizes[split]:,}\n"
                f"Expected in that folder: {source.expected}"
            )
        return dataset


@contextmanager
def _unpacked(dataset: str, root: Path) -> Iterator[Path]:
    """Unpack the archives of a data set, and yield the folder to read it from.

    torchvision accepts an archive only with the checksum that it knows, but the same content may
    have been packed in another way. The unpacked files are verified afterwards, by torchvision and
    by the number of images.

    Args:
        dataset: Name of the data set.
        root: Root of the data set. If it is read-only, a temporary folder is yielded, with links to
            its files.
    """
    files = list_torchvision_files(dataset, root)
    folders = {root, *(file.parent for file in files)}
    if not files or all(os.access(folder, os.W_OK) for folder in folders):
        _unpack(files)
        yield root
        return
    with TemporaryDirectory() as temporary:
        links = [Path(temporary) / file.relative_to(root) for file in files]
        for link, file in zip(links, files, strict=True):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
        _unpack(links)
        yield Path(temporary)


def _unpack(files: list[Path]) -> None:
    """Unpack each archive among files into its folder, unless it is unpacked or damaged."""
    for packed in files:
        with suppress(*READ_ERRORS):
            if packed.stem in IDX_FILES and not packed.with_suffix("").exists():
                with replacing(packed.with_suffix("")) as unpacked, gzip.open(packed) as content:
                    unpacked.write_bytes(content.read())
            elif packed.name in CIFAR_FOLDERS:
                folder = CIFAR_FOLDERS[packed.name]
                if not (packed.parent / folder).exists():
                    with (
                        TemporaryDirectory(dir=packed.parent) as temporary,
                        tarfile.open(packed) as archive,
                    ):
                        archive.extractall(temporary, filter="data")
                        Path(temporary, folder).rename(packed.parent / folder)


def _channels_first(images: Any, channel_axis: int | None) -> torch.Tensor:
    """Convert images to N x C x H x W.

    Args:
        images: Images, N x H x W or with an axis of channels.
        channel_axis: Axis of the channels; None if there is none.
    """
    pixels: torch.Tensor = torch.as_tensor(images)
    if channel_axis is None:
        return pixels.unsqueeze(1)
    return pixels.movedim(channel_axis, 1).contiguous()
