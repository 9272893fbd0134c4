"""What one pass over a layer's activations adds up, block of channels by block of channels.

A layer that does not fit in memory is read a block at a time; one that does is passed in blocks as
well, so that what is computed on the way stays small.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor

BLOCK = 2**24  # values: 64 MiB in float32; large enough for a matrix product's full speed
PART = 2**18  # values that stay in the processor's cache
TILE = 1000  # rows and columns of the Gram matrix computed at once: a product's full speed
STRIP = 250  # rows of a tile on the diagonal, so that little is computed twice
LARGEST = 1e15  # what the largest activation is scaled to before it is squared
SILENT = 1e-30  # mean square of a unit, so scaled, below which float32 does not tell it from 0


@contextmanager
def in_float32(device: torch.device) -> Iterator[None]:
    """Compute in full float32, whatever precision the surroundings have chosen; no gradients."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


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

    def add_all(self, activations: Tensor, first: int = 0) -> None:
        """Add activations of any floating type, N x channels x positions, from a first channel."""
        at_once = max(1, BLOCK // max(1, len(activations) * activations.shape[2]))
        with in_float32(activations.device):
            for block in activations.split(at_once, dim=1):
                block = block.float() if block.dtype == torch.float64 else block
                self.add(block, slice(first, first + block.shape[1]))
                first += block.shape[1]

    def add(self, block: Tensor, channels: slice) -> None:
        """Add one block: the given channels, N x channels x positions."""
        raise NotImplementedError

    def finish(self) -> None:
        """Settle what can only be known once all blocks have been added."""

    def _zeros(self, *size: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.zeros(*size, dtype=dtype, device=self.classes.index.device)


def _parts(block: Tensor) -> Iterator[Tensor]:
    """A few samples of a block at a time."""
    return iter(block.split(max(1, PART // max(1, block[:1].numel()))))


def _as_numbers(compare: Callable[..., Tensor], part: Tensor) -> Tensor:
    """1.0 where a comparison with 0 holds, 0.0 elsewhere: several times as fast as a bool."""
    return compare(part, 0, out=torch.empty_like(part))


class Activity(Sums):
    """Where a layer is silent, how large it gets, and whether it is the same for all samples.

    Attributes:
        zeros: How many activations of each channel are 0: int64, channels.
        silent_maps: For how many samples each channel's whole map is 0: int64, channels.
        dead_units: How many units are 0 on every sample.
        largest: The largest absolute activation; NaN if one is NaN.
        is_constant: Whether all samples have the same representation.
    """

    def __init__(self, shape: tuple[int, int, int], classes: Classes) -> None:
        super().__init__(shape, classes)
        self.zeros = self._zeros(shape[1], dtype=torch.int64)
        self.silent_maps = self._zeros(shape[1], dtype=torch.int64)
        self.dead_units = 0
        self.largest = 0.0
        self.is_constant = True

    def add(self, block: Tensor, channels: slice) -> None:
        """Add one block."""
        low = high = block[:0].sum(0)  # of each unit over samples, from 0
        first = True
        for part in _parts(block):
            zeros = _as_numbers(torch.eq, part).sum(2, dtype=torch.float32)
            self.zeros[channels] += zeros.sum(0).long()
            self.silent_maps[channels] += (zeros == part.shape[2]).sum(0)
            smallest, largest = part.amin(0), part.amax(0)
            low = smallest if first else torch.minimum(low, smallest)
            high = largest if first else torch.maximum(high, largest)
            first = False
        self.is_constant = self.is_constant and bool((low == high).all())
        self.dead_units += int(((low == 0) & (high == 0)).sum())
        most = torch.maximum(-low, high).amax().float()
        self.largest = torch.maximum(most, most.new_tensor(self.largest)).item()


class Moments(Sums):
    """Sums of powers, by sample, by unit and by channel.

    Attributes:
        absolute: Sum of a sample's absolute activations: float64, N.
        squares: Sum of their squares: float64, N.
        lifetime: By unit, (mean |x|)^2 / mean x^2 over samples; NaN where it is 0 on all of them:
            float64, channels x positions.
        channels: By channel, mean, variance, third and fourth central moment, share of values of 0
            and below: float64, channels x 5.
    """

    def __init__(self, shape: tuple[int, int, int], classes: Classes) -> None:
        super().__init__(shape, classes)
        samples, channels, positions = shape
        self.absolute, self.squares = self._zeros(samples), self._zeros(samples)
        self.lifetime = self._zeros(channels, positions)
        self.channels = self._zeros(channels, 5)

    def add(self, block: Tensor, channels: slice) -> None:
        """Add one block."""
        samples, count, positions = block.shape
        largest = block.new_zeros(count, dtype=torch.float32)
        for part in _parts(block):
            low, high = part.amin((0, 2)).float(), part.amax((0, 2)).float()
            largest = torch.maximum(largest, torch.maximum(-low, high))
        # So that no square, of the smallest unit or the largest, leaves the range of float32.
        scale = min(LARGEST / max(largest.amax().item(), 1e-30), 1e30)
        of_unit, sums = self._zeros(2, count, positions), self._zeros(5, count)
        start = 0
        for part in _parts(block):
            scaled = part.float() * scale
            stop = start + len(part)
            sums[0] += scaled.sum((0, 2))
            sums[4] += _as_numbers(torch.le, scaled).sum((0, 2))
            square = scaled.square()
            size = scaled.abs_()
            self.absolute[start:stop] += size.sum((1, 2)).double() / scale
            self.squares[start:stop] += square.sum((1, 2)).double() / scale**2
            of_unit[0] += size.sum(0)
            of_unit[1] += square.sum(0)
            start = stop
        sums[0] /= samples * positions
        # By the channel's largest value, so that no fourth power leaves it either.
        unit = torch.where(largest > 0, largest, 1) * scale
        mean = sums[0].float()[:, None]
        for part in _parts(block):
            centred = (part.float() * scale).sub_(mean).div_(unit[:, None])
            square = centred.square()
            sums[1] += square.sum((0, 2))
            sums[2] += centred.mul_(square).sum((0, 2))
            sums[3] += square.square_().sum((0, 2))
        sums[0] /= scale
        sums[1:] /= samples * positions
        sums[1:4] *= (unit.double() / scale) ** torch.tensor([[2], [3], [4]], device=unit.device)
        silent = of_unit[1] < SILENT * samples
        lifetime = of_unit[0].square() / (samples * of_unit[1])
        self.lifetime[channels] = lifetime.masked_fill(silent, torch.nan)
        self.channels[channels] = sums.T


class ClassSums(Sums):
    """What follows from the class means and the residuals, each sample's difference from its own.

    Where the layer has at most as many units as samples, the centred activations are kept: they
    take no more than a Gram matrix.

    Attributes:
        class_means: Float32, C x D.
        centred: The activations minus their mean: float32, N x D; None where D > N.
        residual_norms_squared: Float32, N.
        residuals_dot_means: Inner products of residuals and centred class means: float32, N x C.
        means_gram: Inner products of the centred class means: float64, C x C.
        mean_distances_squared: Between class means: float64, C x C.
        residuals_dot_mean: Inner products of residuals and the mean of all: float32, N.
        means_dot_mean: Of the centred class means and the mean of all: float64, C.
        mean_norm_squared: Of the mean of all.
    """

    def __init__(self, shape: tuple[int, int, int], classes: Classes) -> None:
        super().__init__(shape, classes)
        samples, count, units = shape[0], len(classes.sizes), shape[1] * shape[2]
        self.class_means = self._zeros(count, units, dtype=torch.float32)
        self.centred: Tensor | None = None
        if units <= samples:
            self.centred = self._zeros(samples, units, dtype=torch.float32)
        self.residual_norms_squared = self._zeros(samples, dtype=torch.float32)
        self.residuals_dot_means = self._zeros(samples, count, dtype=torch.float32)
        self.means_gram = self._zeros(count, count)
        self.mean_distances_squared = self._zeros(count, count)
        self.residuals_dot_mean = self._zeros(samples, dtype=torch.float32)
        self.means_dot_mean = self._zeros(count)
        self.mean_norm_squared = 0.0
        self._buffer = self._zeros(0, dtype=torch.float32)

    def add(self, block: Tensor, channels: slice) -> None:
        """Add one block."""
        values = self._copied(block)
        units = slice(channels.start * self.shape[2], channels.stop * self.shape[2])
        class_means = self.classes.membership.T @ values / self.classes.sizes[:, None]
        self.class_means[:, units] = class_means
        mean = self.classes.sizes.double() @ class_means.double() / len(values)
        if self.centred is not None:
            self.centred[:, units] = values - mean.float()
        residuals = values.addmm_(self.classes.membership, class_means, alpha=-1)
        means = class_means.double() - mean
        self.residuals_dot_means.addmm_(residuals, means.float().T)
        self.residuals_dot_mean.addmv_(residuals, mean.float())
        self.means_gram.addmm_(means, means.T)
        self.means_dot_mean.addmv_(means, mean)
        self.mean_norm_squared += mean.square().sum().item()
        self._add_products(residuals)

    def _add_products(self, residuals: Tensor) -> None:
        self.residual_norms_squared += torch.linalg.vector_norm(residuals, dim=1).square_()

    def _copied(self, block: Tensor) -> Tensor:
        """A block as float32, N x units, in memory that is used for the next block again."""
        if self._buffer.numel() < block.numel():
            self._buffer = self._buffer.new_empty(block.numel())
        values = self._buffer[: block.numel()].view(block.shape)
        return values.copy_(block).flatten(1)

    def finish(self) -> None:
        """The distances between class means; let go of the memory that was worked in."""
        norms = self.means_gram.diagonal()
        apart = (norms[:, None] + norms - 2 * self.means_gram).clamp_min_(0)
        self.mean_distances_squared = apart.fill_diagonal_(0)
        self._buffer = self._zeros(0, dtype=torch.float32)


class Products(ClassSums):
    """The inner products of all residuals besides: the one N x N x D product of a layer.

    Attributes:
        residuals: Inner products of residuals: float32, N x N.
    """

    def __init__(self, shape: tuple[int, int, int], classes: Classes) -> None:
        super().__init__(shape, classes)
        self.residuals = self._zeros(shape[0], shape[0], dtype=torch.float32)

    def _add_products(self, residuals: Tensor) -> None:
        # Only what lies on and above the diagonal; the rest is its mirror image.
        for rows, columns in _upper(len(residuals)):
            self.residuals[rows, columns].addmm_(residuals[rows], residuals[columns].T)

    def finish(self) -> None:
        """Fill in what lies below the diagonal."""
        super().finish()
        for rows, columns in _upper(len(self.residuals)):
            beyond = slice(max(rows.stop, columns.start), columns.stop)
            self.residuals[beyond, rows] = self.residuals[rows, beyond].T
        self.residual_norms_squared = self.residuals.diagonal()


def _upper(size: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of blocks that cover what lies on and above a square's diagonal."""
    for start in range(0, size, TILE):
        end = min(start + TILE, size)
        for row in range(start, end, STRIP):
            yield slice(row, min(row + STRIP, end)), slice(row, end)
        for column in range(end, size, TILE):
            yield slice(start, end), slice(column, min(column + TILE, size))
