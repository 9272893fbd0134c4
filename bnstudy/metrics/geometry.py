"""The shape of the cloud of representations: how many dimensions, in which directions."""

import math

import torch
from torch import Tensor

from bnstudy.metrics.class_clustering import MOTIONS
from bnstudy.metrics.registry import Undefined, metric
from bnstudy.randomness import generator_for
from bnstudy.representations import Layer

KEPT = 0.9  # of the ratios, for TwoNN's fit: the largest ones are the least reliable
RESAMPLES = 100
FACCO = "Facco et al. 2017, TwoNN, doi 10.1038/s41598-017-11873-y"


def _share(layer: Layer) -> Tensor:
    """Each eigenvalue's share of the variance: float64."""
    return layer.spectrum / layer.spectrum.sum()


@metric(
    direction=None,
    bounds=(1, math.inf),
    invariant_to=MOTIONS,
    needs=["distances"],
    source="Gao et al. 2017, doi 10.1101/214262; Litwin-Kumar et al. 2017",
)
def participation_ratio(layer: Layer) -> float:
    """(sum of the covariance's eigenvalues)^2 / sum of their squares."""
    gram = layer.gram
    total: float = layer.total_variation * layer.num_samples
    squares = torch.linalg.vector_norm(gram, dtype=torch.float64).item() ** 2
    return float(total**2 / squares)


@metric(
    direction=None,
    bounds=(1, math.inf),
    invariant_to=MOTIONS,
    needs=["distances"],
    source="Roy and Vetterli 2007, EUSIPCO, definition 1",
)
def effective_rank(layer: Layer) -> float:
    """Exp of the entropy of the singular values, as shares of their sum."""
    singular = layer.spectrum.sqrt()
    share = singular / singular.sum()
    return math.exp(-share.xlogy(share).sum().item())


@metric(
    direction=None,
    bounds=(1, math.inf),
    invariant_to=MOTIONS,
    needs=["distances"],
    source="Rudelson and Vershynin 2007, doi 10.1145/1255443.1255449",
)
def stable_rank(layer: Layer) -> float:
    """Sum of the covariance's eigenvalues / the largest one."""
    return (layer.spectrum.sum() / layer.spectrum[0]).item()


def _ratios(layer: Layer) -> Tensor:
    """Log of the second nearest neighbour's distance over the first's, sorted: float64."""
    if layer.num_samples < 3:
        raise Undefined("there are fewer than 3 samples")
    nearest = layer.neighbours.squared_distances[:, :2].double()
    nearest = nearest[nearest[:, 0] > 0]  # a sample that is there twice has no ratio
    ratios = (nearest[:, 1] / nearest[:, 0]).log() / 2
    ratios = ratios.sort().values
    if not ratios[: int(KEPT * len(ratios))].any():
        raise Undefined("too few samples have neighbours at different distances")
    return ratios


def two_nn(ratios: Tensor) -> Tensor:
    """Slope through the origin of -log(1 - F(mu)) over log mu, the largest tenth left out.

    Args:
        ratios: log mu, sorted along the last dimension: ... x N.

    Returns:
        The intrinsic dimension: float64, ...
    """
    count = ratios.shape[-1]
    kept = int(KEPT * count)
    rank = torch.arange(1, kept + 1, dtype=torch.float64, device=ratios.device)
    x, y = ratios[..., :kept], -torch.log1p(-rank / count)
    return (x * y).sum(-1) / x.square().sum(-1)


@metric(
    direction=None, bounds=(0, math.inf), invariant_to=MOTIONS, needs=["distances"], source=FACCO
)
def intrinsic_dimension(layer: Layer) -> float:
    """TwoNN: from the ratio of each sample's distances to its two nearest neighbours."""
    return two_nn(layer.shared(_ratios)).item()


@metric(
    direction=None,
    bounds=(0, math.inf),
    invariant_to=MOTIONS,
    needs=["distances"],
    source=f"{FACCO}; bootstrap over samples (Efron 1979)",
)
def intrinsic_dimension_error(layer: Layer) -> float:
    """Standard error of the intrinsic dimension: bootstrap over the samples' ratios."""
    ratios = layer.shared(_ratios)
    draws = torch.randint(
        len(ratios), (RESAMPLES, len(ratios)), generator=generator_for("bootstrap", "TwoNN")
    )
    dimensions = two_nn(ratios[draws.sort(1).values.to(ratios.device)])
    if not dimensions.isfinite().all():
        raise Undefined("too few samples have neighbours at different distances")
    return dimensions.std().item()


@metric(
    direction=None,
    bounds=(-1, 1),
    invariant_to=["rotation", "scale"],
    needs=["distances"],
    source="Ethayarajh 2019, arXiv 1909.00512",
)
def anisotropy(layer: Layer) -> float:
    """Mean cosine between two samples, those that are all 0 left out."""
    active = layer.moments.squares > 0
    count = int(active.sum())
    if count < 2:
        raise Undefined("fewer than 2 samples have activations other than 0")
    weights = torch.where(active, layer.moments.squares, 1).rsqrt() * active
    sums = layer.products
    with_mean = sums.residuals_dot_mean.double() + sums.means_dot_mean[layer.classes]
    centred = weights @ (layer.gram @ weights.float()).double()
    total = centred + 2 * weights.sum() * (weights @ with_mean)
    total = total + weights.sum() ** 2 * sums.mean_norm_squared
    mean = (total.item() - count) / (count * (count - 1))
    return min(max(mean, -1 / (count - 1)), 1.0)  # of a sample near 0, products tell less


@metric(
    direction=None,
    bounds=(0, math.inf),
    invariant_to=["rotation"],
    needs=["representable"],
    source="Euclidean norm of a sample's activations, mean over samples",
)
def norm_mean(layer: Layer) -> float:
    """Mean norm of a sample."""
    return layer.moments.squares.sqrt().mean().item()


@metric(
    direction=None,
    bounds=(0, math.inf),
    invariant_to=["rotation", "scale"],
    needs=["representable"],
    source="standard deviation / mean over samples of a sample's norm",
)
def norm_cv(layer: Layer) -> float:
    """Coefficient of variation of the samples' norms."""
    norms = layer.moments.squares.sqrt()
    if not norms.any():
        raise Undefined("every sample's activations are 0")
    return (norms.std(correction=0) / norms.mean()).item()
