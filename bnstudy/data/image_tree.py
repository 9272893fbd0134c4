"""Search for image files in one folder per class.

As in torchvision's ImageFolder, a file name extension marks an image, and symbolic links are
followed. Unlike there, hidden files, and class folders without images, are ignored.
"""

import errno
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bnstudy.errors import UserError
from bnstudy.terms import SPLITS, Split

# torchvision's IMG_EXTENSIONS; importing torchvision takes seconds.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir"}  # made by macOS's archives and Synology's servers
MAX_LISTED_NAMES = 3

# Names of ignored files and folders by reason. Files that are not images are listed by extension.
Ignored = dict[str, list[str]]


@dataclass(frozen=True)
class ImageTree:
    """Image files below `root/train/<class>/` and `root/test/<class>/`, at any depth.

    Attributes:
        root: Absolute path.
        files: Image files by split and class, in the order of their paths. Names of classes are in
            Unicode's form NFC, because macOS may store the same name in another form.
        ignored: Names of ignored files and folders, by reason.
    """

    root: Path
    files: dict[Split, dict[str, list[Path]]]
    ignored: Ignored

    @classmethod
    def scan(cls, root: Path) -> "ImageTree":
        """Find the image files.

        Args:
            root: Absolute path.

        Raises:
            UserError: A folder cannot be read, or contains an entry that is neither a file nor a
                folder, such as a link to nothing, or a name that is not UTF-8.
        """
        ignored: Ignored = defaultdict(list)
        try:
            files = {split: _find_classes(root / split, ignored) for split in SPLITS}
        except OSError as error:
            raise UserError(
                f"{error.filename}: cannot be read ({error.strerror})\n"
                "Make it readable, or move it out of the data set"
            ) from error
        return cls(root, files, ignored)

    def paths(self, split: Split) -> list[Path]:
        """List the image files of a split, sorted by class."""
        return [path for files in self.files[split].values() for path in files]

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the labels."""
        return list(self.files["train"])

    def labels(self, split: Split) -> list[int]:
        """Return the labels of the files that `paths` lists."""
        label_of = {name: label for label, name in enumerate(self.class_names)}
        return [label_of[name] for name, files in self.files[split].items() for _ in files]

    def format_ignored(self) -> str:
        """Format the number of ignored files and folders by reason; empty if there are none."""
        return ", ".join(
            f"{len(names)} {reason} ({_abbreviate(sorted(set(names)))})"
            for reason, names in sorted(self.ignored.items())
        )


def _find_classes(folder: Path, ignored: Ignored) -> dict[str, list[Path]]:
    """Find the image files of a split by class; class folders without images are ignored."""
    classes: dict[str, list[Path]] = {}
    if folder.is_dir():
        for entry in _list_visible(folder, ignored):
            if entry.is_dir():
                if images := sorted(_find_images(Path(entry.path), [folder.resolve()], ignored)):
                    classes.setdefault(unicodedata.normalize("NFC", entry.name), []).extend(images)
                else:
                    ignored["class folders without images"].append(entry.name)
            elif _is_image(entry.name):
                ignored["images outside of a class folder"].append(entry.name)
            else:
                _ignore_type(entry.name, ignored)
    return classes


def _find_images(folder: Path, above: list[Path], ignored: Ignored) -> Iterator[Path]:
    """Find the image files in a folder and its subfolders, following symbolic links.

    Args:
        folder: Folder to search.
        above: Resolved folders above it, to detect links that would lead to an endless search.
        ignored: Names of ignored files and folders, to which new ones are added.
    """
    resolved = folder.resolve()
    if resolved in above:
        ignored["links to a folder above them"].append(folder.name)
        return
    for entry in _list_visible(folder, ignored):
        if entry.is_dir():
            yield from _find_images(Path(entry.path), [*above, resolved], ignored)
        elif _is_image(entry.name):
            yield Path(entry.path)
        else:
            _ignore_type(entry.name, ignored)


def _list_visible(folder: Path, ignored: Ignored) -> list[os.DirEntry[str]]:
    """List the entries of a folder that are not hidden, sorted by name; ignore the others.

    Raises:
        OSError: An entry is neither a file nor a folder, such as a link to nothing.
        UserError: A name is not UTF-8.
    """
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    if hidden := [entry.name for entry in ordered if _is_hidden(entry.name)]:
        ignored["hidden files or folders"] += hidden
    visible = [entry for entry in ordered if not _is_hidden(entry.name)]
    for entry in visible:
        if any(unicodedata.category(letter) == "Cs" for letter in entry.name):
            raise UserError(f"{entry.path!a}: not a name in UTF-8\nRename it, then run again")
        if not (entry.is_dir() or entry.is_file()):
            entry.stat()  # raises an error for a link to nothing
            raise OSError(errno.EINVAL, "neither a file nor a folder", entry.path)
    return visible


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_FOLDERS


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _ignore_type(name: str, ignored: Ignored) -> None:
    ignored["files that are not images"].append(Path(name).suffix or name)


def _abbreviate(names: list[str]) -> str:
    more = ["..."] if len(names) > MAX_LISTED_NAMES else []
    return ", ".join([*names[:MAX_LISTED_NAMES], *more])
