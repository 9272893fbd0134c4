"""Similarities of two layers' representations of the same samples, from one or two networks.

Example:
    >>> labels = torch.tensor([0, 1, 0, 1])
    >>> first = Layer(torch.tensor([[0.0, 1.0], [2.0, 0.0], [4.0, 5.0], [9.0, 3.0]]), labels)
    >>> second = Layer(3 * first.activations.flip(1), labels)
    >>> round(cka(first, second), 4)
    1.0
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bnstudy.errors import UserError
from bnstudy.metrics.registry import (
    ROTATION_SCALE_TRANSLATION,
    Declaration,
    Direction,
    Invariance,
    Undefined,
    check_needs,
)
from bnstudy.representations import Layer
from bnstudy.representations.precision import in_float32

ADVICE = "read both from a DataLoader with shuffle=False"
STRIP_ROWS = 500  # rows of a matrix whose products are summed at once


class DifferentSamples(UserError, ValueError):
    """Error for two layers that do not represent the same samples in the same order."""


@dataclass(frozen=True)
class Similarity(Declaration):
    """Number that compares two layers' representations of the same samples.

    Attributes:
        function: Function that computes the value, or raises `Undefined` if there is none.
        is_metric: Whether it is a distance: 0 for a layer and itself, symmetric, and with the
            triangle inequality.
        is_symmetric: Whether exchanging the layers leaves the value unchanged.
    """

    function: Callable[[Layer, Layer], float]
    is_metric: bool
    is_symmetric: bool

    def __call__(self, first: Layer, second: Layer) -> float:
        """Compute the value for two layers; NaN if it is undefined.

        Raises:
            DifferentSamples: The layers do not represent the same samples in the same order.
        """
        _require_same_samples(first, second)
        try:
            for layer in (first, second):
                check_needs(self.needs, layer)
            with in_float32(first.labels.device):
                return self.function(first, second)
        except Undefined:
            return math.nan


def _require_same_samples(first: Layer, second: Layer) -> None:
    """Raise DifferentSamples if labels or inputs show that samples differ or are reordered.

    Inputs at the same position may differ, because two networks may read the same images with
    different scaling or normalization. But if they differ, and the first layer's input occurs at
    another position of the second layer, the samples are reordered.
    """
    if first.num_samples != second.num_samples:
        raise DifferentSamples(
            f"the layers have {first.num_samples} samples and {second.num_samples}; a similarity "
            "compares the same samples in the same order"
        )
    num_differing = int((first.labels.cpu() != second.labels.cpu()).sum())
    if num_differing:
        raise DifferentSamples(
            f"the layers' labels differ at {num_differing} of {first.num_samples} samples: a "
            f"similarity compares the same samples in the same order; {ADVICE}"
        )
    inputs, others = [
        layer.network.checksums if layer.network else None for layer in (first, second)
    ]
    if inputs is None or others is None:
        return
    num_moved = int(((inputs != others) & torch.isin(inputs, others)).sum())
    if num_moved:
        raise DifferentSamples(
            f"{num_moved} of {first.num_samples} samples have another position in the second "
            f"layer: a similarity compares the same samples in the same order; {ADVICE}"
        )


SIMILARITIES: dict[str, Similarity] = {}


def similarity(
    *,
    direction: Direction,
    bounds: tuple[float, float],
    is_metric: bool,
    is_symmetric: bool,
    invariant_to: Iterable[Invariance],
    source: str,
) -> Callable[[Callable[[Layer, Layer], float]], Similarity]:
    """Register a function of two layers as a similarity under the function's name.

    `Declaration` and `Similarity` describe the arguments. A declared invariance holds for each of
    the two layers alone.
    """

    def declare(function: Callable[[Layer, Layer], float]) -> Similarity:
        declared = Similarity(
            function.__name__,
            "similarity",
            direction,
            bounds,
            frozenset(invariant_to),
            frozenset(["products", "variation"]),
            source,
            function,
            is_metric,
            is_symmetric,
        )
        SIMILARITIES[declared.name] = declared
        return declared

    return declare


def _sum_products(first: Tensor, second: Tensor) -> float:
    """Sum the products of two matrices' entries in float64: their Frobenius inner product."""
    strips = zip(first.split(STRIP_ROWS), second.split(STRIP_ROWS), strict=True)
    return sum(float((a.double() * b).sum()) for a, b in strips)


