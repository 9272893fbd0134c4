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
UNCLEAR = 1e4  # times the resolution of floating point: below it, a difference is computed again
# Times the mean square of a class's residuals:
CENTRED = 25  # the squared norm of a mean that one subtraction is enough for
MEANS_APART = 1e-8  # squared distances of class means below which float32 is too coarse
ROUNDING = 1e-12  # squared distances of class means that count as 0
CONSTANT = 1e-27  # of the squared mean of a channel: the variance of one that has a single value


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

    They are computed in float64, so that neither an offset nor the range of float32 tells.

    Attributes:
        absolute: Sum of a sample's absolute activations: float64, N.
        squares: Sum of their squares: float64, N.
        lifetime: By unit, (mean |x|)^2 / mean x^2 over samples; NaN where it is 0 on all of them:
            float64, channels x positions.
        channels: By channel, mean, variance, third and fourth central moment, share of values of 0
            and below: float64, channels x 5. The variance of a channel of a single value is 0.
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
        of_unit, sums = self._zeros(2, count, positions), self._zeros(5, count)
        start = 0
        for part in _parts(block):
            stop = start + len(part)
            sums[4] += _as_numbers(torch.le, part).sum((0, 2), dtype=torch.float32)
            values = part.double()
            sums[0] += values.sum((0, 2))
            square = values.square()
            size = values.abs_()
            self.absolute[start:stop] += size.sum((1, 2))
            self.squares[start:stop] += square.sum((1, 2))
            of_unit[0] += size.sum(0)
            of_unit[1] += square.sum(0)
            start = stop
        mean = sums[0, :, None] / (samples * positions)
        for part in _parts(block):
            centred = part.double().sub_(mean)
            square = centred.square()
            sums[1] += square.sum((0, 2))
            sums[2] += centred.mul_(square).sum((0, 2))
            sums[3] += square.square_().sum((0, 2))
        sums /= samples * positions
        sums[1:4] *= sums[1] > CONSTANT * sums[0].square()
        lifetime = of_unit[0].square() / (samples * of_unit[1])
        self.lifetime[channels] = lifetime.masked_fill(of_unit[1] == 0, torch.nan)
        self.channels[channels] = sums.T


