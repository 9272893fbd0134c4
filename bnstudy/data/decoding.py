"""Decoding of image files by all cores into one file of pixels."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import joblib
import numpy as np
import numpy.typing as npt
from joblib.externals.loky import get_reusable_executor
from PIL import Image, ImageOps
from rich.progress import track

from bnstudy.errors import UserError, first_line
from bnstudy.workers import end_with_parent

# Pillow's modes without colours, of at most 8 bits.
GREY_MODES = {"1", "L", "LA", "La"}
OPAQUE = 255  # maximum of the alpha channel

# Remarks about images, printed once for a data set with the name of the first file.
TRANSPARENT = "with transparency, shown on white"
STRETCHED = "with another ratio of height to width, stretched"
SEVERAL_FRAMES = "with several frames, of which the first is read"

# Limits of one task. A task decodes at least one image, even if it exceeds MAX_CHUNK_BYTES.
MAX_CHUNK_IMAGES = 500
MAX_CHUNK_BYTES = 2**28
MIN_IMAGES_PER_PROCESS = 1_000  # fewer take less time than the start of a process
# Bytes per pixel in the file while images are decoded, as RGB needs; a 16-bit pixel uses two.
PLANES = 3

Size = tuple[int, int]  # height and width
T = TypeVar("T")


class Decoded(NamedTuple):
    """Facts about a decoded image.

    Attributes:
        kind: `grey` or `colour` for 8-bit images; `wide` for 16-bit images, which are grey.
        largest: Largest value of a `wide` image before resizing; 0 for any other image.
        is_grey: Whether all pixels of the resized image are grey.
        remarks: Facts that are reported to the user, such as `TRANSPARENT`.
    """

    kind: Literal["grey", "colour", "wide"]
    largest: int
    is_grey: bool
    remarks: tuple[str, ...]


def decode_files(paths: Sequence[Path], size: Size, pixels: Path) -> list[Decoded]:
    """Decode images, with a progress bar, into a file of one row of 3 x H x W bytes per image.

    An 8-bit grey image fills only the first H x W bytes of its row, a 16-bit image the first
    2 x H x W. `unify_formats` then gives all images the same channels and 8 bits.

    Args:
        paths: Image files.
        size: Height and width that images are resized to.
        pixels: File to create.

    Raises:
        UserError: A file is not a readable image, or its values have no known range.
    """
    pixels.touch()
    chunks = list(_chunks(paths, size))
    processes = min(joblib.cpu_count(), max(1, len(paths) // MIN_IMAGES_PER_PROCESS))
    try:
        results = joblib.Parallel(processes, return_as="generator", batch_size=1)(
            joblib.delayed(_decode_chunk)(chunk, first, size, pixels) for first, chunk in chunks
        )
        tracked = track(results, "Reading images", len(chunks), update_period=1, transient=True)
        return [image for chunk in tracked for image in chunk]
    finally:
        if processes > 1:
            get_reusable_executor().shutdown()  # its idle processes would live on for minutes


def unify_formats(pixels: Path, decoded: Sequence[Decoded], size: Size) -> tuple[int, int]:
    """Convert all images in a file of `decode_files` to 8 bits and one or three channels.

    The result has one channel if all images are grey, and at least one is in a mode without
    colours. 16-bit images are divided by 2^(bits - 8), where `bits` is the number of bits of their
    largest value, at least 8.

    Args:
        pixels: File, changed in place to N x C x H x W.
        decoded: Facts about its images.
        size: Height and width of an image.

    Returns:
        Number of channels; and `bits`, 8 if there are no 16-bit images.
    """
    if all(image.kind == "colour" for image in decoded):
        return PLANES, 8
    area = size[0] * size[1]
    bits = max(8, max(image.largest for image in decoded).bit_length())
    channels = 1 if all(image.is_grey for image in decoded) else PLANES
    with pixels.open("r+b") as file:
        for first, chunk in _chunks(decoded, size):
            file.seek(first * PLANES * area)
            rows = np.fromfile(file, np.uint8, len(chunk) * PLANES * area).reshape(-1, PLANES, area)
            for row, image in zip(rows, chunk, strict=True):
                if image.kind == "wide":
                    values = row.reshape(-1)[: 2 * area].view(np.uint16)
                    row[0] = (values >> (bits - 8)).astype(np.uint8)
                if image.kind != "colour":
                    row[1:] = row[0]
            file.seek(first * channels * area)  # never beyond what has been read
            file.write(np.ascontiguousarray(rows[:, :channels]).data)
        file.truncate(len(decoded) * channels * area)
    return channels, bits


def read_size(path: Path) -> Size:
    """Return height and width of an image, rotated as its EXIF orientation says.

    Raises:
        UserError: The file is not a readable image.
    """
    with _accepting_large_images():
        width, height = _open(path)[0].size
    return height, width


def read_colour(path: Path) -> Image.Image:
    """Read an image in its own size as RGB, rotated as its EXIF orientation says.

    Transparent pixels are shown on white.

    Raises:
        UserError: The file is not a readable image of 8 bits, or cannot be converted to RGB.
    """
    with _accepting_large_images():
        image, _ = _open(path)
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{path}: not an image of 8 bits; convert it to RGB")
    return _opaque(image, path)[0].convert("RGB")


def _chunks(items: Sequence[T], size: Size) -> Iterator[tuple[int, Sequence[T]]]:
    """Yield parts of a sequence of one item per image, each with the index of its first item."""
    count = max(1, min(MAX_CHUNK_IMAGES, MAX_CHUNK_BYTES // (PLANES * size[0] * size[1])))
    for first in range(0, len(items), count):
        yield first, items[first : first + count]


def _decode_chunk(paths: Sequence[Path], first: int, size: Size, pixels: Path) -> list[Decoded]:
    """Decode images into consecutive rows of a file, from the row with the index `first`."""
    end_with_parent()
    rows = np.zeros((len(paths), PLANES, *size), np.uint8)
    with _accepting_large_images():
        decoded = [_decode(path, row) for path, row in zip(paths, rows, strict=True)]
    with pixels.open("r+b") as file:
        file.seek(first * rows[0].nbytes)
        file.write(rows.data)  # numpy's `tofile` would not say why it fails
    return decoded


def _accepting_large_images() -> AbstractContextManager[None]:
    """Silence Pillow's warning of images above MAX_IMAGE_PIXELS; it refuses twice that number."""
    return warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)


