"""Data set of image files in one folder per class."""

from collections.abc import Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import torch

from bnstudy.data.contents import FilesIdentity, absolute, identify_images
from bnstudy.data.decoding import (
    SEVERAL_FRAMES,
    STRETCHED,
    TRANSPARENT,
    Decoded,
    decode_files,
    read_size,
    unify_formats,
)
from bnstudy.data.image_tree import EXTENSIONS, ImageTree
from bnstudy.data.images import Images, MappedImages, make_folder
from bnstudy.data.module import ImageDataModule
from bnstudy.errors import UserError
from bnstudy.files import locked, remove_leftovers, replacing
from bnstudy.terminal import console
from bnstudy.terms import SPLITS

MAX_PIXELS = 10_000**2  # maximum height x width of an image in the decoded copy


class ImageFolder(ImageDataModule):
    """Data set of image files below `root/train/<class>/` and `root/test/<class>/`, at any depth.

    Images are rotated as their EXIF orientation says, shown on white where they are transparent,
    and resized.

    The images have one channel if all their pixels are grey, and at least one file is in a mode
    without colours. Otherwise they have three channels.

    16-bit grey images are converted to 8 bits: their values are divided by one power of 2, so that
    the largest value of the data set just fits into 8 bits. In 12-bit data, for example, 4095
    becomes 255. PGM files are an exception: each states a maximum in its header, which becomes 255.

    The decoded images are kept in `cache`, and used until a file, its path or `image_size` changes.
    While files are decoded, in several processes if there are many, a progress bar is shown.
    Ignored files are reported. The decoded copy is mapped into memory, and all processes of a
    machine share that memory.

    Args:
        root: Folder of the image files.
        cache: Folder of the decoded copy.
        image_size: Height and width that images are resized to; None for those of the first
            training image.
        options: Options of `ImageDataModule`.
    """

    def __init__(
        self, root: str, cache: str, image_size: int | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.root = root
        self.cache = cache
        self.image_size = image_size
        self._files_identity: FilesIdentity | None = None

    def scan(self) -> ImageTree:
        """Find the image files, without decoding them.

        Raises:
            UserError: There is no such folder, a split has no images, there are fewer than two
                classes, or a class of the test split is not in the training split.
        """
        tree = ImageTree.scan(absolute(self.root))
        if not tree.root.is_dir():
            raise UserError(
                f"data.root={self.root}: there is no folder {tree.root}\n"
                "Set data.root to the folder of train/<class>/* and test/<class>/*"
            )
        for split, classes in tree.files.items():
            if not classes:
                ignored = tree.format_ignored()
                raise UserError(
                    f"data.root={self.root}: there are no images in {tree.root / split}/<class>/"
                    f"{f'; ignored: {ignored}' if ignored else ''}\n"
                    f"Expected: train/<class>/* and test/<class>/*: {', '.join(EXTENSIONS)}"
                )
        if unknown := tree.files["test"].keys() - tree.files["train"].keys():
            raise UserError(
                f"data.root={self.root}: classes in test and not in train: "
                f"{', '.join(sorted(unknown))}"
            )
        if len(tree.files["train"]) < 2:
            (name,) = tree.files["train"]
            raise UserError(
                f"data.root={self.root}: one class only ({name}) in {tree.root / 'train'}; a "
                "classifier needs two\nExpected: train/<class>/* and test/<class>/*"
            )
        return tree

    def load(self) -> Images:
        """Map the decoded copy into memory; create it first if there is none for these files."""
        tree = self.scan()
        make_folder("data.cache", self.cache)
        self._files_identity = identity = identify_images(tree, self.cache, self.image_size)
        assert identity is not None
        with locked(identity.copy_path.with_suffix(".lock")) as has_lock:
            copy = MappedImages(identity.copy_path)
            images = copy.load()
            if images is None:
                if has_lock:  # False where no lock can be made, as in a read-only folder
                    remove_leftovers(copy.pixels)  # a killed process may leave gigabytes
                self._decode(tree, copy)
                images = copy.load()
                if images is None:
                    raise UserError(f"{copy.pixels} is damaged; remove it, and check the disk")
        return images

    def files_identity(self) -> FilesIdentity | None:
        """Return the identity that `load` found before it read the files; None before `load`."""
        return self._files_identity

    def _decode(self, tree: ImageTree, copy: MappedImages) -> None:
        """Decode the image files into the copy, and report what the user should know."""
        if ignored := tree.format_ignored():
            console.print(f"data.root={self.root}: ignored {ignored}", style="yellow")
        paths = [path for split in SPLITS for path in tree.paths(split)]
        size = (self.image_size, self.image_size) if self.image_size else read_size(paths[0])
        if size[0] * size[1] > MAX_PIXELS:
            origin = "" if self.image_size else f", the size of {paths[0]},"
            raise UserError(
                f"data.image_size={self.image_size or 'null'}: images of "
                f"{size[0]} x {size[1]} pixels{origin} are too large\n"
                f"Set data.image_size to at most {isqrt(MAX_PIXELS)}"
            )
        with replacing(copy.pixels) as temporary:
            decoded = decode_files(paths, size, temporary)
            self._print_remarks(paths, decoded)
            channels, bits = unify_formats(temporary, decoded, size)
        largest = max(image.largest for image in decoded)
        if any(image.kind == "wide" for image in decoded):
            console.print(
                f"data.root={self.root}: 16-bit images, values up to {largest}, "
                f"divided by {1 << (bits - 8)} (as {bits}-bit data)"
            )
        labels = {split: torch.tensor(tree.labels(split)) for split in SPLITS}
        copy.save((channels, *size), labels, tree.class_names)

    def _print_remarks(self, paths: Sequence[Path], decoded: Sequence[Decoded]) -> None:
        for remark in (TRANSPARENT, SEVERAL_FRAMES, STRETCHED):
            affected = [
                path for path, image in zip(paths, decoded, strict=True) if remark in image.remarks
            ]
            if affected:
                more = f" and {len(affected) - 1} more" if affected[1:] else ""
                console.print(f"{affected[0]}{more}: {remark}", style="yellow")