class ClassSums(Sums):
    """What follows from the class means and the residuals, each sample's difference from its own.

    Where the layer has at most as many units as samples, the centred activations are kept: they
    take no more than a Gram matrix.

    With x_i = m_a + r_i and x_j = m_b + r_j, where a and b are the classes of i and j,

        |x_i - x_j|^2 = |r_i|^2 + |r_j|^2 - 2 r_i r_j + u_ib + u_ja
        with u_ib = 2 r_i (m_a - m_b) + |m_a - m_b|^2 / 2, which is 0 for b = a.

    Args:
        shape: N, the channels, and the positions in a channel's map.
        classes: Of the samples.
        dtype: In which they are computed, float32 or float64.

    Attributes:
        centred: The activations minus their mean: float32, N x D; None where D > N.
        centred_means: The class means minus the mean of all: float32, C x D.
        residual_norms_squared: Of the given type, N.
        residuals_dot_means: Inner products of residuals and centred class means: float64, N x C.
        means_gram: Inner products of the centred class means: float64, C x C.
        mean_norms: Norms of the centred class means; 0 where only rounding is left: float64, C.
        mean_distances_squared: Between class means; 0 where only rounding is left: float64, C x C.
        are_means_clear: Whether the class means are far enough apart for float32.
        residuals_dot_mean: Inner products of residuals and the mean of all: float64, N.
        means_dot_mean: Of the centred class means and the mean of all: float64, C.
        mean_norm_squared: Of the mean of all.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: Classes,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(shape, classes)
        samples, count, units = shape[0], len(classes.sizes), shape[1] * shape[2]
        self.dtype = dtype
        self.centred: Tensor | None = None
        if units <= samples:
            self.centred = self._zeros(samples, units, dtype=torch.float32)
        self.centred_means = self._zeros(count, units, dtype=torch.float32)
        self.residual_norms_squared = self._zeros(samples, dtype=dtype)
        self.residuals_dot_means = self._zeros(samples, count)
        self.means_gram = self._zeros(count, count)
        self.mean_norms = self._zeros(count)
        self.mean_distances_squared = self._zeros(count, count)
        self._means_apart = self._zeros(count, count)
        self.residuals_dot_mean = self._zeros(samples)
        self.means_dot_mean = self._zeros(count)
        self.mean_norm_squared = 0.0
        self.are_means_clear = True
        self._membership = classes.membership.to(dtype)
        self._buffer = self._zeros(0, dtype=dtype)

    @property
    def resolution(self) -> float:
        """Of the type in which they are computed."""
        return torch.finfo(self.dtype).eps

    def add(self, block: Tensor, channels: slice) -> None:
        """Add one block."""
        residuals, class_means = self._residuals(block)
        mean = self.classes.sizes.double() @ class_means / len(residuals)
        means = class_means - mean
        units = slice(channels.start * self.shape[2], channels.stop * self.shape[2])
        self.centred_means[:, units] = means
        if self.centred is not None:
            self.centred[:, units] = torch.addmm(residuals, self._membership, means.to(self.dtype))
        self.residuals_dot_means += residuals @ means.to(self.dtype).T
        self.residuals_dot_mean += residuals @ mean.to(self.dtype)
        self.means_gram.addmm_(means, means.T)
        self.means_dot_mean.addmv_(means, mean)
        self.mean_norm_squared += mean.square().sum().item()
        self._add_products(residuals)

    def _residuals(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Each sample's difference from its class mean, N x units; the means, float64, C x units.

        A difference of two numbers is as exact as it can be, a mean is not. Where a class is far
        from 0, what is left of the mean in its residuals is not negligible: it is added to the
        mean, and once more subtracted from the residuals.
        """
        values = self._copied(block)
        means = self._class_means(values)
        residuals = values.addmm_(self._membership, means, alpha=-1)
        squares = torch.linalg.vector_norm(residuals, dim=1, keepdim=True).square_()
        if (means.square().sum(1) <= CENTRED * self._class_means(squares).squeeze(1)).all():
            return residuals, means.double()
        means += self._class_means(residuals)
        residuals = self._copied(block).addmm_(self._membership, means, alpha=-1)
        left = self._class_means(residuals)
        return residuals.addmm_(self._membership, left, alpha=-1), means.double() + left

    def _class_means(self, values: Tensor) -> Tensor:
        return self._membership.T @ values / self.classes.sizes[:, None]

    def _add_products(self, residuals: Tensor) -> None:
        self.residual_norms_squared += torch.linalg.vector_norm(residuals, dim=1).square_()

    def _copied(self, block: Tensor) -> Tensor:
        """A block as N x units, in memory that is used for the next block again."""
        if self._buffer.numel() < block.numel():
            self._buffer = self._buffer.new_empty(block.numel())
        values = self._buffer[: block.numel()].view(block.shape)
        return values.copy_(block).flatten(1)

    def finish(self) -> None:
        """The distances between class means; let go of the memory that was worked in."""
        # Means and their products are float64, what is averaged is not.
        spread = self._class_means(self.residual_norms_squared[:, None]).squeeze(1).double()
        squares = self.means_gram.diagonal()
        rounding = ROUNDING * spread + 10 * torch.finfo(torch.float64).eps * squares
        apart = squares[:, None] + squares - 2 * self.means_gram
        # What counts as 0 between class means may be much between samples near to each other.
        self._means_apart = apart.clamp_min(0).fill_diagonal_(0)
        is_zero = apart <= rounding[:, None] + rounding
        self.mean_distances_squared = apart.masked_fill_(is_zero, 0).fill_diagonal_(0)
        is_zero = squares <= rounding + ROUNDING * spread.mean()
        self.mean_norms = squares.masked_fill(is_zero, 0).sqrt()
        is_near = apart < MEANS_APART * (spread[:, None] + spread)
        is_near |= squares < MEANS_APART * (spread + spread.mean())
        self.are_means_clear = not bool(is_near.fill_diagonal_(False).any())
        self._buffer = self._zeros(0, dtype=self.dtype)

    @cached_property
    def beyond(self) -> Tensor:
        """u_ib of the formula above: N x C, 0 where b is the sample's own class."""
        own = self.residuals_dot_means.gather(1, self.classes.index[:, None])
        apart = self._means_apart[self.classes.index]
        return (2 * (own - self.residuals_dot_means) + apart / 2).to(self.dtype)

    @cached_property
    def reach(self) -> Tensor:
        """What the rounding errors of |x_i - x_j|^2 are in proportion to: v_ib + v_ja; N x C."""
        own = self.classes.index[:, None]
        squares = self.means_gram.diagonal()
        lengths = squares.sqrt()
        between = self.mean_distances_squared[self.classes.index] / 2
        norms = self.residual_norms_squared[:, None]
        between += 2 * norms.sqrt() * (lengths[own] + lengths)
        return (norms + between.scatter_(1, own, 0)).to(self.dtype)

    @cached_property
    def squared_distances_to_means(self) -> Tensor:
        """Of each sample to each class mean: float64, N x C."""
        apart = self._means_apart[self.classes.index]
        norms = self.residual_norms_squared[:, None]
        return (norms + self.beyond.double() + apart / 2).clamp_min_(0)


