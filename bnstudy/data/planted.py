"""Generated images with known groups inside each class, as ground truth for clustering metrics."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bnstudy.data.images import Images
from bnstudy.data.module import ImageDataModule
from bnstudy.errors import UserError
from bnstudy.randomness import generator_for
from bnstudy.terms import SPLITS, Split

COARSE_SIZE = 3  # height and width of a prototype before upsampling; the smaller, the smoother
GREY = 127.5  # mean of the pixels
CONTRAST = 40  # approximate standard deviation of the pixels, so that few are clipped to 0 or 255


class PlantedGroups(ImageDataModule):
    """Generated data set whose classes consist of several distinct groups.

    Every group has a prototype, a smooth random pattern, and its samples are the prototype plus
    independent noise on every pixel. Two groups of one class are as different as groups of two
    classes. The images depend on the following arguments, but not on the run's seed. If classes or
    groups are added, the existing prototypes keep their patterns.

    Args:
        classes: Number of classes, at least 2.
        groups_per_class: Number of groups in each class, at least 1.
        samples_per_group: Number of samples of each group, by split.
        noise: Standard deviation of a pixel's noise, at least 0, relative to that of the random
            numbers from which a prototype is upsampled.
        image_size: Height and width of an image.
        channels: Number of channels of an image, which have independent patterns.
        options: Options of `ImageDataModule`.

    Attributes:
        groups: Group of each sample of `data` by split, after loading: int64, N, from 0 to classes
            x groups_per_class - 1; the groups of class c begin at c x groups_per_class.

    Raises:
        UserError: `image_size` is None.
    """

    groups: dict[Split, Tensor]

    def __init__(
        self,
        classes: int,
        groups_per_class: int,
        samples_per_group: Mapping[Split, int],
        noise: float,
        image_size: int | None,
        channels: int,
        **options: Any,
    ) -> None:
        if image_size is None:
            raise UserError(
                "data.image_size=null is not allowed with data=planted: expected an integer"
            )
        super().__init__(**options)
        self.classes = classes
        self.groups_per_class = groups_per_class
        self.samples_per_group = samples_per_group
        self.noise = noise
        self.image_size = image_size
        self.channels = channels

    def load(self) -> Images:
        """Generate the prototypes, then the samples of both splits, sorted by group."""
        count = self.classes * self.groups_per_class
        prototypes = [
            self._prototype(label, group)
            for label in range(self.classes)
            for group in range(self.groups_per_class)
        ]
        self.groups = {
            split: torch.arange(count).repeat_interleave(self.samples_per_group[split])
            for split in SPLITS
        }
        return Images(
            {split: self._samples(prototypes, split) for split in SPLITS},
            {split: self.groups[split] // self.groups_per_class for split in SPLITS},
            tuple(map(str, range(self.classes))),
        )

    def _prototype(self, label: int, group: int) -> Tensor:
        """Generate the prototype of a group, float64, C x H x W, with values around 0."""
        shape = (self.channels, COARSE_SIZE, COARSE_SIZE)
        coarse = _normal(generator_for("planted", "prototype", label, group), *shape)
        size = (self.image_size, self.image_size)
        return functional.interpolate(coarse[None], size, mode="bicubic", align_corners=True)[0]

    def _samples(self, prototypes: list[Tensor], split: Split) -> Tensor:
        """Generate the samples of a split, uint8, N x C x H x W, sorted by group."""
        generator = generator_for("planted", split)
        count = self.samples_per_group[split]
        contrast = CONTRAST / math.hypot(1, self.noise)
        samples = []
        for prototype in prototypes:
            noise = self.noise * _normal(generator, count, *prototype.shape)
            pixels = GREY + contrast * (prototype + noise)
            samples.append(pixels.round().clamp(0, 255).to(torch.uint8))
        return torch.cat(samples)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Draw standard normal numbers in float64.

    Processors differ in the last bits of the numbers; in float64 these hardly ever change a pixel.
    """
    return torch.randn(shape, generator=generator, dtype=torch.float64)
