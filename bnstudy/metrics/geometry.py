"""Geometry of the representations: dimensionality, anisotropy and norms.

Example:
    >>> layer = Layer(torch.tensor([[3.0, 4.0], [6.0, 8.0]]), torch.tensor([0, 1]))
    >>> round(anisotropy(layer), 4), norm_mean(layer)
    (1.0, 7.5)
"""

import math

import torch
from torch import Tensor

from bnstudy.metrics.registry import ROTATION_SCALE_TRANSLATION, Undefined, metric
from bnstudy.randomness import generator_for
from bnstudy.representations import Layer
from bnstudy.representations.sums import Products

KEPT_FRACTION = 0.9  # of the ratios in TwoNN's fit, because the largest are the least reliable
NUM_RESAMPLES = 100
MAX_COSINE_ERROR = 1e-5
FACCO = "Facco et al. 2017, TwoNN, doi 10.1038/s41598-017-11873-y"


@metric(
    direction=None,
    bounds=(1, math.inf),
    invariant_to=ROTATION_SCALE_TRANSLATION,
    needs=["products", "variation"],
    source="Gao et al. 2017, doi 10.1101/214262; Litwin-Kumar et al. 2017",
)
def participation_ratio(layer: Layer) -> float:
    """(Sum of the covariance's eigenvalues)^2 / sum of their squares."""
    gram = layer.gram
    total = layer.total_variance * layer.num_samples
    squares = torch.linalg.vector_norm(gram, dtype=torch.float64).item() ** 2
    return float(total**2 / squares)


@metric(
    direction=None,
    bounds=(1, math.inf),
    invariant_to=ROTATION_SCALE_TRANSLATION,
    needs=["products", "variation"],
    source="Roy and Vetterli 2007, EUSIPCO, definition 1",
)
def effective_rank(layer: Layer) -> float:
    """Exponential of the entropy of the singular values, normalized to a sum of 1."""
    singular = layer.spectrum.sqrt()
    share = singular / singular.sum()
    return math.exp(-share.xlogy(share).sum().item())


@metric(
    direction=None,
    bounds=(1, math.inf),
    invariant_to=ROTATION_SCALE_TRANSLATION,
    needs=["products", "variation"],
    source="Rudelson and Vershynin 2007, doi 10.1145/1255443.1255449",
)
def stable_rank(layer: Layer) -> float:
    """Sum of the covariance's eigenvalues / largest eigenvalue."""
    return (layer.spectrum.sum() / layer.spectrum[0]).item()


@metric(
    direction=None,
    bounds=(1, math.inf),
    invariant_to=["rotation", "scale"],
    needs=["products"],
    source="Daneshmand et al. 2020, arXiv 2003.01652; uncentred second moment",
)
def soft_rank(layer: Layer) -> float:
    """tr(M)^2 / |M|^2, where M = H H^T are the inner products of the uncentred samples.

    The value is between 1 and min(N, D). With the mean h of all samples h_i, M_ij = G_ij + a_i +
    a_j + |h|^2, where G is the centred Gram matrix and a_i = (h_i - h) h. Each row of G sums to 0,
    and so do the a_i.
    """
    sums, count = layer.products, layer.num_samples
    with_mean = sums.residuals_dot_global_mean + sums.class_means_dot_global_mean[layer.classes]
    total = layer.total_variance + sums.global_mean_norm_squared
    if total == 0:
        raise Undefined("every sample's activations are 0")
    norm: float = torch.linalg.vector_norm(layer.gram, dtype=torch.float64).item()
    squares = (norm / count) ** 2
    squares += 2 * with_mean.square().mean().item() + sums.global_mean_norm_squared**2
    return total**2 / squares


def _log_ratios(layer: Layer) -> Tensor:
    """Return the sorted logs of second / first neighbour distances of the samples: float64."""
    if layer.num_samples < 3:
        raise Undefined("there are fewer than 3 samples")
    nearest = layer.neighbours.squared_distances[:, :2].double()
    nearest = nearest[nearest[:, 0] > 0]  # duplicates have no ratio
    log_ratios = (nearest[:, 1] / nearest[:, 0]).log() / 2  # halved, as the distances are squared
    log_ratios = log_ratios.sort().values
    if not log_ratios[: int(KEPT_FRACTION * len(log_ratios))].any():
        raise Undefined("too few samples have neighbours at different distances")
    return log_ratios


def two_nn(log_ratios: Tensor) -> Tensor:
    """Estimate the intrinsic dimension with TwoNN.

    The estimate is the slope of the line through the origin that is fitted to -log(1 - F(mu)) over
    log mu, where mu is the ratio of a sample's distances to its second and first neighbour, and F
    is the empirical distribution of mu. The largest tenth of mu is left out.

    Args:
        log_ratios: Values of log mu, sorted along the last dimension: ... x N.

    Returns:
        Intrinsic dimension: float64, ...
    """
    count = log_ratios.shape[-1]
    kept = int(KEPT_FRACTION * count)
    rank = torch.arange(1, kept + 1, dtype=torch.float64, device=log_ratios.device)
    x, y = log_ratios[..., :kept], -torch.log1p(-rank / count)
    return (x * y).sum(-1) / x.square().sum(-1)


