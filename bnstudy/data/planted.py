"""Images with known groups inside each class: a truth that clustering can be held to."""

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

COARSE = 3  # height and width of a prototype before it is enlarged: the smaller, the smoother
GREY = 127.5
CONTRAST = 40  # standard deviation of the pixels, about: few are beyond 0 or 255, and cut off


class PlantedGroups(ImageDataModule):
    """Classes made of groups that are no more alike than those of different classes.

    Every group has a prototype, a smooth random pattern; its samples are the prototype with
    independent noise on every pixel. They are drawn, not read: a function of these options alone,
    whatever the run's seed. A prototype keeps its pattern when there are more classes or groups.

    Args:
        classes: At least 2.
        groups_per_class: At least 1.
        samples_per_group: By split.
        noise: Standard deviation of a pixel's noise, in units of that of the random numbers which
            a prototype is enlarged from; at least 0.
        image_size: Height and width.
        channels: Of an image; their patterns are independent.
        options: Of every data set.

    Attributes:
        groups: Of each sample of `data`, by split, once it is loaded: int64, N, from 0 to classes x
            groups_per_class - 1; the groups of class c begin at c x groups_per_class.

    Raises:
        UserError: There is no image size.
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
                "data.image_size=null is not allowed with data=planted: it takes an integer"
            )
        super().__init__(**options)
        self.classes = classes
        self.groups_per_class = groups_per_class
        self.samples_per_group = samples_per_group
        self.noise = noise
        self.image_size = image_size
        self.channels = channels

    def load(self) -> Images:
        """Draw the prototypes, then the samples of both splits, sorted by group."""
        count = self.classes * self.groups_per_class
        prototypes = [self._prototype(*divmod(n, self.groups_per_class)) for n in range(count)]
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
        """Float64, C x H x W, around 0."""
        coarse = _normal(
            generator_for("planted", "prototype", label, group), self.channels, COARSE, COARSE
        )
        size = (self.image_size, self.image_size)
        return functional.interpolate(coarse[None], size, mode="bicubic", align_corners=True)[0]

    def _samples(self, prototypes: list[Tensor], split: Split) -> Tensor:
        """uint8, N x C x H x W, group by group."""
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
    """Standard normal, in float64: processors differ in last bits, which no pixel then shows."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)
