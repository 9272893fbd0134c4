"""Activations of one layer, and the intermediate results that metrics share."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from bnstudy.representations.network import NetworkAtCall
from bnstudy.representations.precision import (
    FLOAT32,
    Precision,
    choose_multiplication,
    on_float64_device,
)
from bnstudy.representations.sums import (
    BLOCK_NUMEL,
    CACHE_NUMEL,
    DISTANCE_ROWS,
    MIN_RELIABLE_RATIO,
    Activity,
    Classes,
    ClassSums,
    Moments,
    Products,
    Sums,
)
from bnstudy.representations.taps import Tap

T = TypeVar("T")
S = TypeVar("S", bound=Sums)
C = TypeVar("C", bound=ClassSums)
Blocks = Iterable[tuple[Tensor, int]]

NUM_NEIGHBOURS = 10
# Upper bound of the rounding error of a squared distance, in units of resolution x error scale; see
# `ClassSums.error_scales`.
ERROR_FACTOR = 4
# If more pairs than this share of N x N need exact distances, float64 inner products are used
# instead of pairwise differences.
MAX_PAIR_FRACTION = 1 / 32
MAX_SPECTRAL_ERROR = 1e-4  # rounding error of the sum of the singular values, relative to the sum
# Typical (root mean square) error of an inner product, as a share of its upper bound, which is the
# multiplication's resolution. It is below 1, because errors average out over the units.
RMS_PRODUCT_ERROR = 1 / 16


class Neighbours(NamedTuple):
    """Nearest other samples of each sample, the nearest first.

    Attributes:
        squared_distances: Squared distances to the neighbours: float32, N x k.
        indices: Indices of the neighbours: int64, N x k.
    """

    squared_distances: Tensor
    indices: Tensor


class Layer:
    """Representations of N samples at one layer, with their class labels.

    Intermediate results are computed on first use and cached, so that no two metrics pass over the
    activations for the same purpose or compute the same distances.

    Distances are those of the activations converted to float32. Their relative error is about 1e-4
    at any scale. They follow from the inner products of the *residuals*, the differences between
    samples and their class means (see `ClassSums`), which avoids cancellation in tight classes. If
    samples are much closer to each other than to their class mean, rounding could still affect
    their distance, and it is computed from their difference. If many pairs are that close, all
    inner products are computed in float64. Typical layers need neither.

    Activations on a device without float64, such as Apple's MPS, are copied to the CPU.

    Args:
        activations: Activations of any floating-point type: N x D, or N x C x ... with any number
            of further axes.
        labels: Integer class labels: N.
        tap: Place of the layer in its network.
        network: Network around the layer, for the metrics that use it.
        precision: Precision of the operands of the inner products between samples: `float32`;
            `bfloat16x3`, each operand split into two bfloat16 numbers, which have 16 significant
            bits together and take three products; or `auto`, which is `bfloat16x3` where a trial
            finds it clearly faster and exact enough, and `float32` elsewhere. Layers with fewer
            than 1,000 units always use float32.

    Example:
        >>> layer = Layer(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([0, 1]))
        >>> layer.distances
        tensor([[0., 5.],
                [5., 0.]])
    """

    def __init__(
        self,
        activations: Tensor,
        labels: Tensor,
        tap: Tap | None = None,
        network: NetworkAtCall | None = None,
        precision: Precision = "float32",
    ) -> None:
        if len(activations) != len(labels) or activations.ndim < 2:
            raise ValueError(
                f"activations of shape {tuple(activations.shape)} do not match labels of shape "
                f"{tuple(labels.shape)}; expected N x D or N x C x ... activations and N labels"
            )
        activations = on_float64_device(activations.detach())
        # Contiguous, so that a block of channels is read in long runs of memory.
        self.activations: Tensor | None = activations.contiguous().reshape(
            *activations.shape[:2], activations.shape[2:].numel()
        )
        self._initialize(self.activations.shape, labels.to(activations.device), tap, network)
        self._multiplication = choose_multiplication(precision, self.num_units, activations.device)

    @classmethod
    def from_sums(
        cls,
        sums: Iterable[Sums],
        labels: Tensor,
        tap: Tap | None,
        network: NetworkAtCall | None,
        read_again: Callable[[], Blocks] | None = None,
    ) -> "Layer":
        """Create a layer from accumulated sums, without holding its activations.

        Args:
            sums: Sums to which all blocks have been added.
            labels: Integer class labels: N.
            tap: Place of the layer in its network.
            network: Network around the layer.
            read_again: Function that reads the activations again if the sums are not exact enough.
                It yields blocks of channels, N x channels x positions, each with the index of its
                first channel.
        """
        layer = cls.__new__(cls)
        layer.activations = None
        accumulators = list(sums)
        layer._initialize(accumulators[0].shape, labels, tap, network)
        layer._read_again = read_again
        for accumulator in accumulators:
            accumulator.finish()
            layer._sums[type(accumulator)] = accumulator
        return layer

    def _initialize(
        self, shape: Iterable[int], labels: Tensor, tap: Tap | None, network: NetworkAtCall | None
    ) -> None:
        self.num_samples, self.num_channels, self.num_positions = shape
        self.labels = labels
        self.tap = tap
        self.network = network
        self._read_again: Callable[[], Blocks] | None = None
        self._multiplication = FLOAT32
        self._sums: dict[type[Sums], Sums] = {}
        self._float64_sums: dict[type[ClassSums], ClassSums] = {}
        self._shared: dict[Callable[[Layer], Any], Any] = {}

    def shared(self, compute: Callable[["Layer"], T]) -> T:
        """Return `compute(self)`, cached for all metrics that need it."""
        if compute not in self._shared:
            self._shared[compute] = compute(self)
        return cast(T, self._shared[compute])

    @property
    def can_read_activations(self) -> bool:
        """Whether the activations are in memory or can be read again."""
        return self.activations is not None or self._read_again is not None

    def blocks(self) -> Iterator[tuple[Tensor, int]]:
        """Yield the activations of a few channels at a time, and the index of the first one."""
        in_memory = [] if self.activations is None else [(self.activations, 0)]
        # Half of BLOCK_NUMEL, because sums in float64 copy each block to float64.
        at_once = max(1, BLOCK_NUMEL // (2 * max(1, self.num_samples * self.num_positions)))
        for values, first in self._read_again() if self._read_again else in_memory:
            for block in values.split(at_once, dim=1):
                yield block, first
                first += block.shape[1]

    def _get_sums(self, kind: type[S]) -> S:
        if kind not in self._sums:
            if self.activations is None:
                raise RuntimeError(f"{kind.__name__} was not computed while the layer was read")
            options = {"multiplication": self._multiplication} if kind is Products else {}
            self._sums[kind] = self._compute_sums(kind, **options)
        return cast(S, self._sums[kind])

    def in_float64(self, kind: type[C]) -> C:
        """Return sums of the given kind, computed in float64.

        If the activations can no longer be read, the sums that were computed before are returned.
        """
        if not self.can_read_activations:
            return self._get_sums(kind)
        if Products in self._float64_sums:
            kind = cast(type[C], Products)  # Products are ClassSums too; reuse them
        if kind not in self._float64_sums:
            self._float64_sums[kind] = self._compute_sums(kind, dtype=torch.float64)
        return cast(C, self._float64_sums[kind])

    def _compute_sums(self, kind: type[S], **options: Any) -> S:
        """Read the activations and sum them up."""
        shape = (self.num_samples, self.num_channels, self.num_positions)
        sums = kind(shape, self._classes, **options)
        if self.activations is None or "dtype" in options:  # sums in float64 need small blocks
            for block, first in self.blocks():
                sums.add_all(block, first)
        else:
            sums.add_all(self.activations)
        sums.finish()
        return sums

    def _multiply_in_float32(self) -> bool:
        """Compute `products` again in float32 if they are `bfloat16x3` and activations can be read.

        The Gram matrix and the squared distances of the former products are dropped, because
        `_compute_bounds` and `_compute_matrices` assume the smaller rounding errors of the new
        products.

        Returns:
            Whether they were computed again.
        """
        if self.products.multiplication == FLOAT32 or not self.can_read_activations:
            return False
        self._sums[Products] = self._compute_sums(Products, multiplication=FLOAT32)
        for name in ("gram", "squared_distances"):
            self.__dict__.pop(name, None)
        return True

    def release_activations(self) -> None:
        """Compute what similarities such as CKA need, then release the activations."""
        self._get_sums(Activity)
        self._get_sums(Products)
        # `centred` is None if D > N.
        if self.products.centred is None and math.isfinite(self.total_variance):
            _ = self.factor  # cached while the activations can be read
        self._float64_sums.clear()
        self.activations = self._read_again = None

    @property
    def name(self) -> str:
        """Name of the layer in its network; empty if unknown."""
        return self.tap.layer if self.tap else ""

    @property
    def index(self) -> int:
        """Position in the network's order of computation, from 0; 0 if unknown."""
        return self.tap.layer_index if self.tap else 0

    @property
    def num_units(self) -> int:
        """Number of units D: channels x positions."""
        return self.num_channels * self.num_positions

    @property
    def num_classes(self) -> int:
        """Number of classes with at least one sample."""
        return len(self.class_sizes)

    @cached_property
    def _classes(self) -> Classes:
        return Classes(self.labels)

    @property
    def classes(self) -> Tensor:
        """Class of each sample, numbered from 0 without gaps: int64, N."""
        return self._classes.index

    @property
    def class_labels(self) -> Tensor:
        """Label of each class: int64, C."""
        return self._classes.labels

    @property
    def class_sizes(self) -> Tensor:
        """Number of samples of each class: int64, C."""
        return self._classes.sizes

    @property
    def membership(self) -> Tensor:
        """One-hot encoded classes: float32, N x C."""
        return self._classes.membership

    @property
    def activity(self) -> Activity:
        """Counts of zero activations, and the largest absolute activation."""
        return self._get_sums(Activity)

    @property
    def moments(self) -> Moments:
        """Sums of powers, by sample, by unit and by channel."""
        return self._get_sums(Moments)

    @property
    def class_sums(self) -> ClassSums:
        """Class means and residuals; no N x N product is computed for them."""
        return self._get_sums(Products if Products in self._sums else ClassSums)

    @property
    def precise_class_sums(self) -> ClassSums:
        """Same as `class_sums`, in float64 if class means are too close together for float32."""
        sums = self.class_sums
        return sums if sums.are_means_reliable else self.in_float64(ClassSums)

    @property
    def products(self) -> Products:
        """Class means, residuals, and inner products of the residuals, N x N."""
        return self._get_sums(Products)

    @property
    def product_precision(self) -> str | None:
        """Name of the multiplication that computed the inner products of the residuals.

        None if they were not computed.
        """
        return self.products.multiplication.name if Products in self._sums else None

    @property
    def total_variance(self) -> float:
        """Mean squared distance to the mean of all samples, the trace of the covariance."""
        between = self.class_sums.class_means_gram.diagonal() @ self.class_sizes.double()
        within = self.class_sums.residual_norms_squared.double().sum()
        return (between + within).item() / self.num_samples

    @property
    def nearest_mean_classes(self) -> Tensor:
        """Class whose mean is nearest to each sample: int64, N."""
        sums = self.precise_class_sums
        squared = sums.squared_distances_to_means
        least = squared.min(1, keepdim=True)
        error = ERROR_FACTOR * sums.resolution * sums.error_scales
        limit = least.values + error.gather(1, least.indices)
        if ((squared - error <= limit).sum(1) > 1).any():
            squared = self.in_float64(ClassSums).squared_distances_to_means
        return squared.argmin(1)

    @cached_property
    def gram(self) -> Tensor:
        """Inner products of the centred samples: float32, N x N."""
        return self.products.gram()

    @cached_property
    def squared_distances(self) -> Tensor:
        """Squared distances between samples: float32, N x N, symmetric, 0 on the diagonal."""
        squared, unreliable = self.products.squared_distances()
        # A few unreliable distances are cheap to compute from differences. If there are many, and
        # the products are `bfloat16x3`, the more precise products in float32 leave fewer.
        if len(unreliable) > self.num_samples and self._multiply_in_float32():
            squared, unreliable = self.products.squared_distances()
        if self.can_read_activations and len(unreliable):
            rows, columns = unreliable.unbind(1)
            exact = self._exact_squared_distances(unreliable).float()
            squared[rows, columns] = squared[columns, rows] = exact
        return squared

    def _exact_squared_distances(self, pairs: Tensor) -> Tensor:
        """Compute exact squared distances of some pairs of samples, i < j: float64."""
        # Each sample is replaced by the first one with the same activations, and each pair is then
        # encoded as one integer, so that the distance of equal pairs is computed once.
        first = self._find_first_duplicates(pairs.unique())
        codes = (first[pairs].sort(1).values * pairs.new_tensor([self.num_samples, 1])).sum(1)
        codes, inverse = codes.unique(return_inverse=True)
        pairs = torch.stack([codes // self.num_samples, codes % self.num_samples], 1)
        if len(pairs) > MAX_PAIR_FRACTION * self.num_samples**2:
            squared, is_unreliable = self.in_float64(Products).squared_distances_between(pairs)
            squared[is_unreliable] = self._square_differences(pairs[is_unreliable])
        else:
            squared = self._square_differences(pairs)
        return squared[inverse]

    def _find_first_duplicates(self, samples: Tensor) -> Tensor:
        """Find, for each sample, the first sample that has the same activations.

        Args:
            samples: Indices of the samples to compare.

        Returns:
            Index of that first sample; the sample's own index if it is not in `samples`: int64, N.
        """
        group = torch.zeros_like(samples)
        for block, _ in self.blocks():
            values = block[samples].flatten(1).float()
            within_block = values.unique(dim=0, return_inverse=True)[1]
            group = (group * len(samples) + within_block).unique(return_inverse=True)[1]
        first = torch.full_like(samples, self.num_samples)
        first.scatter_reduce_(0, group, samples, "amin")
        first_duplicates = torch.arange(self.num_samples, device=samples.device)
        first_duplicates[samples] = first[group]
        return first_duplicates

    def _square_differences(self, pairs: Tensor) -> Tensor:
        """Compute squared distances of some pairs of samples from their differences: float64."""
        squared = torch.zeros(len(pairs), dtype=torch.float64, device=pairs.device)
        if not len(pairs):
            return squared
        for block, _ in self.blocks():
            values = block.flatten(1)
            at_once = max(1, CACHE_NUMEL // values.shape[1])
            chunks = zip(pairs.split(at_once), squared.split(at_once), strict=True)
            for pair_chunk, total in chunks:
                first, second = pair_chunk.unbind(1)
                difference = values[first].float() - values[second].float()
                total += difference.double().square_().sum(1)
        return squared

    @cached_property
    def distances(self) -> Tensor:
        """Distances between samples: float32, N x N."""
        return self.squared_distances.sqrt()

    @cached_property
    def neighbours(self) -> Neighbours:
        """Nearest 10 other samples of each sample; all others if there are fewer."""
        others = self.num_samples - 1
        count = min(NUM_NEIGHBOURS, others)
        matrix = self.squared_distances.fill_diagonal_(torch.inf)  # restored below; saves a copy
        try:
            squared, indices = matrix.topk(min(NUM_NEIGHBOURS + 1, others), largest=False)
            if self.can_read_activations and count < others:
                rows = torch.arange(self.num_samples, device=indices.device)
                lower, upper = self._compute_bounds(rows, indices, squared)
                limits = upper[:, :count].amax(1)
                rows = rows[lower[:, count:].amin(1) < limits]
                if len(rows):
                    squared[rows, :count], indices[rows, :count] = self._find_nearest(
                        rows, limits[rows]
                    )
        finally:
            matrix.fill_diagonal_(0)
        return Neighbours(squared[:, :count], indices[:, :count])

    def _compute_bounds(
        self, rows: Tensor, columns: Tensor, squared: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return lower and upper bounds of squared distances, given their rounding errors.

        Args:
            rows: Indices of R samples.
            columns: Indices of K samples for each of them: R x K, or 1 x K.
            squared: Entries of `squared_distances`: R x K.
        """
        sums = self.products
        rows = rows[:, None]
        scales = sums.error_scales
        scale = scales[rows, self.classes[columns]] + scales[columns, self.classes[rows]]
        # Squared distances below MIN_RELIABLE_RATIO x resolution x scale were computed again, with
        # hardly any error. Only those below half of this limit count as exact here, because
        # `Products.squared_distances` may have rounded the limit differently.
        is_exact = squared < MIN_RELIABLE_RATIO / 2 * sums.product_resolution * scale
        error = torch.where(is_exact, 0, ERROR_FACTOR * sums.product_resolution * scale)
        error = error + torch.finfo(torch.float32).eps * squared
        return squared - error, squared + error

    def _find_nearest(self, rows: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        """Find the nearest other samples of some samples, by exact squared distances.

        Args:
            rows: Indices of R samples.
            limits: Upper bounds of the samples' squared distances to their 10th neighbour: R.

        Returns:
            Squared distances and indices of the 10 nearest other samples: R x 10.
        """
        all_samples = torch.arange(self.num_samples, device=rows.device)[None]
        candidates = []
        for block, limit in zip(
            rows.split(DISTANCE_ROWS), limits.split(DISTANCE_ROWS), strict=True
        ):
            lower, _ = self._compute_bounds(block, all_samples, self.squared_distances[block])
            near = (lower <= limit[:, None]).nonzero()
            candidates.append(torch.stack([block[near[:, 0]], near[:, 1]], 1))
        pairs = torch.cat(candidates)
        squared = self._exact_squared_distances(pairs.sort(1).values)
        order = squared.argsort(stable=True)
        order = order[pairs[order, 0].argsort(stable=True)]
        first = torch.searchsorted(pairs[order, 0], rows)
        chosen = order[first[:, None] + torch.arange(NUM_NEIGHBOURS, device=rows.device)]
        return squared[chosen].float(), pairs[chosen, 1]

    @cached_property
    def spectrum(self) -> Tensor:
        """Eigenvalues of the centred Gram matrix, the largest first: float64, min(N, D).

        If D <= N, they are computed from the D x D scatter matrix. Eigenvalues below the rounding
        error are set to 0.
        """
        (values,) = self._decompose(lambda products: (torch.linalg.eigvalsh(products),))
        return values.flip(0)

    @cached_property
    def factor(self) -> Tensor:
        """Factor Z of the centred Gram matrix Z Z^T: float64, N x at most min(N, D)."""
        centred = self.products.centred
        if centred is not None:
            return centred.double()
        values, vectors = self._decompose(torch.linalg.eigh)
        is_positive = values > 0
        return vectors[:, is_positive].double() * values[is_positive].sqrt()

    def _decompose(self, decompose: Callable[[Tensor], Sequence[Tensor]]) -> list[Tensor]:
        """Decompose the Gram or scatter matrix with the precision that its spectrum requires.

        Rounding affects the square roots of small eigenvalues most. If it could change the sum of
        all square roots noticeably, the next more precise matrix of `_compute_matrices` is
        decomposed.

        Args:
            decompose: Function of the matrix that returns its eigenvalues in ascending order, and
                optionally further results.

        Returns:
            Eigenvalues in float64, with those below the rounding error set to 0; further results.
        """
        for matrix, error in self._compute_matrices():
            values, *others = decompose(matrix)
            del matrix
            values = values.double()
            singular = values.clamp_min(0).sqrt()
            # Error of each root that follows from the error of its eigenvalue.
            root_errors = torch.minimum(error / (2 * singular), singular.new_tensor(error).sqrt())
            # Written with `not`, so that NaN, such as 0 / 0 for a matrix of zeros, ends the loop.
            if not root_errors.sum() > MAX_SPECTRAL_ERROR * singular.sum():
                break
        # The activations are float32: eigenvalues below their resolution are noise.
        error = max(error, torch.finfo(torch.float32).eps ** 2 * values[-1].item())
        return [values.masked_fill(values < error, 0), *others]

    def _compute_matrices(self) -> Iterator[tuple[Tensor, float]]:
        """Yield the Gram matrix, or the scatter matrix if D <= N, with increasing precision.

        Yields:
            Matrix, and the approximate error of its eigenvalues.
        """

        def estimate_error(squared_norms: Tensor, dtype: torch.dtype) -> float:
            return torch.finfo(dtype).eps * float(torch.linalg.vector_norm(squared_norms.double()))

        sums = self.products
        if sums.centred is not None:
            for dtype in (torch.float32, torch.float64):
                centred = sums.centred.to(dtype)
                products = centred.T @ centred
                yield products, estimate_error(products.diagonal(), dtype)
            return
        gram = self.gram
        if sums.multiplication.resolution > sums.resolution:
            norm = float(torch.linalg.vector_norm(gram.diagonal()))
            yield gram, RMS_PRODUCT_ERROR * sums.multiplication.resolution * norm
            if self._multiply_in_float32():
                sums, gram = self.products, self.gram
        yield gram, estimate_error(gram.diagonal(), torch.float32)
        error = estimate_error(sums.residual_norms_squared, torch.float32)
        yield sums.gram(torch.float64), error
        if self.can_read_activations:
            products = self.in_float64(Products).gram(torch.float64)
            yield products, estimate_error(products.diagonal(), torch.float64)
