"""One layer's activations, and what the metrics share of them."""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from bnstudy.representations.network import View
from bnstudy.representations.sums import (
    BLOCK,
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

NEIGHBOURS = 10
CANCELLATION = 1e-3  # of two squared norms: below it, float32 products tell too little


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

    Distances do not suffer from cancellation where it would matter most, within tight classes: the
    one N x N product is that of the *residuals*, each sample's difference from its class mean, and
    what the class means add to it is of rank 2C and computed apart. With x_i = m_a + r_i and
    x_j = m_b + r_j,

        |x_i - x_j|^2 = |r_i|^2 + |r_j|^2 - 2 r_i r_j + u_ib + u_ja
        with u_ib = 2 r_i (m_a - m_b) + |m_a - m_b|^2 / 2, which is 0 for b = a.

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
        cls, sums: Iterable[Sums], labels: Tensor, tap: Tap | None, network: View | None
    ) -> "Layer":
        """A layer whose activations are not held: all that is known of them has been added up.

        Args:
            sums: To which all blocks have been added.
            labels: Integers, N.
            tap: Where in a network it is.
            network: What the network makes of it.
        """
        layer = cls.__new__(cls)
        layer.activations = None
        finished = list(sums)
        layer._set(finished[0].shape, labels, tap, network)
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
        self._sums: dict[type[Sums], Sums] = {}
        self._shared: dict[Callable[[Layer], Any], Any] = {}

    def shared(self, compute: Callable[["Layer"], T]) -> T:
        """`compute(self)`, computed once, for what several metrics of a family need."""
        if compute not in self._shared:
            self._shared[compute] = compute(self)
        return cast(T, self._shared[compute])

    def _added_up(self, kind: type[S]) -> S:
        if kind not in self._sums:
            if self.activations is None:
                raise RuntimeError(f"{kind.__name__} was not added up while the layer was read")
            sums = kind((self.num_samples, self.num_channels, self.num_positions), self._classes)
            sums.add_all(self.activations)
            sums.finish()
            self._sums[kind] = sums
        return cast(S, self._sums[kind])

    def let_go_of_activations(self) -> None:
        """Add up what metrics of geometry and similarity need, then hold no activations."""
        self._added_up(Activity)
        self._added_up(Products)
        self.activations = None

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
    def products(self) -> Products:
        """The same, and the inner products of the residuals, N x N."""
        return self._added_up(Products)

    @property
    def total_variation(self) -> float:
        """Mean squared distance to the mean of all samples: the trace of the covariance."""
        between = self.class_sums.means_gram.diagonal() @ self.class_sizes.double()
        within = self.class_sums.residual_norms_squared.double().sum()
        return (between + within).item() / self.num_samples

    @cached_property
    def _beyond(self) -> Tensor:
        """u_ib of the formula above: float32, N x C, 0 where b is the sample's own class."""
        sums = self.class_sums
        own = sums.residuals_dot_means.gather(1, self.classes[:, None])
        apart = sums.mean_distances_squared.float()[self.classes]
        return 2 * (own - sums.residuals_dot_means) + apart / 2

    @property
    def squared_distances_to_means(self) -> Tensor:
        """Of each sample to each class mean: float32, N x C."""
        sums = self.class_sums
        apart = sums.mean_distances_squared.float()[self.classes]
        return (sums.residual_norms_squared[:, None] + self._beyond + apart / 2).clamp_min_(0)

    @cached_property
    def gram(self) -> Tensor:
        """Inner products of the samples after the mean of all is subtracted: float32, N x N."""
        sums = self.products
        half = sums.residuals_dot_means + sums.means_gram.float()[self.classes] / 2
        return torch.addmm(
            sums.residuals,
            torch.cat([half, self.membership], 1),
            torch.cat([self.membership, half], 1).T,
        )

    @cached_property
    def squared_distances(self) -> Tensor:
        """Between samples: float32, N x N, with an exact 0 on the diagonal."""
        sums = self.products
        norms = sums.residual_norms_squared[:, None]
        one = torch.ones_like(norms)
        squared = torch.addmm(
            sums.residuals,
            torch.cat([self._beyond, self.membership, norms, one], 1),
            torch.cat([self.membership, self._beyond, one, norms], 1).T,
            beta=-2,
        )
        return squared.clamp_min_(0).fill_diagonal_(0)

    @cached_property
    def distances(self) -> Tensor:
        """Between samples: float32, N x N."""
        return self.squared_distances.sqrt()

    @cached_property
    def neighbours(self) -> Neighbours:
        """The 10 nearest other samples of each, or all others where there are fewer.

        Where two samples are so near that rounding errors of the products tell in their distance,
        as along a line, it is computed from their difference (unless the layer is held in blocks).
        """
        matrix = self.squared_distances.fill_diagonal_(torch.inf)  # for now, without a copy
        squared, indices = matrix.topk(min(NEIGHBOURS, self.num_samples - 1), largest=False)
        matrix.fill_diagonal_(0)
        if self.activations is not None:
            norms = self.class_sums.residual_norms_squared
            near = squared < CANCELLATION * (norms[:, None] + norms[indices])
            at_once = max(1, BLOCK // self.num_units)
            for pairs in near.nonzero().split(at_once):
                rows, columns = pairs.unbind(1)
                one, other = self.activations[rows], self.activations[indices[rows, columns]]
                difference = (one.float() - other.float()).flatten(1)
                squared[rows, columns] = difference.square().sum(1)
            squared, order = squared.sort()
            indices = indices.gather(1, order)
        return Neighbours(squared, indices)

    @cached_property
    def spectrum(self) -> Tensor:
        """Eigenvalues of the centred Gram matrix, the largest first: float64, min(N, D).

        Where D < N they are those of the D x D scatter matrix. Below float32's resolution of the
        largest one they count as 0.
        """
        centred = self.products.centred
        products = self.gram if centred is None else centred.T @ centred
        values: Tensor = torch.linalg.eigvalsh(products).flip(0).double()
        resolution = torch.finfo(torch.float32).eps * values[0]
        return values.masked_fill_(values < resolution, 0)
