"""Images with another preprocessing, for networks that were trained with it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from bnstudy.data.datasets import DatasetModule, SplitSource
from bnstudy.data.decoding import read_colour
from bnstudy.data.image_folder import ImageFolder
from bnstudy.data.module import ImageDataModule
from bnstudy.terms import SPLITS, Split


def with_transform(data: ImageDataModule, transform: Callable[[Any], Any]) -> DatasetModule:
    """Give images another preprocessing.

    Files of an image folder are read one by one, in their own size, when they are needed.

    Args:
        data: Images; those of a folder are not decoded for this.
        transform: Function of an RGB image of Pillow's, or uint8 C x H x W, that returns a tensor.

    Returns:
        The same samples, splits, labels and classes, loaded.
    """
    images: Mapping[Split, Tensor | Sequence[Path]]
    if isinstance(data, ImageFolder):
        tree = data.scan()
        images = {split: tree.paths(split) for split in SPLITS}
        labels = {split: torch.tensor(tree.labels(split)) for split in SPLITS}
        class_names: Sequence[str] = tree.class_names
    else:
        data.setup()
        images, labels, class_names = data.data.images, data.data.labels, data.class_names

    def source(split: Split, labels: Tensor) -> SplitSource:
        return SplitSource(_Transformed(images[split], labels, transform))

    made = DatasetModule(
        {split: source(split, labels[split]) for split in SPLITS},
        "data",
        class_names,
        batch_size=data.batch_size,
        validation=data.validation,
        samples_per_class=data.samples_per_class,
        seed=data.seed,
        probe=data.probe_samples,
    )
    made.setup()
    if data.label_noise:
        made.mislabel(data.label_noise)
        made.sources = {**made.sources, "train": source("train", made.labels["train"])}
    return made


@dataclass(frozen=True)
class _Transformed(Dataset[Any]):
    """Images, in memory or in files, with a preprocessing of their own."""

    images: Tensor | Sequence[Path]
    labels: Tensor
    transform: Callable[[Any], Any]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image: Any = self.images[index]
        image = image.expand(3, -1, -1) if isinstance(image, Tensor) else read_colour(image)
        return self.transform(image), int(self.labels[index])
