"""One layer's activations, and what the metrics share of them."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from bnstudy.representations.network import View
from bnstudy.representations.sums import (
    BLOCK,
    PART,
    TILE,
    UNCLEAR,
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

NEIGHBOURS = 10
ERROR = 16  # times the resolution: an upper bound of a squared distance's error
MAX_PAIRS = 1 / 32  # of all, whose distances are computed from differences, and not in float64
SPECTRAL_ERROR = 5e-4  # of the sum of the singular values: what rounding may do to it


class Neighbours(NamedTuple):
    """The nearest other samples of each sample, the nearest first.

    Attributes:
        squared_distances: Float32, N x k.
        indices: int64, N x k.
    """

    squared_distances: Tensor
    indices: Tensor


class Layer:
    """The representations of N samples at one layer, with their classes.

    What metrics share is computed when first asked for, then kept: no two metrics pass over the
    activations for the same thing, or compute the same distances.

    Distances are those of the activations as float32, to a relative error of about 1e-4, however
    far apart samples are. The one N x N product is that of the *residuals*, each sample's
    difference from its class mean (see `ClassSums`): tight classes do not suffer from cancellation.
    Where rounding could still tell, because samples are much nearer to each other than to their
    class mean, the distance is computed from their difference; where that is so for many pairs,
    all inner products are computed in float64. Ordinary layers need neither.

    Args:
        activations: N x C x H x W (or any N x C x ...) or N x D, of any floating type.
        labels: Integers, N.
        tap: Where in a network it is.
        network: What the network makes of it, for the metrics that need to know.
    """

    def __init__(
        self,
        activations: Tensor,
        labels: Tensor,
        tap: Tap | None = None,
        network: View | None = None,
    ) -> None:
        if len(activations) != len(labels) or activations.ndim < 2:
            raise ValueError(
                f"{tuple(activations.shape)} activations and {tuple(labels.shape)} labels"
            )
        activations = activations.detach()
        # Channels first in memory as well: a block of channels is then read in long runs.
        self.activations: Tensor | None = activations.contiguous().reshape(
            *activations.shape[:2], activations.shape[2:].numel()
        )
        self._set(self.activations.shape, labels.to(activations.device), tap, network)

    @classmethod
    def of_sums(
        cls,
        sums: Iterable[Sums],
        labels: Tensor,
        tap: Tap | None,
        network: View | None,
        read_again: Callable[[], Blocks] | None = None,
    ) -> "Layer":
        """A layer whose activations are not held: all that is known of them has been added up.

        Args:
            sums: To which all blocks have been added.
            labels: Integers, N.
            tap: Where in a network it is.
            network: What the network makes of it.
            read_again: Reads the activations once more, in blocks of channels (N x channels x
                positions, and the first channel's number), where the sums are not exact enough.
        """
        layer = cls.__new__(cls)
        layer.activations = None
        finished = list(sums)
        layer._set(finished[0].shape, labels, tap, network)
        layer._read_again = read_again
        for one in finished:
            one.finish()
            layer._sums[type(one)] = one
        return layer

    def _set(
        self, shape: Iterable[int], labels: Tensor, tap: Tap | None, network: View | None
    ) -> None:
        self.num_samples, self.num_channels, self.num_positions = shape
        self.labels = labels
        self.tap = tap
        self.network = network
        self._read_again: Callable[[], Blocks] | None = None
        self._sums: dict[type[Sums], Sums] = {}
        self._exact: dict[type[ClassSums], ClassSums] = {}
        self._shared: dict[Callable[[Layer], Any], Any] = {}

    def shared(self, compute: Callable[["Layer"], T]) -> T:
        """`compute(self)`, computed once, for what several metrics of a family need."""
        if compute not in self._shared:
            self._shared[compute] = compute(self)
        return cast(T, self._shared[compute])

    @property
    def is_readable(self) -> bool:
        """Whether the activations can be read once more."""
        return self.activations is not None or self._read_again is not None

    def blocks(self) -> Iterator[tuple[Tensor, int]]:
        """The activations, a few channels at a time, and the number of the first of these."""
        held = [] if self.activations is None else [(self.activations, 0)]
        at_once = max(1, BLOCK // (2 * max(1, self.num_samples * self.num_positions)))
        for values, first in self._read_again() if self._read_again else held:
            for block in values.split(at_once, dim=1):
                yield block, first
                first += block.shape[1]

    def _added_up(self, kind: type[S]) -> S:
        if kind not in self._sums:
            if self.activations is None:
                raise RuntimeError(f"{kind.__name__} was not added up while the layer was read")
            sums = kind((self.num_samples, self.num_channels, self.num_positions), self._classes)
            sums.add_all(self.activations)
            sums.finish()
            self._sums[kind] = sums
        return cast(S, self._sums[kind])

    def in_float64(self, kind: type[C]) -> C:
        """Sums like `class_sums` or `products`, computed in float64, where their rounding matters.

        Where the activations can no longer be read, they are the ones that there are.
        """
        if not self.is_readable:
            return self._added_up(kind)
        kind = cast(type[C], Products) if Products in self._exact else kind
        if kind not in self._exact:
            shape = (self.num_samples, self.num_channels, self.num_positions)
            sums = kind(shape, self._classes, torch.float64)
            for block, first in self.blocks():
                sums.add_all(block, first)
            sums.finish()
            self._exact[kind] = sums
        return cast(C, self._exact[kind])

    def let_go_of_activations(self) -> None:
        """Compute what measures of similarity need, then hold no activations."""
        self._added_up(Activity)
        self._added_up(Products)
        if self.products.centred is None and math.isfinite(self.total_variation):
            _ = self.factor  # while what it takes can be read again
        self._exact.clear()
        self.activations = self._read_again = None

    @property
    def name(self) -> str:
        """The layer's name in its network; empty where that is not known."""
        return self.tap.layer if self.tap else ""

    @property
    def index(self) -> int:
        """In the order in which its network computes its layers, from 0; 0 if not known."""
        return self.tap.layer_index if self.tap else 0

    @property
    def num_units(self) -> int:
        """D: channels x positions."""
        return self.num_channels * self.num_positions

    @property
    def num_classes(self) -> int:
        """How many classes have a sample here."""
        return len(self.class_sizes)

    @cached_property
    def _classes(self) -> Classes:
        return Classes(self.labels)

    @property
    def classes(self) -> Tensor:
        """The class of each sample, numbered from 0 without gaps: int64, N."""
        return self._classes.index

    @property
    def class_labels(self) -> Tensor:
        """The label of each class: int64, C."""
        return self._classes.labels

    @property
    def class_sizes(self) -> Tensor:
        """Samples in each class: int64, C."""
        return self._classes.sizes

    @property
    def membership(self) -> Tensor:
        """1 where a sample is in a class: float32, N x C."""
        return self._classes.membership

    @property
    def activity(self) -> Activity:
        """Where the layer is silent, how large it gets."""
        return self._added_up(Activity)

    @property
    def moments(self) -> Moments:
        """Sums of powers, by sample, by unit and by channel."""
        return self._added_up(Moments)

    @property
    def class_sums(self) -> ClassSums:
        """What follows from the class means, without any N x N product."""
        return self._added_up(Products if Products in self._sums else ClassSums)

    @property
    def class_geometry(self) -> ClassSums:
        """`class_sums`, in float64 where class means are too near to each other for float32."""
        sums: ClassSums = self.class_sums
        return sums if sums.are_means_clear else self.in_float64(ClassSums)

    @property
    def products(self) -> Products:
        """The same, and the inner products of the residuals, N x N."""
        return self._added_up(Products)

    @property
    def total_variation(self) -> float:
        """Mean squared distance to the mean of all samples: the trace of the covariance."""
        between = self.class_sums.means_gram.diagonal() @ self.class_sizes.double()
        within = self.class_sums.residual_norms_squared.double().sum()
        return (between + within).item() / self.num_samples

    @property
    def nearest_means(self) -> Tensor:
        """The class whose mean is nearest to each sample: int64, N."""
        sums = self.class_geometry
        squared = sums.squared_distances_to_means
        least = squared.min(1, keepdim=True)
        error = ERROR * sums.resolution * sums.reach
        limit = least.values + error.gather(1, least.indices)
        if ((squared - error <= limit).sum(1) > 1).any():
            squared = self.in_float64(ClassSums).squared_distances_to_means
        return squared.argmin(1)

    @cached_property
    def gram(self) -> Tensor:
        """Inner products of the samples after the mean of all is subtracted: float32, N x N."""
        return self.products.gram()

    @cached_property
    def squared_distances(self) -> Tensor:
        """Between samples: float32, N x N, symmetric, with an exact 0 on the diagonal."""
        squared, unclear = self.products.squared_distances()
        if self.is_readable and len(unclear):
            rows, columns = unclear.unbind(1)
            squared[rows, columns] = squared[columns, rows] = self._exactly(unclear).float()
        return squared

    def _exactly(self, pairs: Tensor) -> Tensor:
        """The squared distances of some pairs of samples, i < j: float64."""
        first = self._first_alike(pairs.unique())
        keys = (first[pairs].sort(1).values * pairs.new_tensor([self.num_samples, 1])).sum(1)
        keys, back = keys.unique(return_inverse=True)
        pairs = torch.stack([keys // self.num_samples, keys % self.num_samples], 1)
        if len(pairs) > MAX_PAIRS * self.num_samples**2:
            squared, is_unclear = self.in_float64(Products).of_pairs(pairs)
            squared[is_unclear] = self._from_differences(pairs[is_unclear])
        else:
            squared = self._from_differences(pairs)
        return squared[back]

    def _first_alike(self, samples: Tensor) -> Tensor:
        """The number of the first sample whose activations are the same: int64, N.

        Args:
            samples: The numbers of those that are looked at; of the others it is their own number.
        """
        group = torch.zeros_like(samples)
        for block, _ in self.blocks():
            values = block[samples].flatten(1).float()
            within_block = values.unique(dim=0, return_inverse=True)[1]
            group = (group * len(samples) + within_block).unique(return_inverse=True)[1]
        first = torch.full_like(samples, self.num_samples)
        first.scatter_reduce_(0, group, samples, "amin")
        alike = torch.arange(self.num_samples, device=samples.device)
        alike[samples] = first[group]
        return alike

    def _from_differences(self, pairs: Tensor) -> Tensor:
        """The squared distances of some pairs of samples, from their differences: float64."""
        squared = torch.zeros(len(pairs), dtype=torch.float64, device=pairs.device)
        if not len(pairs):
            return squared
        for block, _ in self.blocks():
            values = block.flatten(1)
            at_once = max(1, PART // values.shape[1])
            for some, total in zip(pairs.split(at_once), squared.split(at_once), strict=True):
                difference = values[some[:, 0]].float() - values[some[:, 1]].float()
                total += difference.double().square_().sum(1)
        return squared

    @cached_property
    def distances(self) -> Tensor:
        """Between samples: float32, N x N."""
        return self.squared_distances.sqrt()

    @cached_property
    def neighbours(self) -> Neighbours:
        """The 10 nearest other samples of each, or all others where there are fewer."""
        others = self.num_samples - 1
        count = min(NEIGHBOURS, others)
        matrix = self.squared_distances.fill_diagonal_(torch.inf)  # for now, without a copy
        squared, indices = matrix.topk(min(NEIGHBOURS + 1, others), largest=False)
        if self.is_readable and count < others:
            rows = torch.arange(self.num_samples, device=indices.device)
            lower, upper = self._bounds(rows, indices, squared)
            limits = upper[:, :count].amax(1)
            rows = rows[lower[:, count:].amin(1) < limits]
            if len(rows):
                squared[rows, :count], indices[rows, :count] = self._nearest(rows, limits[rows])
        matrix.fill_diagonal_(0)
        return Neighbours(squared[:, :count], indices[:, :count])

    def _bounds(self, rows: Tensor, columns: Tensor, squared: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the most that squared distances between samples may be.

        Args:
            rows: The numbers of R samples.
            columns: Those of K others for each of them: R x K, or 1 x K.
            squared: As in `squared_distances`: R x K.
        """
        sums: ClassSums = self.products
        rows = rows[:, None]
        reach = sums.reach[rows, self.classes[columns]] + sums.reach[columns, self.classes[rows]]
        # What lies far enough below this limit was computed from differences.
        is_exact = squared < UNCLEAR / 2 * sums.resolution * reach
        error = torch.where(is_exact, 0, ERROR * sums.resolution * reach)
        error = error + torch.finfo(torch.float32).eps * squared
        return squared - error, squared + error

    def _nearest(self, rows: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest others of some samples, among those that may lie within a limit.

        Returns:
            Squared distances and numbers of the 10 nearest others: len(rows) x 10.
        """
        everyone = torch.arange(self.num_samples, device=rows.device)[None]
        found = []
        for some, limit in zip(rows.split(TILE), limits.split(TILE), strict=True):
            lower, _ = self._bounds(some, everyone, self.squared_distances[some])
            near = (lower <= limit[:, None]).nonzero()
            found.append(torch.stack([some[near[:, 0]], near[:, 1]], 1))
        pairs = torch.cat(found)
        squared = self._exactly(pairs.sort(1).values)
        order = squared.argsort(stable=True)
        order = order[pairs[order, 0].argsort(stable=True)]
        first = torch.searchsorted(pairs[order, 0], rows)
        chosen = order[first[:, None] + torch.arange(NEIGHBOURS, device=rows.device)]
        return squared[chosen].float(), pairs[chosen, 1]

    @cached_property
    def spectrum(self) -> Tensor:
        """Eigenvalues of the centred Gram matrix, the largest first: float64, min(N, D).

        Where D < N they are those of the D x D scatter matrix. What cannot be told from 0 is 0.
        """
        (values,) = self._decomposed(lambda products: (torch.linalg.eigvalsh(products),))
        return values.flip(0)

    @cached_property
    def factor(self) -> Tensor:
        """Z with Z Z^T = the centred Gram matrix: float64, N x at most min(N, D)."""
        centred = self.products.centred
        if centred is not None:
            return centred.double()
        values, vectors = self._decomposed(torch.linalg.eigh)
        is_positive = values > 0
        return vectors[:, is_positive].double() * values[is_positive].sqrt()

    def _decomposed(self, decompose: Callable[[Tensor], Sequence[Tensor]]) -> list[Tensor]:
        """Eigenvalues, and what comes with them, of the Gram matrix or the scatter matrix.

        The roots of small eigenvalues are the first to suffer from rounding. Where it could matter
        to the sum of all roots, more is computed in float64: the matrix, then all products.
        """
        for products, error in self._matrices():
            values, *others = decompose(products)
            del products
            values = values.double()
            singular = values.clamp_min(0).sqrt()
            # What an eigenvalue's error does to its root.
            unsure = torch.minimum(error / (2 * singular), singular.new_tensor(error).sqrt())
            if not unsure.sum() > SPECTRAL_ERROR * singular.sum():
                break
        # Below the resolution of the activations, which are float32, there is nothing to be found.
        error = max(error, torch.finfo(torch.float32).eps ** 2 * values[-1].item())
        return [values.masked_fill(values < error, 0), *others]

    def _matrices(self) -> Iterator[tuple[Tensor, float]]:
        """The Gram matrix, or the scatter matrix where D < N, each time more exact.

        Yields:
            The matrix, and about how much its eigenvalues may be wrong.
        """

        def error(squares: Tensor, dtype: torch.dtype) -> float:
            return torch.finfo(dtype).eps * float(torch.linalg.vector_norm(squares.double()))

        sums = self.products
        if sums.centred is not None:
            for dtype in (torch.float32, torch.float64):
                centred = sums.centred.to(dtype)
                products = centred.T @ centred
                yield products, error(products.diagonal(), dtype)
            return
        yield self.gram, error(self.gram.diagonal(), torch.float32)
        yield sums.gram(torch.float64), error(sums.residual_norms_squared, torch.float32)
        if self.is_readable:
            products = self.in_float64(Products).gram(torch.float64)
            yield products, error(products.diagonal(), torch.float64)