class Products(ClassSums):
    """The inner products of all residuals besides: the one N x N x D product of a layer.

    Attributes:
        residuals: Inner products of residuals: of the given type, N x N, symmetric.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: Classes,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(shape, classes, dtype)
        self.residuals = self._zeros(shape[0], shape[0], dtype=dtype)

    def _add_products(self, residuals: Tensor) -> None:
        # Only what lies on and above the diagonal; the rest is its mirror image.
        for rows, columns in _upper(len(residuals)):
            self.residuals[rows, columns].addmm_(residuals[rows], residuals[columns].T)

    def finish(self) -> None:
        """Fill in what lies below the diagonal."""
        mirror(self.residuals)
        self.residual_norms_squared = self.residuals.diagonal()
        super().finish()

    def gram(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Inner products of the samples after the mean of all is subtracted: N x N, symmetric."""
        half = self.residuals_dot_means + self.means_gram[self.classes.index] / 2
        half, membership = half.to(dtype), self.classes.membership.to(dtype)
        left, right = torch.cat([half, membership], 1), torch.cat([membership, half], 1)
        return mirror(torch.addmm(self.residuals.to(dtype), left, right.T))

    def squared_distances(self) -> tuple[Tensor, Tensor]:
        """Between samples: float32, N x N, symmetric, with 0 on the diagonal.

        Returns:
            These; and the pairs i < j of samples that are so near to each other that rounding tells
            in their distance: int64, pairs x 2.
        """
        norms, one = self.residual_norms_squared[:, None], self._membership.new_ones(())
        one = one.expand_as(norms)
        left = torch.cat([self.beyond, self._membership, norms, one], 1)
        right = torch.cat([self._membership, self.beyond, one, norms], 1)
        limit = UNCLEAR * self.resolution * self.reach
        limit_left = torch.cat([limit, self._membership], 1)
        limit_right = torch.cat([self._membership, limit], 1)
        squared = torch.empty_like(self.residuals, dtype=torch.float32)
        unclear = []
        for start in range(0, len(squared), TILE):
            rows, columns = slice(start, start + TILE), slice(start, None)
            part = torch.addmm(self.residuals[rows, columns], left[rows], right[columns].T, beta=-2)
            squared[rows, columns] = part.clamp_min_(0).fill_diagonal_(torch.inf)
            # No limit of a pair is larger than this one, which tells most of the time.
            near = (part.amin(1) < 2 * limit.amax()).nonzero().squeeze(1)
            pairs = (part[near] < limit_left[rows][near] @ limit_right[columns].T).nonzero()
            pairs = torch.stack([near[pairs[:, 0]], pairs[:, 1]], 1)
            unclear.append(pairs[pairs[:, 0] < pairs[:, 1]] + start)
        return mirror(squared).fill_diagonal_(0), torch.cat(unclear)

    def of_pairs(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """The squared distances of some pairs of samples, and whether rounding tells in them."""
        one, other = pairs.unbind(1)
        norms = self.residual_norms_squared
        its, others = self.classes.index[one], self.classes.index[other]
        squared = norms[one] + norms[other] - 2 * self.residuals[one, other]
        squared = (squared + self.beyond[one, others] + self.beyond[other, its]).clamp_min_(0)
        reach = self.reach[one, others] + self.reach[other, its]
        return squared, squared < UNCLEAR * self.resolution * reach


def mirror(matrix: Tensor) -> Tensor:
    """Copy what lies above the diagonal of a square matrix to below it, in place.

    A matrix product need not round the same at (i, j) and (j, i): that depends on the processor.
    """
    for start in range(0, len(matrix), STRIP):
        rows, beyond = slice(start, start + STRIP), slice(start + STRIP, None)
        square = matrix[rows, rows]
        square.copy_(square.triu() + square.triu(1).T)
        matrix[beyond, rows] = matrix[rows, beyond].T
    return matrix


def _upper(size: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of blocks that cover what lies on and above a square's diagonal."""
    for start in range(0, size, TILE):
        end = min(start + TILE, size)
        for row in range(start, end, STRIP):
            yield slice(row, min(row + STRIP, end)), slice(row, end)
        for column in range(end, size, TILE):
            yield slice(start, end), slice(column, min(column + TILE, size))
