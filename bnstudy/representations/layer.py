"""One layer's activations, and what the metrics share of them."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")

GRAM_ROWS = 500  # of one block: large enough for the product's full speed


class Layer:
    """The representations of N samples at one layer, with their classes.

    What metrics share is computed when first asked for, then kept: no two metrics compute the same
    distances.

    Distances do not suffer from cancellation where it would matter most, within tight classes: the
    one N x N product is that of the *residuals*, each sample's difference from its class mean, and
    what the class means add to it is of rank 2C and computed apart. With x_i = m_a + r_i and
    x_j = m_b + r_j,

        |x_i - x_j|^2 = |r_i|^2 + |r_j|^2 - 2 r_i r_j + u_ib + u_ja
        with u_ib = 2 r_i (m_a - m_b) + |m_a - m_b|^2 / 2, which is 0 for b = a.

    Args:
        activations: N x C x H x W (or any N x C x ...) or N x D, of any floating type.
        labels: Integers, N.
    """

    def __init__(self, activations: Tensor, labels: Tensor) -> None:
        if len(activations) != len(labels) or activations.ndim < 2:
            raise ValueError(
                f"{tuple(activations.shape)} activations and {tuple(labels.shape)} labels"
            )
        self.activations = activations
        self.labels = labels.to(activations.device)
        self._shared: dict[Callable[[Layer], Any], Any] = {}

    def shared(self, compute: Callable[["Layer"], T]) -> T:
        """`compute(self)`, computed once, for what several metrics of a family need."""
        if compute not in self._shared:
            self._shared[compute] = compute(self)
        return cast(T, self._shared[compute])

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.activations)

    @property
    def num_classes(self) -> int:
        """How many classes have a sample here."""
        return len(self.class_sizes)

    @cached_property
    def flat(self) -> Tensor:
        """A sample's activations as one vector, in the order in which they lie: float32, N x D."""
        activations = self.activations
        if activations.ndim == 4 and activations.is_contiguous(memory_format=torch.channels_last):
            activations = activations.permute(0, 2, 3, 1)  # flattened without a copy
        return activations.flatten(1).float()

    @cached_property
    def largest(self) -> float:
        """The largest absolute activation; NaN if one is NaN."""
        smallest, largest = torch.aminmax(self.flat)
        return torch.maximum(-smallest, largest).item()

    @cached_property
    def is_constant(self) -> bool:
        """Whether all samples have the same representation, as at a dead layer."""
        return all(bool((row == self.flat[0]).all()) for row in self.flat)

    @cached_property
    def _classes(self) -> tuple[Tensor, Tensor]:
        _, members, sizes = torch.unique(self.labels, return_inverse=True, return_counts=True)
        return members, sizes

    @property
    def classes(self) -> Tensor:
        """The class of each sample, numbered from 0 without gaps: int64, N."""
        return self._classes[0]

    @property
    def class_sizes(self) -> Tensor:
        """Samples in each class: int64, C."""
        return self._classes[1]

    @cached_property
    def membership(self) -> Tensor:
        """1 where a sample is in a class: float32, N x C."""
        return torch.nn.functional.one_hot(self.classes, self.num_classes).float()

    @cached_property
    def class_means(self) -> Tensor:
        """Float32, C x D."""
        return self.membership.T @ self.flat / self.class_sizes[:, None]

    @cached_property
    def mean(self) -> Tensor:
        """Of all samples: float32, D."""
        return (self.class_sizes / self.num_samples) @ self.class_means

    @cached_property
    def _products(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of residuals, N x N; of them and the centred class means, N x C; of these, C x C."""
        means = self.class_means - self.mean
        residuals = torch.addmm(self.flat, self.membership, self.class_means, alpha=-1)
        return _gram(residuals), residuals @ means.T, means @ means.T

    @property
    def residual_norms_squared(self) -> Tensor:
        """Squared distance of each sample to its class mean: float32, N."""
        return self._products[0].diagonal()

    @property
    def class_mean_products(self) -> Tensor:
        """Inner products of the class means after the mean of all is subtracted: C x C."""
        return self._products[2]

    @cached_property
    def class_mean_distances_squared(self) -> Tensor:
        """Float32, C x C."""
        means = self.class_means - self.mean
        return torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist").square()

    @cached_property
    def gram(self) -> Tensor:
        """Inner products of the samples after the mean of all is subtracted: float32, N x N."""
        residuals, with_means, of_means = self._products
        half = with_means + of_means[self.classes] / 2
        return torch.addmm(
            residuals,
            torch.cat([half, self.membership], 1),
            torch.cat([self.membership, half], 1).T,
        )

    @cached_property
    def squared_distances(self) -> Tensor:
        """Between samples: float32, N x N, with an exact 0 on the diagonal."""
        residuals, with_means, _ = self._products
        own = with_means.gather(1, self.classes[:, None])
        extra = 2 * (own - with_means) + self.class_mean_distances_squared[self.classes] / 2
        norms = self.residual_norms_squared[:, None]
        one = torch.ones_like(norms)
        squared = torch.addmm(
            residuals,
            torch.cat([extra, self.membership, norms, one], 1),
            torch.cat([self.membership, extra, one, norms], 1).T,
            beta=-2,
        )
        return squared.clamp_min_(0).fill_diagonal_(0)

    @cached_property
    def distances(self) -> Tensor:
        """Between samples: float32, N x N."""
        return self.squared_distances.sqrt()


def _gram(vectors: Tensor) -> Tensor:
    """All inner products, N x N, of N x D; the upper blocks are computed, the lower ones copied."""
    count = len(vectors)
    gram = vectors.new_empty(count, count)
    for start in range(0, count, GRAM_ROWS):
        stop = min(start + GRAM_ROWS, count)
        strip = vectors[start:stop] @ vectors[start:].T
        gram[start:stop, start:] = strip
        gram[stop:, start:stop] = strip[:, stop - start :].T
    return gram
