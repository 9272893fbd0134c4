"""Sums over a layer's activations, accumulated block by block of channels.

A layer that does not fit into memory is read one block at a time. A layer that fits is processed in
blocks as well, so that temporary tensors stay small.
"""

from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from bnstudy.representations.precision import FLOAT32, Multiplication, add_products, in_float32

BLOCK_NUMEL = 2**24  # values, 64 MiB in float32: large enough for fast matrix products
CACHE_NUMEL = 2**18  # values, small enough for the processor's cache
TILE_ROWS = 768  # rows and columns of the matrix of products that are computed at once
# Rows of the strips into which a tile on the diagonal is split, because only its upper triangle is
# needed.
STRIP_ROWS = 192
DISTANCE_ROWS = 1000  # rows of squared distances that are computed at once
MIRROR_ROWS = 250  # rows that are mirrored at once
# A squared distance is computed again, from the difference of the two samples, if it is below this
# ratio x resolution x error scale.
MIN_RELIABLE_RATIO = 1e4
MIN_VARIANCE_RATIO = 1e-27  # variance / squared mean of a channel; rounding error below it

# Relative to the mean squared norm of a class's residuals:
MAX_MEAN_RATIO = 25  # squared norm of a class mean; above it, the mean's rounding is corrected
# Squared distance between class means, or between a class mean and the mean of all samples.
MIN_SQUARED_DISTANCE_IN_FLOAT32 = 1e-8  # below it, float64 is needed
MIN_SQUARED_DISTANCE = 1e-12  # below it, only rounding error

# Columns of `Moments.channel_moments`.
MEAN, VARIANCE, THIRD_MOMENT, FOURTH_MOMENT, SHARE_NOT_POSITIVE = range(5)