def _hsic(first: Layer, second: Layer) -> float:
    """Compute |X^T Y|^2 of the centred representations.

    If both layers have at most as many units as samples, it is computed from the products of units.
    Otherwise it is computed as the inner product of the Gram matrices, which is the same.
    """
    x, y = first.products.centred, second.products.centred
    if x is not None and y is not None:
        return float((x.T @ y).double().square().sum())
    return _sum_products(first.gram, second.gram)


def _self_hsic(layer: Layer) -> float:
    return _hsic(layer, layer)


@similarity(
    direction="higher",
    bounds=(0, 1),
    is_metric=False,
    is_symmetric=True,
    invariant_to=ROTATION_SCALE_TRANSLATION,
    source="Kornblith et al. 2019, arXiv 1905.00414",
)
def cka(first: Layer, second: Layer) -> float:
    """Linear centred kernel alignment (CKA): |X^T Y|^2 / (|X^T X| |Y^T Y|)."""
    norms = math.sqrt(first.shared(_self_hsic) * second.shared(_self_hsic))
    return min(1.0, _hsic(first, second) / norms)


def _unbiased_hsic(first: Layer, second: Layer) -> float:
    """Compute n (n - 3) times the unbiased HSIC of Song et al. 2012, JMLR 13:1393, equation 5."""
    n = first.num_samples
    if n < 4:
        raise Undefined("there are fewer than 4 samples")
    # The equation is about the Gram matrices without their diagonals.
    diagonal, other_diagonal = first.gram.diagonal().double(), second.gram.diagonal().double()
    inner = _sum_products(first.gram, second.gram) - (diagonal @ other_diagonal).item()
    rows = first.gram.sum(1, dtype=torch.float64) - diagonal
    other_rows = second.gram.sum(1, dtype=torch.float64) - other_diagonal
    totals = (rows.sum() * other_rows.sum() / ((n - 1) * (n - 2))).item()
    return inner + totals - 2 / (n - 2) * (rows @ other_rows).item()


def _self_unbiased_hsic(layer: Layer) -> float:
    value = _unbiased_hsic(layer, layer)
    if value <= 0:
        raise Undefined("the unbiased HSIC of a layer with itself is not positive")
    return value


@similarity(
    direction="higher",
    bounds=(-1, 1),
    is_metric=False,
    is_symmetric=True,
    invariant_to=ROTATION_SCALE_TRANSLATION,
    source="Song et al. 2012, JMLR 13:1393; Nguyen et al. 2021, arXiv 2010.15327",
)
def cka_debiased(first: Layer, second: Layer) -> float:
    """Linear CKA with unbiased HSIC, whose expectation is 0 for unrelated representations."""
    norms = first.shared(_self_unbiased_hsic) * second.shared(_self_unbiased_hsic)
    return _unbiased_hsic(first, second) / math.sqrt(norms)


def _factor(layer: Layer) -> Tensor:
    """Return `layer.factor` divided by its norm: float64, N x at most min(N, D)."""
    factor = layer.factor
    return factor / float(torch.linalg.norm(factor))


@similarity(
    direction="lower",
    bounds=(0, math.pi / 2),
    is_metric=True,
    is_symmetric=True,
    invariant_to=ROTATION_SCALE_TRANSLATION,
    source="Williams et al. 2021, arXiv 2110.14739",
)
def procrustes(first: Layer, second: Layer) -> float:
    """Angle in radians after the best rotation: arccos(|X^T Y|_* / (|X| |Y|)).

    The angle is 0 if one layer is a rotated, scaled and shifted copy of the other.
    """
    products = first.shared(_factor).T @ second.shared(_factor)
    return math.acos(min(1.0, torch.linalg.svdvals(products).sum().item()))
