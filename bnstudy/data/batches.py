"""Batches of images, made on the training device, and choices of samples."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from bnstudy.batching import MIN_BATCH_SIZE, batch_sizes
from bnstudy.randomness import generator_for
from bnstudy.representations.network import Batch

CHUNK_IMAGES = 10_000  # images that are read together for statistics of a whole data set


@dataclass(frozen=True)
class Normalize:
    """Standardization of uint8 images to mean 0 and standard deviation 1 over the training images.

    Attributes:
        mean: Mean of each channel, on the pixels' scale of 0 to 255, shape C x 1 x 1.
        std: Standard deviation of each channel, shape C x 1 x 1; 1 for a constant channel.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def from_images(cls, images: Tensor, rows: Tensor | None = None) -> "Normalize":
        """Compute mean and standard deviation of uint8 images N x C x H x W.

        They are computed in float64 from counts of the 256 pixel values. Unlike sums over pixels,
        counts have no rounding errors.

        Args:
            images: Images.
            rows: Indices of the images to use; None for all.
        """
        levels = torch.arange(256, dtype=torch.float64)
        counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
        chunks = (
            images.split(CHUNK_IMAGES)
            if rows is None
            else (images[part] for part in rows.split(CHUNK_IMAGES))
        )
        for chunk in chunks:
            for count, channel in zip(counts, chunk.unbind(1), strict=True):
                count += torch.bincount(channel.flatten(), minlength=256)
        weights = counts.double() / counts.sum(1, keepdim=True)
        mean = weights @ levels
        variance = (weights * (levels - mean[:, None]) ** 2).sum(1)
        std = torch.where(variance > 0, variance.sqrt(), 1.0)
        return cls(mean.float()[:, None, None], std.float()[:, None, None])

    def to(self, device: torch.device) -> "Normalize":
        """Copy to a device."""
        return Normalize(self.mean.to(device), self.std.to(device))

    def __call__(self, images: Tensor) -> Tensor:
        """Standardize images; float32, in the same shape and on the same device."""
        return images.float().sub_(self.mean).div_(self.std)


