"""Batches out of memory, on the training device."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bnstudy.randomness import generator_for


@dataclass(frozen=True)
class Normalize:
    """uint8 pixels to float32 with mean 0 and standard deviation 1 over the training images.

    Attributes:
        mean: By channel, in units of a pixel's 0 to 255, shape C x 1 x 1.
        std: By channel, likewise; 1 for a constant channel.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, images: Tensor) -> "Normalize":
        """From uint8 images N x C x H x W, exactly: by their histogram, in float64."""
        levels = torch.arange(256, dtype=torch.float64)
        counts = torch.stack(
            [torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]
        )
        weights = counts.double() / counts.sum(1, keepdim=True)
        mean = weights @ levels
        variance = (weights * (levels - mean[:, None]) ** 2).sum(1)
        std = torch.where(variance > 0, variance.sqrt(), 1.0)
        return cls(mean.float()[:, None, None], std.float()[:, None, None])

    def to(self, device: torch.device) -> "Normalize":
        """For images on a device."""
        return Normalize(self.mean.to(device), self.std.to(device))

    def __call__(self, images: Tensor) -> Tensor:
        """Float32, of the same shape and on the same device."""
        return images.float().sub_(self.mean).div_(self.std)


@dataclass(frozen=True)
class Augment:
    """Mirror half of a batch's images, move each by up to `shift` pixels; zeros come in."""

    flip: bool
    shift: int

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment normalized images N x C x H x W; draws from `generator`, which is on the CPU."""
        count, _, height, width = images.shape
        device = images.device
        if self.flip:
            mirrored = torch.rand(count, generator=generator) < 0.5
            images = torch.where(mirrored.to(device)[:, None, None, None], images.flip(3), images)
        if self.shift:
            offset = torch.randint(0, 2 * self.shift + 1, (2, count), generator=generator)
            rows, columns = (
                (start[:, None] + torch.arange(length)).to(device)
                for start, length in zip(offset, (height, width), strict=True)
            )
            padded = functional.pad(images, [self.shift] * 4)
            sample = torch.arange(count, device=device)[:, None, None]
            # Indexed around a slice, the channels come last: N x H x W x C.
            images = padded[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        return images


@dataclass(frozen=True)
class Batches:
    """An epoch of batches: (float32 images N x C x H x W, int64 labels N), again at each pass.

    Attributes:
        images: uint8, on the device where the batches are to be.
        labels: int64, likewise.
        size: Samples in a batch, summed over the processes of a distributed run.
        normalize: Applied to each batch, on the same device.
        shuffle: The order of the samples and of the random numbers, a function of (seed, epoch)
            alone; None keeps the samples in their order, with no augmentation.
        augment: Applied to each batch where there is an order.
        rank: Which process of a distributed run this is: it takes its share of every batch.
        world_size: How many there are.
    """

    images: Tensor
    labels: Tensor
    size: int
    normalize: Normalize
    shuffle: Callable[[], torch.Generator] | None = None
    augment: Augment = Augment(flip=False, shift=0)
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        whole, rest = divmod(len(self.labels), self.size)
        return whole + (rest >= self._smallest())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = self.shuffle() if self.shuffle else None
        count = len(self.labels)
        order = torch.randperm(count, generator=generator) if generator else torch.arange(count)
        for batch in order.to(self.labels.device).split(self.size):
            if len(batch) < self._smallest():
                return
            # The whole batch is augmented before a process takes its share, so that the images do
            # not depend on how many processes there are.
            images = self.normalize(self.images.index_select(0, batch))
            if generator:
                images = self.augment(images, generator)
            share = slice(self.rank, None, self.world_size)
            # As the networks' convolutions want them: made so at the end, where it is cheapest.
            images = images[share].contiguous(memory_format=torch.channels_last)
            yield images, self.labels[batch[share]]

    def mixed(self, size: int) -> "Mixed":
        """The samples in an order of no meaning, always the same, in batches of nearly one size.

        A data set may be sorted by class, and a batch of one class has other statistics.

        Args:
            size: Of a batch: as near to it as possible and, with enough samples, not below.
        """
        return Mixed(self, size)

    def _smallest(self) -> int:
        """Of a last batch: where it is trained on, every process needs a sample of it."""
        return self.world_size if self.shuffle else 1


@dataclass(frozen=True)
class Mixed:
    """The same mixture of samples at each pass; see `Batches.mixed`.

    Attributes:
        batches: Whose samples.
        size: Of a batch.
    """

    batches: Batches
    size: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        of = self.batches
        count = len(of.labels)
        order = torch.randperm(count, generator=generator_for("mixed")).to(of.labels.device)
        for batch in order.tensor_split(max(1, count // self.size)):
            yield of.normalize(of.images.index_select(0, batch)), of.labels[batch]


def balanced(labels: Tensor, count: int) -> Tensor:
    """Choose `count` samples, of every class as many as possible, the same ones at every call.

    Args:
        labels: int64, N.
        count: At most N.

    Returns:
        Indices, int64, `count`, ascending.
    """
    order = torch.randperm(len(labels), generator=generator_for("probe"))
    shuffled = labels[order]
    by_class = torch.argsort(shuffled, stable=True)
    sizes = torch.bincount(shuffled)
    starts = sizes.cumsum(0) - sizes
    rank = torch.empty_like(order)  # of each shuffled sample within its class
    rank[by_class] = torch.arange(len(order)) - starts[shuffled[by_class]]
    return order[torch.argsort(rank, stable=True)[:count]].sort().values


def stratified(labels: Tensor, share: float) -> Tensor:
    """Choose a share of each class, rounded, the same samples at every call.

    Args:
        labels: int64, N.
        share: From 0 to 1; a larger one chooses the same samples and more.

    Returns:
        Which are chosen, bool, N.
    """
    generator = generator_for("validation")
    chosen = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        order = torch.randperm(len(members), generator=generator)
        chosen[members[order[: round(share * len(members))]]] = True
    return chosen
