"""Data set of image files in one folder per class."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from rich.progress import track

from bnstudy.data.contents import Listing, absolute, list_images
from bnstudy.data.image_tree import EXTENSIONS, ImageTree
from bnstudy.data.images import Images, existing_folder, locked
from bnstudy.data.module import ImageDataModule
from bnstudy.errors import UserError, first_line
from bnstudy.terminal import console

GREY_MODES = {"1", "L", "LA"}  # of Pillow
WHITE = 255

# Remarks about images, printed once for a data set with the name of the first file.
TRANSPARENT = "with transparency, shown on white"
SEVERAL_FRAMES = "with several frames, of which the first is read"


class Decoded(NamedTuple):
    """A decoded image.

    Attributes:
        pixels: Pixels, uint8: H x W of a grey image, otherwise H x W x 3; uint16, H x W, of a
            16-bit grey image.
        largest: Largest value of a 16-bit image before resizing; None for any other image.
        remarks: Facts that the user should know.
    """

    pixels: npt.NDArray[Any]
    largest: int | None = None
    remarks: tuple[str, ...] = ()


class ImageFolder(ImageDataModule):
    """Data set of image files below `root/train/<class>/` and `root/test/<class>/`, at any depth.

    If all images are grey, they have one channel, otherwise three: beside images in a mode without
    colours, images in a mode with colours are grey if all of their pixels are. Images are turned as
    their EXIF orientation says, shown on white where they are transparent, and resized to
    `image_size` or, if it is None, to the size of the first training image. 16-bit grey images are
    converted to 8 bits by one factor for the whole data set, a power of 2: the largest value of the
    data set determines the number of bits. In 12-bit data, for example, 4095 becomes 255. On first
    use every file is decoded, with a progress bar, and ignored files are reported. The decoded
    images are kept in `cache` and used until a file changes.
    """

    def __init__(
        self, root: str, cache: str, image_size: int | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.root = root
        self.cache = cache
        self.image_size = image_size
        self._listing: Listing | None = None

    def load(self) -> Images:
        """Read the decoded copy, or create it from the image files."""
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
        existing_folder("data.cache", self.cache)
        self._listing = listing = list_images(tree, self.cache, self.image_size)
        assert listing is not None
        with locked(listing.copy.with_suffix(".lock")):
            images = Images.load(listing.copy)
            if images is None:
                images = self._decode(tree)
                images.save(listing.copy)
        return images

    def listing(self) -> Listing | None:
        """Return the state of the image files before they were read."""
        return self._listing

    def _decode(self, tree: ImageTree) -> Images:
        if ignored := tree.format_ignored():
            console.print(f"data.root={self.root}: ignored {ignored}", style="yellow")
        paths = [*tree.paths("train"), *tree.paths("test")]
        with ThreadPoolExecutor() as pool, warnings.catch_warnings():
            # Pillow warns of images that take much memory, and refuses those of twice the size.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            first, _ = _open(paths[0])
            size = (self.image_size, self.image_size) if self.image_size else first.size
            images = pool.map(lambda path: _decode(path, size), paths)
            decoded = list(
                track(images, "Reading images", total=len(paths), update_period=1, transient=True)
            )
        self._print_remarks(paths, decoded)
        pixels = _with_equal_channels(self._to_8_bit(decoded))
        stacked = torch.from_numpy(np.stack(pixels))
        stacked = stacked.unsqueeze(1) if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2)
        class_names = tuple(tree.files["train"])
        number = {name: label for label, name in enumerate(class_names)}
        labels = torch.tensor(
            [
                number[name]
                for classes in tree.files.values()
                for name, files in classes.items()
                for _ in files
            ]
        )
        end = len(tree.paths("train"))
        return Images(
            {"train": stacked[:end].contiguous(), "test": stacked[end:].contiguous()},
            {"train": labels[:end], "test": labels[end:]},
            class_names,
        )

    def _print_remarks(self, paths: list[Path], decoded: list[Decoded]) -> None:
        for remark in (TRANSPARENT, SEVERAL_FRAMES):
            if named := [
                path for path, one in zip(paths, decoded, strict=True) if remark in one.remarks
            ]:
                more = f" and {len(named) - 1} more" if named[1:] else ""
                console.print(f"{named[0]}{more}: {remark}", style="yellow")

    def _to_8_bit(self, decoded: list[Decoded]) -> list[npt.NDArray[np.uint8]]:
        """Convert 16-bit images to 8 bits, all by the same factor."""
        largest = max((one.largest for one in decoded if one.largest is not None), default=None)
        if largest is None:
            return [one.pixels for one in decoded]
        bits = max(8, largest.bit_length())
        console.print(
            f"data.root={self.root}: 16-bit images, values up to {largest}, "
            f"divided by {1 << (bits - 8)} (as {bits}-bit data)"
        )
        return [
            one.pixels if one.largest is None else (one.pixels >> (bits - 8)).astype(np.uint8)
            for one in decoded
        ]


def _with_equal_channels(images: list[npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.uint8]]:
    """Give all images one channel, H x W, or all of them three, H x W x 3."""
    if any(image.ndim == 2 for image in images):
        if all(image.ndim == 2 or np.ptp(image, axis=2).max() == 0 for image in images):
            return [image if image.ndim == 2 else image[..., 0] for image in images]
        return [image if image.ndim == 3 else np.stack([image] * 3, axis=2) for image in images]
    return images


def _open(path: Path) -> tuple[Image.Image, int]:
    """Read an image, and turn it as its EXIF orientation says.

    Returns:
        First frame of the image; and the number of its frames.

    Raises:
        UserError: The file is not an image, is damaged, or has too many pixels.
    """
    try:
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return image, frames
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UserError(
            f"{path}: more than {limit:,} pixels\nMake it smaller, then run again"
        ) from error
    except Exception as error:  # damaged files raise errors of many classes
        raise UserError(
            f"{path}: not a readable image ({first_line(error)})\n"
            "Repair or remove it, then run again"
        ) from error


def _decode(path: Path, size: tuple[int, int]) -> Decoded:
    """Decode and resize an image.

    Raises:
        UserError: The image cannot be read, or its values have no known range.
    """
    image, frames = _open(path)
    remarks: tuple[str, ...] = (SEVERAL_FRAMES,) if frames > 1 else ()
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image)
        if image.format == "PPM":  # Pillow has already scaled the values to 16 bits
            image = Image.fromarray((values >> 8).astype(np.uint8))
        else:
            wide = _resized(Image.fromarray(values.astype(np.float32)), size)
            return Decoded(np.asarray(wide).round().astype(np.uint16), int(values.max()), remarks)
    if image.mode in ("I", "F"):
        kind = "floating-point" if image.mode == "F" else "signed or 32-bit integer"
        raise UserError(
            f"{path}: {kind} image, whose values have no known range from black to white\n"
            "Convert the whole data set to 8 or 16 bits, every image by the same factor"
        )
    try:
        image, is_transparent = _opaque(image)
    except ValueError as error:
        raise UserError(
            f"{path}: cannot be converted to RGB ({error})\nConvert it to 8-bit grey or RGB"
        ) from error
    remarks += (TRANSPARENT,) if is_transparent else ()
    return Decoded(np.asarray(_resized(image, size)), remarks=remarks)


def _opaque(image: Image.Image) -> tuple[Image.Image, bool]:
    """Convert an image to grey or RGB, on white where it is transparent.

    Returns:
        Image in the mode L or RGB; and whether any of its pixels was transparent.

    Raises:
        ValueError: Pillow cannot convert the mode.
    """
    mode = "L" if image.mode in {*GREY_MODES, "La"} else "RGB"
    if not image.has_transparency_data:
        return image.convert(mode), False
    # Pillow converts La to LA alone.
    image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    alpha = image.getchannel("A")
    if alpha.getextrema()[0] == WHITE:
        return image.convert("RGB").convert(mode), False
    white = Image.new("RGBA", image.size, (WHITE,) * 4)
    return Image.alpha_composite(white, image).convert("RGB").convert(mode), True


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if image.size == size:
        return image
    return image.resize(size, Image.Resampling.BILINEAR)
