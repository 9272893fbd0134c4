"""What one pass over a layer's activations adds up, block of channels by block of channels.

A layer that does not fit in memory is read a block at a time; one that does is passed in blocks as
well, so that what is computed on the way stays small.
"""

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

BLOCK = 2**24  # values: 64 MiB in float32; large enough for a matrix product's full speed
PART = 2**18  # values that stay in the processor's cache
STRIP = 250  # rows of the Gram matrix computed at once, so that little is computed twice


class Classes:
    """The classes of N samples, numbered from 0 without gaps.

    Attributes:
        labels: The label of each class: int64, C.
        index: The class of each sample: int64, N.
        sizes: Samples in each class: int64, C.
    """

    labels: Tensor
    index: Tensor
    sizes: Tensor

    def __init__(self, labels: Tensor) -> None:
        self.labels, self.index, self.sizes = torch.unique(
            labels, return_inverse=True, return_counts=True
        )

    @cached_property
    def membership(self) -> Tensor:
        """1 where a sample is in a class: float32, N x C."""
        return torch.nn.functional.one_hot(self.index, len(self.sizes)).float()


class Sums:
    """What is added up over the blocks of a layer.

    Args:
        shape: N, the channels, and the positions in a channel's map.
        classes: Of the samples.
    """

    def __init__(self, shape: tuple[int, int, int], classes: Classes) -> None:
        self.shape = shape
        self.classes = classes
        self.device = classes.index.device

    def add_all(self, activations: Tensor, first: int = 0) -> None:
        """Add activations of any floating type, N x channels x positions, from a first channel."""
        at_once = max(1, BLOCK // max(1, len(activations) * activations.shape[2]))
        for block in activations.split(at_once, dim=1):
            self.add(block, first)
            first += block.shape[1]

    def add(self, block: Tensor, first: int) -> None:
        """Add one block, N x some of the channels x positions, from a first channel."""
        raise NotImplementedError

    def finish(self) -> None:
        """Settle what can only be known once all blocks have been added."""
        raise NotImplementedError


def _parts(block: Tensor) -> Iterator[Tensor]:
    """A few samples of a block at a time."""
    return iter(block.split(max(1, PART // max(1, block[:1].numel()))))


class Activity(Sums):
    """Where a layer is silent, how large it gets, and whether it is the same for all samples.

    Attributes:
        zeros: Zeros in each channel's map of each sample: int32, N x channels.
        dead_units: How many units are 0 on every sample.
        largest: The largest absolute activation; NaN if one is NaN.
        is_constant: Whether all samples have the same representation.
    """

    def __init__(self, shape: tuple[int, int, int], classes: Classes) -> None:
        super().__init__(shape, classes)
        self.dead_units = 0
        self.largest = 0.0
        self.is_constant = True
        self.zeros = torch.empty(0)
        self._zeros: list[Tensor] = []

    def add(self, block: Tensor, first: int) -> None:
        """Add one block."""
        zeros, smallest, largest = [], [], []  # the last two of each unit, over samples
        for part in _parts(block):
            zeros.append((part == 0).sum(2, dtype=torch.int32))
            smallest.append(part.amin(0))
            largest.append(part.amax(0))
        self._zeros.append(torch.cat(zeros))
        low, high = torch.stack(smallest).amin(0), torch.stack(largest).amax(0)
        self.is_constant = self.is_constant and bool((low == high).all())
        self.dead_units += int(((low == 0) & (high == 0)).sum())
        most = torch.maximum(-low, high).amax().float()
        self.largest = torch.maximum(most, most.new_tensor(self.largest)).item()

    def finish(self) -> None:
        """Join what was counted."""
        self.zeros = torch.cat(self._zeros, 1)


class Moments(Sums):
    """Sums of powers, by sample, by unit and by channel.

    Attributes:
        absolute: Sum of a sample's absolute activations: float64, N.
        squares: Sum of their squares: float64, N.
        lifetime: By unit, (mean |x|)^2 / mean x^2 over samples; NaN where it is 0 on all of them:
            float64, D.
        channels: By channel, mean, variance, third and fourth central moment, share of values of 0
            and below: float64, channels x 5.
    """

    def __init__(self, shape: tuple[int, int, int], classes: Classes) -> None:
        super().__init__(shape, classes)
        self.absolute = torch.zeros(shape[0], dtype=torch.float64, device=self.device)
        self.squares = torch.zeros_like(self.absolute)
        self.lifetime = self.channels = torch.empty(0)
        self._lifetime: list[Tensor] = []
        self._channels: list[Tensor] = []

    def add(self, block: Tensor, first: int) -> None:
        """Add one block."""
        samples, channels, positions = block.shape
        of_unit = block.new_zeros(2, channels, positions, dtype=torch.float64)
        sums = block.new_zeros(5, channels, dtype=torch.float64)
        largest = block.new_zeros(channels, dtype=torch.float32)
        start = 0
        for part in _parts(block):
            part = part.float()
            size, square = part.abs(), part.square()
            stop = start + len(part)
            self.absolute[start:stop] += size.sum((1, 2))
            self.squares[start:stop] += square.sum((1, 2))
            of_unit[0] += size.sum(0)
            of_unit[1] += square.sum(0)
            largest = torch.maximum(largest, size.amax((0, 2)))
            sums[0] += part.sum((0, 2))
            sums[4] += (part <= 0).sum((0, 2))
            start = stop
        mean = (sums[0] / (samples * positions)).float()[:, None]
        # By the largest value, so that no fourth power leaves the range of float32.
        scale = torch.where(largest > 0, largest, 1)
        for part in _parts(block):
            centred = (part.float() - mean).div_(scale[:, None])
            square = centred.square()
            sums[1] += square.sum((0, 2))
            sums[2] += (square * centred).sum((0, 2))
            sums[3] += square.square_().sum((0, 2))
        sums[1:4] *= scale.double() ** torch.tensor([[2], [3], [4]], device=scale.device)
        self._lifetime.append((of_unit[0] / samples).square() / (of_unit[1] / samples))
        self._channels.append(sums.T / (samples * positions))

    def finish(self) -> None:
        """Join what was added up."""
        self.lifetime = torch.cat([part.flatten() for part in self._lifetime])
        self.channels = torch.cat(self._channels)


class ClassSums(Sums):
    """What follows from the class means and the residuals, each sample's difference from its own.

    Where the layer has at most as many units as samples, the centred activations are kept: they
    take no more than a Gram matrix.

    Attributes:
        class_means: Float32, C x D.
        centred: The activations minus their mean: float32, N x D; None where D > N.
        residual_norms_squared: Float32, N.
        with_means: Inner products of residuals and the centred class means: float32, N x C.
        of_means: Inner products of the centred class means: float64, C x C.
        mean_distances_squared: Between class means: float64, C x C.
        residuals_with_mean: Inner products of residuals and the mean of all: float32, N.
        means_with_mean: Of the centred class means and the mean of all: float64, C.
        mean_norm_squared: Of the mean of all.
    """

    def __init__(self, shape: tuple[int, int, int], classes: Classes) -> None:
        super().__init__(shape, classes)
        samples, count = len(classes.index), len(classes.sizes)

        def zeros(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*size, dtype=dtype, device=self.device)

        self.residual_norms_squared = zeros(samples)
        self.with_means = zeros(samples, count)
        self.of_means = zeros(count, count, dtype=torch.float64)
        self.mean_distances_squared = zeros(count, count, dtype=torch.float64)
        self.residuals_with_mean = zeros(samples)
        self.means_with_mean = zeros(count, dtype=torch.float64)
        self.mean_norm_squared = 0.0
        self.class_means = zeros(0)
        self.centred: Tensor | None = None
        self._class_means: dict[int, Tensor] = {}  # by first channel
        self._centred: list[Tensor] = []
        self._buffer = zeros(0)

    def add(self, block: Tensor, first: int) -> None:
        """Add one block."""
        values = self._copied(block)
        means = self.classes.membership.T @ values / self.classes.sizes[:, None]
        mean = self.classes.sizes.double() @ means.double() / len(values)
        self._class_means[first] = means
        if self.shape[1] * self.shape[2] <= self.shape[0]:
            self._centred.append(values - mean.float())
        residuals = values.addmm_(self.classes.membership, means, alpha=-1)
        means = means.double() - mean
        self.with_means.addmm_(residuals, means.float().T)
        self.residuals_with_mean.addmv_(residuals, mean.float())
        self.of_means.addmm_(means, means.T)
        self.means_with_mean.addmv_(means, mean)
        self.mean_norm_squared += mean.square().sum().item()
        apart = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist")
        self.mean_distances_squared += apart.square_()
        self._add_products(residuals)

    def _add_products(self, residuals: Tensor) -> None:
        self.residual_norms_squared += torch.linalg.vector_norm(residuals, dim=1).square_()

    def _copied(self, block: Tensor) -> Tensor:
        """A block as float32, N x units, in memory that is used for the next block again."""
        if self._buffer.numel() < block.numel():
            self._buffer = torch.empty(block.numel(), device=self.device)
        values = self._buffer[: block.numel()].view(block.shape)
        return values.copy_(block).flatten(1)

    def finish(self) -> None:
        """Join what is kept, and let go of the memory that was worked in."""
        self.class_means = torch.cat([self._class_means[at] for at in sorted(self._class_means)], 1)
        self.centred = torch.cat(self._centred, 1) if self._centred else None
        self._buffer = self._buffer.new_empty(0)
        self._class_means, self._centred = {}, []


class Products(ClassSums):
    """The inner products of all residuals besides: the one N x N x D product of a layer.

    Attributes:
        residuals: Inner products of residuals: float32, N x N.
    """

    def __init__(self, shape: tuple[int, int, int], classes: Classes) -> None:
        super().__init__(shape, classes)
        samples = len(classes.index)
        self.residuals = torch.zeros(samples, samples, device=self.device)

    def _add_products(self, residuals: Tensor) -> None:
        # Only what lies on and above the diagonal, in strips; the rest is its mirror image.
        for start in range(0, len(residuals), STRIP):
            strip = self.residuals[start : start + STRIP, start:]
            strip.addmm_(residuals[start : start + STRIP], residuals[start:].T)

    def finish(self) -> None:
        """Fill in what lies below the diagonal."""
        super().finish()
        for start in range(0, len(self.residuals), STRIP):
            stop = start + STRIP
            self.residuals[stop:, start:stop] = self.residuals[start:stop, stop:].T
        self.residual_norms_squared = self.residuals.diagonal()
