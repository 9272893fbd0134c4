"""Images with the preprocessing that a network was trained with."""

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

    Files of an image folder are read one by one, in their own size, when they are needed. The
    decoded copy is neither made nor used.

    Args:
        data: Images.
        transform: Function that returns a tensor. Its argument is an RGB image of Pillow's if the
            images are files, otherwise a uint8 tensor 3 x H x W.

    Returns:
        Data with the same samples, splits, labels and classes, after `setup`.
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

    def source(split: Split, split_labels: Tensor) -> SplitSource:
        return SplitSource(_Transformed(images[split], split_labels, transform))

    module = DatasetModule(
        {split: source(split, labels[split]) for split in SPLITS},
        "data",
        class_names,
        batch_size=data.batch_size,
        validation=data.validation,
        samples_per_class=data.samples_per_class,
        seed=data.seed,
        probe=data.probe_samples,
    )
    module.setup()
    if data.label_noise:
        module.mislabel(data.label_noise)
        # Batches take their labels from the source.
        module.sources = {**module.sources, "train": source("train", module.labels["train"])}
    return module


@dataclass(frozen=True)
class _Transformed(Dataset[Any]):
    """Data set of images, in memory or in files, that are preprocessed by a function."""

    images: Tensor | Sequence[Path]
    labels: Tensor
    transform: Callable[[Any], Any]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image: Any = self.images[index]
        image = image.expand(3, -1, -1) if isinstance(image, Tensor) else read_colour(image)
        return self.transform(image), int(self.labels[index])