def _open(path: Path) -> tuple[Image.Image, int]:
    """Read an image, and rotate it as its EXIF orientation says.

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


def _decode(path: Path, row: npt.NDArray[np.uint8]) -> Decoded:
    """Decode and resize an image.

    Args:
        path: Image file.
        row: Array to fill, 3 x H x W zeros; see `decode_files`.

    Raises:
        UserError: The image cannot be read, or its values have no known range.
    """
    image, frames = _open(path)
    size = row.shape[1:]
    remarks: tuple[str, ...] = (SEVERAL_FRAMES,) if frames > 1 else ()
    if abs(image.width * size[0] - image.height * size[1]) > max(image.size):
        remarks += (STRETCHED,)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image)
        if image.format == "PPM":  # Pillow has already scaled the values to 16 bits
            image = Image.fromarray((values >> 8).astype(np.uint8))
        else:
            resized = _resize(Image.fromarray(values.astype(np.float32)), size)
            wide_row = row.reshape(-1)[: 2 * size[0] * size[1]].view(np.uint16).reshape(size)
            wide_row[:] = np.asarray(resized).round().astype(np.uint16)
            return Decoded("wide", int(values.max()), True, remarks)
    if image.mode in ("I", "F"):
        kind = "floating-point" if image.mode == "F" else "signed or 32-bit integer"
        raise UserError(
            f"{path}: {kind} image, whose values have no known range from black to white\n"
            "Convert the whole data set to 8 or 16 bits, every image by the same factor"
        )
    image, is_transparent = _opaque(image, path)
    remarks += (TRANSPARENT,) if is_transparent else ()
    pixels = np.asarray(_resize(image, size))
    if pixels.ndim == 2:
        row[0] = pixels
        return Decoded("grey", 0, True, remarks)
    row[:] = pixels.transpose(2, 0, 1)
    is_grey = bool((row[0] == row[1]).all() and (row[0] == row[2]).all())
    return Decoded("colour", 0, is_grey, remarks)


def _opaque(image: Image.Image, path: Path) -> tuple[Image.Image, bool]:
    """Convert an image to grey or RGB, on white where it is transparent.

    Args:
        image: Image of at most 8 bits a channel.
        path: Its file, for the error message.

    Returns:
        Image in the mode L or RGB; and whether any of its pixels was not opaque.

    Raises:
        UserError: Pillow cannot convert the mode.
    """
    try:
        mode = "L" if image.mode in GREY_MODES else "RGB"
        if not image.has_transparency_data:
            return image.convert(mode), False
        # Pillow can convert La only to LA.
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        alpha = image.getchannel("A")
        if alpha.getextrema()[0] == OPAQUE:
            return image.convert("RGB").convert(mode), False
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB").convert(mode), True
    except ValueError as error:
        raise UserError(
            f"{path}: cannot be converted to RGB ({error})\nConvert it to 8-bit grey or RGB"
        ) from error


def _resize(image: Image.Image, size: Sequence[int]) -> Image.Image:
    height, width = size
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)