@dataclass(frozen=True)
class Augment:
    """Random augmentation of training images.

    Attributes:
        flip: Whether to mirror each image with probability 1/2.
        shift: Maximum number of pixels by which an image is moved, vertically and horizontally. A
            border of that width is added, and a crop of the image's size is chosen at random.
        fill: Border: the `mean` colour of the training images, `black`, or `reflect` for the
            mirrored image.
        black: Normalized black, shape C x 1 x 1; needed for the border `black`.
    """

    flip: bool
    shift: int
    fill: str = "mean"
    black: Tensor | None = None

    def with_black_of(self, normalize: Normalize) -> "Augment":
        """Return a copy with the attribute `black`, on the device of `normalize`."""
        return replace(self, black=normalize(torch.zeros_like(normalize.mean)))

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment normalized images, N x C x H x W, with random numbers of a CPU generator."""
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
            padded = self._padded(images)
            sample = torch.arange(count, device=device)[:, None, None]
            # With a slice between the index tensors, the result is N x H x W x C.
            images = padded[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        return images

    def _padded(self, images: Tensor) -> Tensor:
        border = [self.shift] * 4
        if self.fill == "reflect":
            return functional.pad(images, border, mode="reflect")
        padded = functional.pad(images, border)  # the mean of normalized images is 0
        if self.fill == "black":
            assert self.black is not None
            inside = functional.pad(torch.ones_like(images[:1, :1]), border)
            padded = torch.where(inside.bool(), padded, self.black)
        return padded


@dataclass(frozen=True)
class Batches:
    """Iterable over the batches of an epoch: float32 images N x C x H x W, int64 labels N.

    Every process gets at least two samples of each batch, if there are so many. A last batch that
    is too small for that is merged into the one before it.

    Attributes:
        images: uint8 images, N x C x H x W, on the device on which batches are needed, or on the
            CPU if they do not fit there.
        labels: int64 labels, N, on the device on which batches are needed.
        size: Samples in a batch, summed over the processes of a distributed run.
        normalize: Standardization of each batch, on the device of `labels`.
        make_generator: Function that returns the generator of the sample order and of the
            augmentation at the start of an epoch; None to keep the samples' order, without
            augmentation.
        augment: Augmentation of each batch, if `make_generator` is not None.
        rank: Number of this process in a distributed run; it gets its share of every batch.
        world_size: Number of processes.
        rows: Indices of the samples, on the device of `labels`; None for all.
    """

    images: Tensor
    labels: Tensor
    size: int
    normalize: Normalize
    make_generator: Callable[[], torch.Generator] | None = None
    augment: Augment = Augment(flip=False, shift=0)
    rank: int = 0
    world_size: int = 1
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self._sizes())

    def __iter__(self) -> Iterator[Batch]:
        generator = self.make_generator() if self.make_generator else None
        count = self.num_samples
        order = torch.randperm(count, generator=generator) if generator else torch.arange(count)
        order = order.to(self.labels.device)
        for batch in (order if self.rows is None else self.rows[order]).split(self._sizes()):
            # The whole batch is augmented before this process takes its share, so that images do
            # not depend on the number of processes.
            images = self.images.index_select(0, batch.to(self.images.device)).to(batch.device)
            images = self.normalize(images)
            if generator:
                images = self.augment(images, generator)
            share = slice(self.rank, None, self.world_size)
            # This is the memory format of the networks. It is set last, when it costs least.
            images = images[share].contiguous(memory_format=torch.channels_last)
            yield images, self.labels[batch[share]]

    def shuffled(self, size: int) -> "Shuffled":
        """Return the samples in one fixed random order, in batches of nearly equal size.

        A data set may be sorted by class, and batches of a single class would have other statistics
        than the whole.

        Args:
            size: Minimum number of samples in a batch, if there are so many samples; batches are as
                close to it as possible.
        """
        return Shuffled(self, size)

    @property
    def num_samples(self) -> int:
        """Number of samples of an epoch."""
        return len(self.labels if self.rows is None else self.rows)

    def _sizes(self) -> list[int]:
        return batch_sizes(self.num_samples, self.size, MIN_BATCH_SIZE * self.world_size)


@dataclass(frozen=True)
class Shuffled:
    """Iterable over shuffled batches, in the same order at each pass; see `Batches.shuffled`.

    Attributes:
        batches: Source of the samples.
        size: Minimum number of samples in a batch.
    """

    batches: Batches
    size: int

    def __iter__(self) -> Iterator[Batch]:
        source = self.batches
        count = source.num_samples
        order = torch.randperm(count, generator=generator_for("mixed")).to(source.labels.device)
        rows = order if source.rows is None else source.rows[order]
        for batch in rows.tensor_split(max(1, count // self.size)):
            images = source.images.index_select(0, batch.to(source.images.device))
            yield source.normalize(images.to(batch.device)), source.labels[batch]


def choose_balanced(labels: Tensor, count: int) -> Tensor:
    """Choose samples so that class sizes are as equal as possible, the same ones at every call.

    Args:
        labels: int64 labels, N.
        count: Number of samples to choose, at most N.

    Returns:
        Indices of the chosen samples, int64, `count`, ascending.
    """
    return balanced_order(labels)[:count].sort().values


def balanced_order(labels: Tensor) -> Tensor:
    """Order samples so that class sizes are as equal as possible among the first n, for any n.

    Args:
        labels: int64 labels, N.

    Returns:
        Indices of the samples, int64, N; the same ones at every call.
    """
    order = torch.randperm(len(labels), generator=generator_for("probe"))
    return order[_rank_within_class(labels, order)[order].argsort(stable=True)]


def balanced_folds(labels: Tensor, count: int) -> Tensor:
    """Divide each class as equally as possible among folds, in the same way at every call.

    Args:
        labels: int64 labels, N.
        count: Number of folds.

    Returns:
        Fold of each sample, from 0 to `count` - 1: int64, N.
    """
    order = torch.randperm(len(labels), generator=generator_for("folds")).to(labels.device)
    return _rank_within_class(labels, order) % count


def _rank_within_class(labels: Tensor, order: Tensor) -> Tensor:
    """Return the position of each sample among those of its class in the given order: int64, N."""
    by_class = order[labels[order].argsort(stable=True)]
    sizes = torch.bincount(labels)
    starts = sizes.cumsum(0) - sizes
    ranks = torch.empty_like(order)
    ranks[by_class] = torch.arange(len(order), device=order.device) - starts[labels[by_class]]
    return ranks


def add_label_noise(labels: Tensor, share: float, num_classes: int) -> Tensor:
    """Give a share of the samples the label of another class, drawn uniformly.

    Args:
        labels: int64 labels, N.
        share: Share of the samples, from 0 to 1; their number is rounded. The samples of a smaller
            share are among those of a larger one, with the same wrong labels.
        num_classes: Number of classes, at least 2.

    Returns:
        Labels, int64, N; the same at every call.
    """
    generator = generator_for("label noise")
    chosen = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    others = torch.randint(1, num_classes, labels.shape, generator=generator)
    wrong = labels.clone()
    wrong[chosen] = (labels[chosen] + others[chosen]) % num_classes
    return wrong


def choose_stratified(labels: Tensor, share: float) -> Tensor:
    """Choose a share of each class, the same samples at every call.

    Args:
        labels: int64 labels, N.
        share: Share of each class, from 0 to 1; counts are rounded. The samples of a smaller share
            are among those of a larger one.

    Returns:
        Mask of the chosen samples, bool, N.
    """
    generator = generator_for("validation")
    chosen = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        order = torch.randperm(len(members), generator=generator)
        chosen[members[order[: round(share * len(members))]]] = True
    return chosen