class Classes:
    """Classes of N samples, numbered from 0 without gaps.

    Attributes:
        labels: Label of each class: int64, C.
        index: Class of each sample: int64, N.
        sizes: Number of samples of each class: int64, C.
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
        """One-hot encoded classes: float32, N x C."""
        return torch.nn.functional.one_hot(self.index, len(self.sizes)).float()


class Sums:
    """Base class of sums that are accumulated over the blocks of a layer.

    Args:
        shape: Numbers of samples, of channels, and of positions per channel.
        classes: Classes of the samples.
    """

    def __init__(self, shape: tuple[int, int, int], classes: Classes) -> None:
        self.shape = shape
        self.classes = classes

    def add_all(self, activations: Tensor, first: int = 0) -> None:
        """Add activations of any floating-point type.

        Args:
            activations: Activations of some channels: N x channels x positions.
            first: Index of their first channel.
        """
        num_channels = max(1, BLOCK_NUMEL // max(1, len(activations) * activations.shape[2]))
        with in_float32(activations.device):
            for block in activations.split(num_channels, dim=1):
                block = block.float() if block.dtype == torch.float64 else block
                self.add(block, slice(first, first + block.shape[1]))
                first += block.shape[1]

    def add(self, block: Tensor, channels: slice) -> None:
        """Add one block, the activations of the given channels: N x channels x positions."""
        raise NotImplementedError

    def finish(self) -> None:
        """Compute the results that depend on all blocks."""

    def _zeros(self, *size: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.zeros(*size, dtype=dtype, device=self.classes.index.device)


def _split_samples(block: Tensor) -> tuple[Tensor, ...]:
    """Split a block into parts of a few samples, each of which fits into the processor's cache."""
    num_samples = max(1, CACHE_NUMEL // max(1, block[:1].numel()))
    parts: tuple[Tensor, ...] = block.split(num_samples)
    return parts


def _compare_with_zero(compare: Callable[..., Tensor], part: Tensor) -> Tensor:
    """Compare each activation with 0; return 1.0 for true and 0.0 for false.

    Summing floats is several times faster than summing bools.
    """
    return compare(part, 0, out=torch.empty_like(part))


class Activity(Sums):
    """Counts of zero activations, the largest activation, and a check for constant layers.

    Attributes:
        num_zeros: Number of zero activations of each channel: int64, channels.
        num_silent_samples: For each channel, number of samples on which all its units are 0: int64,
            channels.
        num_dead_units: Number of units that are 0 on every sample.
        largest: Largest absolute activation; NaN if an activation is NaN.
        is_constant: Whether all samples have the same representation.
    """

    def __init__(self, shape: tuple[int, int, int], classes: Classes) -> None:
        super().__init__(shape, classes)
        self.num_zeros = self._zeros(shape[1], dtype=torch.int64)
        self.num_silent_samples = self._zeros(shape[1], dtype=torch.int64)
        self.num_dead_units = 0
        self.largest = 0.0
        self.is_constant = True

    def add(self, block: Tensor, channels: slice) -> None:
        """Add one block."""
        lowest = highest = block[0]  # of each unit, over the samples
        for part in _split_samples(block):
            zeros = _compare_with_zero(torch.eq, part).sum(2, dtype=torch.float32)
            self.num_zeros[channels] += zeros.sum(0).long()
            self.num_silent_samples[channels] += (zeros == part.shape[2]).sum(0)
            lowest = torch.minimum(lowest, part.amin(0))
            highest = torch.maximum(highest, part.amax(0))
        self.is_constant = self.is_constant and bool((lowest == highest).all())
        self.num_dead_units += int(((lowest == 0) & (highest == 0)).sum())
        largest = torch.maximum(-lowest, highest).amax().float()
        # Not Python's `max`, which would ignore NaN.
        self.largest = torch.maximum(largest, largest.new_tensor(self.largest)).item()


class Moments(Sums):
    """Sums of powers, by sample, by unit and by channel.

    They are computed in float64, because an offset or large values would cost float32 its
    precision.

    Attributes:
        absolute_sums: Sum of the absolute activations of each sample: float64, N.
        squared_norms: Sum of the squared activations of each sample: float64, N.
        lifetime_concentration: (mean |x|)^2 / mean x^2 over the samples of each unit; NaN if the
            unit is always 0: float64, channels x positions.
        channel_moments: Mean, variance, third and fourth central moment, and share of values <= 0
            of each channel: float64, channels x 5, with the columns `MEAN`, `VARIANCE`,
            `THIRD_MOMENT`, `FOURTH_MOMENT` and `SHARE_NOT_POSITIVE`. The variance of a constant
            channel is exactly 0.
    """

    def __init__(self, shape: tuple[int, int, int], classes: Classes) -> None:
        super().__init__(shape, classes)
        samples, channels, positions = shape
        self.absolute_sums, self.squared_norms = self._zeros(samples), self._zeros(samples)
        self.lifetime_concentration = self._zeros(channels, positions)
        self.channel_moments = self._zeros(channels, 5)

    def add(self, block: Tensor, channels: slice) -> None:
        """Add one block."""
        samples, count, positions = block.shape
        unit_sums, sums = self._zeros(2, count, positions), self._zeros(5, count)
        start = 0
        for part in _split_samples(block):
            stop = start + len(part)
            sums[SHARE_NOT_POSITIVE] += _compare_with_zero(torch.le, part).sum(
                (0, 2), dtype=torch.float32
            )
            values = part.double()
            sums[MEAN] += values.sum((0, 2))
            squares = values.square()
            absolute = values.abs_()
            self.absolute_sums[start:stop] += absolute.sum((1, 2))
            self.squared_norms[start:stop] += squares.sum((1, 2))
            unit_sums[0] += absolute.sum(0)
            unit_sums[1] += squares.sum(0)
            start = stop
        mean = sums[MEAN, :, None] / (samples * positions)
        for part in _split_samples(block):
            centred = part.double().sub_(mean)
            squares = centred.square()
            sums[VARIANCE] += squares.sum((0, 2))
            sums[THIRD_MOMENT] += centred.mul_(squares).sum((0, 2))
            sums[FOURTH_MOMENT] += squares.square_().sum((0, 2))
        sums /= samples * positions
        # The central moments of a channel are 0 if its variance is only rounding error.
        has_variance = sums[VARIANCE] > MIN_VARIANCE_RATIO * sums[MEAN].square()
        sums[[VARIANCE, THIRD_MOMENT, FOURTH_MOMENT]] *= has_variance
        concentration = unit_sums[0].square() / (samples * unit_sums[1])
        concentration = concentration.masked_fill(unit_sums[1] == 0, torch.nan)
        self.lifetime_concentration[channels] = concentration
        self.channel_moments[channels] = sums.T


class ClassSums(Sums):
    """Class means and residuals, and the inner products that follow from them.

    The residual of a sample is its difference from its class mean. If the layer has at most as many
    units as samples, the centred activations are kept, because they take no more memory than a Gram
    matrix.

    With x_i = m_a + r_i and x_j = m_b + r_j, where a and b are the classes of i and j,

        |x_i - x_j|^2 = |r_i|^2 + |r_j|^2 - 2 r_i r_j + u_ib + u_ja
        with u_ib = 2 r_i (m_a - m_b) + |m_a - m_b|^2 / 2, which is 0 for b = a.

    Args:
        shape: Numbers of samples, of channels, and of positions per channel.
        classes: Classes of the samples.
        dtype: Type of the residuals and their products, float32 or float64.

    Attributes:
        centred: Activations minus the mean of all samples: float32, N x D; None if D > N.
        centred_means: Class means minus the mean of all samples: float32, C x D.
        residual_norms_squared: Squared norms of the residuals, of type `dtype`: N.
        residuals_dot_class_means: Inner products of residuals and centred class means: float64,
            N x C.
        class_means_gram: Inner products of the centred class means: float64, C x C.
        class_mean_norms: Norms of the centred class means; 0 if below the rounding error: float64,
            C.
        class_mean_distances_squared: Squared distances of class means; 0 if below the rounding
            error: float64, C x C.
        are_means_reliable: Whether the class means are far enough from each other, and from the
            mean of all samples, for float32.
        residuals_dot_global_mean: Inner products of residuals and the mean of all samples: float64,
            N.
        class_means_dot_global_mean: Inner products of centred class means and the mean of all
            samples: float64, C.
        global_mean_norm_squared: Squared norm of the mean of all samples.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: Classes,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(shape, classes)
        samples, num_classes, units = shape[0], len(classes.sizes), shape[1] * shape[2]
        self.dtype = dtype
        self.centred: Tensor | None = None
        if units <= samples:
            self.centred = self._zeros(samples, units, dtype=torch.float32)
        self.centred_means = self._zeros(num_classes, units, dtype=torch.float32)
        self.residual_norms_squared = self._zeros(samples, dtype=dtype)
        self.residuals_dot_class_means = self._zeros(samples, num_classes)
        self.class_means_gram = self._zeros(num_classes, num_classes)
        self.class_mean_norms = self._zeros(num_classes)
        self.class_mean_distances_squared = self._zeros(num_classes, num_classes)
        self._raw_class_mean_distances_squared = self._zeros(num_classes, num_classes)
        self.residuals_dot_global_mean = self._zeros(samples)
        self.class_means_dot_global_mean = self._zeros(num_classes)
        self.global_mean_norm_squared = 0.0
        self.are_means_reliable = True
        self._membership = classes.membership.to(dtype)
        self._buffer = self._zeros(0, dtype=dtype)

    @property
    def resolution(self) -> float:
        """Machine epsilon of `dtype`."""
        return torch.finfo(self.dtype).eps

    def add(self, block: Tensor, channels: slice) -> None:
        """Add one block."""
        residuals, class_means, norms_squared = self._subtract_class_means(block)
        global_mean = self.classes.sizes.double() @ class_means / len(residuals)
        means = class_means - global_mean
        units = slice(channels.start * self.shape[2], channels.stop * self.shape[2])
        self.centred_means[:, units] = means
        if self.centred is not None:
            self.centred[:, units] = torch.addmm(residuals, self._membership, means.to(self.dtype))
        dot_means = residuals @ torch.cat([means, global_mean[None]]).to(self.dtype).T
        self.residuals_dot_class_means += dot_means[:, :-1]
        self.residuals_dot_global_mean += dot_means[:, -1]
        self.class_means_gram.addmm_(means, means.T)
        self.class_means_dot_global_mean.addmv_(means, global_mean)
        self.global_mean_norm_squared += global_mean.square().sum().item()
        self.residual_norms_squared += norms_squared
        self._add_products(residuals)

    def _subtract_class_means(self, block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Subtract the class means from a block.

        If class means are large compared with the residuals, their rounding errors leave the
        residuals with a non-zero class mean. The means are then corrected twice: the block is
        centred again with the first correction, and the remaining mean is subtracted from the
        residuals.

        Returns:
            Residuals: N x units; class means: float64, C x units; squared norms of the residuals:
            N.
        """
        values = self._copy_to_buffer(block)
        means = self._average_by_class(values)
        residuals = values.addmm_(self._membership, means, alpha=-1)
        norms_squared = torch.linalg.vector_norm(residuals, dim=1).square_()
        mean_squares = self._average_by_class(norms_squared[:, None]).squeeze(1)
        if (means.square().sum(1) <= MAX_MEAN_RATIO * mean_squares).all():
            return residuals, means.double(), norms_squared
        means += self._average_by_class(residuals)
        residuals = self._copy_to_buffer(block).addmm_(self._membership, means, alpha=-1)
        remainder = self._average_by_class(residuals)
        residuals.addmm_(self._membership, remainder, alpha=-1)
        norms_squared = torch.linalg.vector_norm(residuals, dim=1).square_()
        return residuals, means.double() + remainder, norms_squared

    def _average_by_class(self, values: Tensor) -> Tensor:
        return self._membership.T @ values / self.classes.sizes[:, None]

    def _add_products(self, residuals: Tensor) -> None:
        """Add the inner products of a block's residuals, N x units; overridden by `Products`."""

    def _copy_to_buffer(self, block: Tensor) -> Tensor:
        """Copy a block as N x units into a buffer that is reused for the next block."""
        if self._buffer.numel() < block.numel():
            self._buffer = self._buffer.new_empty(block.numel())
        values = self._buffer[: block.numel()].view(block.shape)
        return values.copy_(block).flatten(1)

    def finish(self) -> None:
        """Compute the distances between class means and release the working memory."""
        # residual_norms_squared may be float32; the products of means are float64.
        mean_squares = self._average_by_class(self.residual_norms_squared[:, None])
        mean_squares = mean_squares.squeeze(1).double()
        norms_squared = self.class_means_gram.diagonal()
        rounding = (
            MIN_SQUARED_DISTANCE * mean_squares
            + 10 * torch.finfo(torch.float64).eps * norms_squared
        )
        distances_squared = norms_squared[:, None] + norms_squared - 2 * self.class_means_gram
        # `cross_terms` needs these without the threshold below, because the threshold can exceed
        # the squared distance of two samples.
        self._raw_class_mean_distances_squared = distances_squared.clamp_min(0).fill_diagonal_(0)
        is_zero = distances_squared <= rounding[:, None] + rounding
        distances_squared = distances_squared.masked_fill_(is_zero, 0).fill_diagonal_(0)
        self.class_mean_distances_squared = distances_squared
        is_zero = norms_squared <= rounding + MIN_SQUARED_DISTANCE * mean_squares.mean()
        self.class_mean_norms = norms_squared.masked_fill(is_zero, 0).sqrt()
        is_near = distances_squared < MIN_SQUARED_DISTANCE_IN_FLOAT32 * (
            mean_squares[:, None] + mean_squares
        )
        is_near |= norms_squared < MIN_SQUARED_DISTANCE_IN_FLOAT32 * (
            mean_squares + mean_squares.mean()
        )
        self.are_means_reliable = not bool(is_near.fill_diagonal_(False).any())
        self._buffer = self._zeros(0, dtype=self.dtype)

    @cached_property
    def cross_terms(self) -> Tensor:
        """Terms u_ib of the formula in the docstring of `ClassSums`: N x C."""
        own = self.residuals_dot_class_means.gather(1, self.classes.index[:, None])
        distances_squared = self._raw_class_mean_distances_squared[self.classes.index]
        differences = own - self.residuals_dot_class_means
        return (2 * differences + distances_squared / 2).to(self.dtype)

    @cached_property
    def error_scales(self) -> Tensor:
        """Terms v_ib of the error scale: N x C.

        The rounding error of |x_i - x_j|^2 is proportional to resolution x (v_ib + v_ja).
        """
        own = self.classes.index[:, None]
        mean_norms = self.class_means_gram.diagonal().sqrt()
        between = self.class_mean_distances_squared[self.classes.index] / 2
        norms_squared = self.residual_norms_squared[:, None]
        between += 2 * norms_squared.sqrt() * (mean_norms[own] + mean_norms)
        return (norms_squared + between.scatter_(1, own, 0)).to(self.dtype)

    @cached_property
    def squared_distances_to_means(self) -> Tensor:
        """Squared distances of samples to class means: float64, N x C."""
        distances_squared = self._raw_class_mean_distances_squared[self.classes.index]
        norms_squared = self.residual_norms_squared[:, None]
        return (norms_squared + self.cross_terms.double() + distances_squared / 2).clamp_min_(0)


class Products(ClassSums):
    """Class means and residuals, with the inner products of all residuals.

    Of all sums, only these inner products take a time that grows with N x N x D. They are computed
    once for a layer, and again only if a metric needs a higher precision.

    Args:
        shape: Numbers of samples, of channels, and of positions per channel.
        classes: Classes of the samples.
        dtype: Type of the residuals and their products, float32 or float64.
        multiplication: How residuals are multiplied: `FLOAT32`, or `SPLIT` into two parts in
            bfloat16; see `precision`.

    Attributes:
        residuals_gram: Inner products of the residuals, of type `dtype`: N x N, symmetric.
        multiplication: How residuals are multiplied.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: Classes,
        dtype: torch.dtype = torch.float32,
        multiplication: Multiplication = FLOAT32,
    ) -> None:
        super().__init__(shape, classes, dtype)
        self.residuals_gram = self._zeros(shape[0], shape[0], dtype=dtype)
        self.multiplication = multiplication

    @property
    def product_resolution(self) -> float:
        """Largest error of an inner product, relative to the squared norm of a residual."""
        return self.resolution if self.dtype == torch.float64 else self.multiplication.resolution

    def _add_products(self, residuals: Tensor) -> None:
        # Only the diagonal and the upper triangle; `finish` mirrors them.
        tiles = list(_tile_upper_triangle(len(residuals)))
        add_products(self.residuals_gram, residuals, tiles, self.multiplication)

    def finish(self) -> None:
        """Fill in the lower triangle and compute the results that depend on all blocks."""
        mirror(self.residuals_gram)
        if self.multiplication.splits:
            # The split multiplication omits the low x low terms. Off the diagonal their sum
            # averages out; on it, use the exact norms.
            self.residuals_gram.diagonal().copy_(self.residual_norms_squared)
        self.residual_norms_squared = self.residuals_gram.diagonal()
        super().finish()

    def gram(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Compute the inner products of the centred samples: N x N, symmetric.

        The inner product of samples i and j of the classes a and b is r_i r_j + h_ib + h_ja, with
        h_ib = r_i m_b + m_a m_b / 2 and the centred class means m_a and m_b.
        """
        terms = self.residuals_dot_class_means + self.class_means_gram[self.classes.index] / 2
        terms, membership = terms.to(dtype), self.classes.membership.to(dtype)
        # left @ right.T = h_ib + h_ja
        left, right = torch.cat([terms, membership], 1), torch.cat([membership, terms], 1)
        return mirror(torch.addmm(self.residuals_gram.to(dtype), left, right.T))

    def squared_distances(self) -> tuple[Tensor, Tensor]:
        """Compute the squared distances between samples.

        Returns:
            Squared distances: float32, N x N, symmetric, 0 on the diagonal; and the pairs i < j
            whose distance is unreliable, because it is too small: int64, pairs x 2.
        """
        norms_squared = self.residual_norms_squared[:, None]
        ones = torch.ones_like(norms_squared)
        # left @ right.T = |r_i|^2 + |r_j|^2 + u_ib + u_ja
        left = torch.cat([self.cross_terms, self._membership, norms_squared, ones], 1)
        right = torch.cat([self._membership, self.cross_terms, ones, norms_squared], 1)
        # A pair's distance is unreliable below the pair's limit: limit_terms_ib + limit_terms_ja.
        limit_terms = MIN_RELIABLE_RATIO * self.product_resolution * self.error_scales
        limit_left = torch.cat([limit_terms, self._membership], 1)
        limit_right = torch.cat([self._membership, limit_terms], 1)
        squared = torch.empty_like(self.residuals_gram, dtype=torch.float32)
        unreliable = []
        for start in range(0, len(squared), DISTANCE_ROWS):
            rows, columns = slice(start, start + DISTANCE_ROWS), slice(start, None)
            part = torch.addmm(
                self.residuals_gram[rows, columns], left[rows], right[columns].T, beta=-2
            )
            squared[rows, columns] = part.clamp_min_(0).fill_diagonal_(torch.inf)
            # No limit exceeds 2 * limit_terms.amax(). Rows without an entry below that, usually
            # most rows, are skipped.
            near = (part.amin(1) < 2 * limit_terms.amax()).nonzero().squeeze(1)
            pairs = (part[near] < limit_left[rows][near] @ limit_right[columns].T).nonzero()
            pairs = torch.stack([near[pairs[:, 0]], pairs[:, 1]], 1)
            unreliable.append(pairs[pairs[:, 0] < pairs[:, 1]] + start)
        return mirror(squared).fill_diagonal_(0), torch.cat(unreliable)

    def squared_distances_between(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the squared distances of some pairs of samples.

        Args:
            pairs: Indices of the samples of each pair: int64, pairs x 2.

        Returns:
            Squared distances, of type `dtype`: pairs; and whether each of them is too small to be
            reliable: bool, pairs.
        """
        first, second = pairs.unbind(1)
        norms_squared = self.residual_norms_squared
        first_classes, second_classes = self.classes.index[first], self.classes.index[second]
        squared = norms_squared[first] + norms_squared[second]
        squared -= 2 * self.residuals_gram[first, second]
        squared = (
            squared
            + self.cross_terms[first, second_classes]
            + self.cross_terms[second, first_classes]
        ).clamp_min_(0)
        scale = self.error_scales[first, second_classes] + self.error_scales[second, first_classes]
        return squared, squared < MIN_RELIABLE_RATIO * self.product_resolution * scale


def mirror(matrix: Tensor) -> Tensor:
    """Copy the upper triangle of a square matrix to the lower one, in place.

    This makes a product of a matrix with its transpose symmetric: depending on the processor, it
    may be rounded differently at (i, j) and (j, i).
    """
    for start in range(0, len(matrix), MIRROR_ROWS):
        rows, later = slice(start, start + MIRROR_ROWS), slice(start + MIRROR_ROWS, None)
        square = matrix[rows, rows]
        square.copy_(square.triu() + square.triu(1).T)
        matrix[later, rows] = matrix[rows, later].T
    return matrix


def _tile_upper_triangle(size: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of tiles that cover the diagonal and the upper triangle."""
    for start in range(0, size, TILE_ROWS):
        stop = min(start + TILE_ROWS, size)
        for row in range(start, stop, STRIP_ROWS):
            yield slice(row, min(row + STRIP_ROWS, stop)), slice(row, stop)
        for column in range(stop, size, TILE_ROWS):
            yield slice(start, stop), slice(column, column + TILE_ROWS)
