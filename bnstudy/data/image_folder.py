"""Images in folders, one folder a class."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from rich.progress import track
from torchvision.datasets.folder import IMG_EXTENSIONS

from bnstudy.data.images import Images, existing_folder
from bnstudy.data.module import ImageDataModule
from bnstudy.errors import UserError
from bnstudy.terms import SPLITS, Split


class ImageFolder(ImageDataModule):
    """Any tree `root/train/<class>/*` and `root/test/<class>/*` of image files.

    Grey images give one channel, if all are grey; otherwise there are three. Images of another size
    are resized to `image_size`, or to the size of the first training image. The first use decodes
    every file, with a progress bar, and keeps a copy in `cache`, used until a file changes.
    """

    def __init__(
        self, root: str, cache: str, image_size: int | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.root = root
        self.cache = cache
        self.image_size = image_size

    def load(self) -> Images:
        """Read the copy, or decode every image and make it."""
        root = Path(self.root).expanduser().resolve()
        files = {split: list(_image_files(root / split)) for split in SPLITS}
        classes = {split: sorted({path.parent.name for path in files[split]}) for split in SPLITS}
        for split in SPLITS:
            if not files[split]:
                raise UserError(
                    f"data.root={self.root}: there are no images in {root / split}/<class>/\n"
                    f"Expected: train/<class>/* and test/<class>/*: {', '.join(IMG_EXTENSIONS)}"
                )
        if unknown := set(classes["test"]) - set(classes["train"]):
            raise UserError(
                f"data.root={self.root}: classes in test and not in train: {', '.join(unknown)}"
            )

        path = existing_folder("data.cache", self.cache) / f"{self._listing(root, files)}.npz"
        with FileLock(path.with_suffix(".lock")):
            images = Images.load(path)
            if images is None:
                images = self._decode(files, classes["train"])
                images.save(path)
        return images

    def _listing(self, root: Path, files: dict[Split, list[Path]]) -> str:
        """What the decoded images depend on, as a name for their copy."""
        digest = hashlib.sha256(f"{root} {self.image_size}".encode())
        for path in (*files["train"], *files["test"]):
            status = path.stat()
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns}".encode())
        return f"image_folder-{root.name}-{digest.hexdigest()[:16]}"

    def _decode(self, files: dict[Split, list[Path]], class_names: list[str]) -> Images:
        first = _open(files["train"][0])
        size = (self.image_size, self.image_size) if self.image_size else first.size
        paths = [*files["train"], *files["test"]]
        with ThreadPoolExecutor() as pool:
            decoded = pool.map(lambda path: _pixels(path, size), paths)
            pixels = list(
                track(decoded, "Reading images", total=len(paths), update_period=1, transient=True)
            )
        if any(image.ndim == 3 for image in pixels):
            pixels = [
                image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)
                for image in pixels
            ]
        stacked = torch.from_numpy(np.stack(pixels))
        stacked = stacked.unsqueeze(1) if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2)
        number = {name: label for label, name in enumerate(class_names)}
        labels = torch.tensor([number[path.parent.name] for path in paths])
        end = len(files["train"])
        return Images(
            {"train": stacked[:end].contiguous(), "test": stacked[end:].contiguous()},
            {"train": labels[:end], "test": labels[end:]},
            tuple(class_names),
        )


def _image_files(folder: Path) -> Iterator[Path]:
    """The image files of every class folder, in a fixed order."""
    for path in sorted(folder.glob("*/*")):
        if path.suffix.lower() in IMG_EXTENSIONS:
            yield path


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"{path}: not a readable image ({error})\nMend or remove it, then run the same again"
        ) from error


def _pixels(path: Path, size: tuple[int, int]) -> Any:
    """uint8, H x W for a grey image, H x W x 3 for any other."""
    image = _open(path)
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image)