@metric(
    direction=None,
    bounds=(0, math.inf),
    invariant_to=ROTATION_SCALE_TRANSLATION,
    needs=["distances"],
    source=FACCO,
)
def intrinsic_dimension(layer: Layer) -> float:
    """Intrinsic dimension by TwoNN, from the distances to the two nearest neighbours."""
    return two_nn(layer.shared(_log_ratios)).item()


@metric(
    direction=None,
    bounds=(0, math.inf),
    invariant_to=ROTATION_SCALE_TRANSLATION,
    needs=["distances"],
    source=f"{FACCO}; bootstrap, Efron 1979",
)
def intrinsic_dimension_error(layer: Layer) -> float:
    """Standard error of the intrinsic dimension, by bootstrap over the samples."""
    log_ratios = layer.shared(_log_ratios)
    count = len(log_ratios)
    draws = torch.randint(
        count, (NUM_RESAMPLES, count), generator=generator_for("bootstrap", "TwoNN")
    )
    dimensions = two_nn(log_ratios[draws.sort(1).values.to(log_ratios.device)])
    if not dimensions.isfinite().all():
        raise Undefined("too few samples have neighbours at different distances")
    return dimensions.std().item()


@metric(
    direction=None,
    bounds=(-1, 1),
    invariant_to=["rotation", "scale"],
    needs=["products", "variation"],
    source="Ethayarajh 2019, arXiv 1909.00512",
)
def anisotropy(layer: Layer) -> float:
    """Mean cosine similarity of two samples, without samples that are all 0."""
    squared_norms = layer.moments.squared_norms
    is_active = squared_norms > 0
    count = int(is_active.sum())
    if count < 2:
        raise Undefined("fewer than 2 samples have activations other than 0")
    weights = torch.where(is_active, squared_norms, 1).rsqrt() * is_active  # 1 / norm, or 0
    if layer.can_read_activations and _cosine_error(layer, weights) > MAX_COSINE_ERROR:
        unit_sums = (weights @ block.flatten(1).double() for block, _ in layer.blocks())
        total = sum(sums.square().sum().item() for sums in unit_sums)
    else:
        total = _sum_of_cosines(layer.products, weights)
    mean = (total - count) / (count * (count - 1))
    return min(max(mean, -1 / (count - 1)), 1.0)


def _cosine_error(layer: Layer, weights: Tensor) -> float:
    """Estimate the rounding error of the mean cosine; it is large if samples are near 0.

    Args:
        layer: Representations of N samples.
        weights: 1 / norm of each sample; 0 for a sample that is all 0: float64, N.
    """
    sums = layer.products
    norms = sums.residual_norms_squared.double().sqrt()
    norms = norms + sums.class_means_gram.diagonal().sqrt()[layer.classes]
    norms = norms + math.sqrt(sums.global_mean_norm_squared)
    return sums.product_resolution * (weights @ norms / weights.count_nonzero()).item() ** 2


def _sum_of_cosines(sums: Products, weights: Tensor) -> float:
    """Sum x_i x_j w_i w_j over all i and j, including i = j, from the products of the residuals."""
    classes = sums.classes.index
    within = weights @ (sums.residuals_gram @ weights.to(sums.dtype)).double()
    terms = sums.residuals_dot_class_means + sums.class_means_gram[classes] / 2  # see Products.gram
    by_class = weights.new_zeros(terms.shape[1]).index_add_(0, classes, weights)
    with_mean = sums.residuals_dot_global_mean + sums.class_means_dot_global_mean[classes]
    total = within + 2 * (weights @ terms) @ by_class
    total = total + 2 * weights.sum() * (weights @ with_mean)
    return (total + weights.sum() ** 2 * sums.global_mean_norm_squared).item()


@metric(
    direction=None,
    bounds=(0, math.inf),
    invariant_to=["rotation"],
    source="norm over all units of a sample",
)
def norm_mean(layer: Layer) -> float:
    """Mean Euclidean norm of the samples."""
    return layer.moments.squared_norms.sqrt().mean().item()


@metric(
    direction=None,
    bounds=(0, math.inf),
    invariant_to=["rotation", "scale"],
    source="standard deviation / mean over samples",
)
def norm_cv(layer: Layer) -> float:
    """Coefficient of variation of the Euclidean norms of the samples."""
    norms = layer.moments.squared_norms.sqrt()
    if not norms.any():
        raise Undefined("every sample's activations are 0")
    return (norms.std(correction=0) / norms.mean()).item()
