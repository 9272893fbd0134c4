"""How far classes have collapsed to the vertices of a simplex (Papyan, Han and Donoho 2020)."""

import math

import torch
from torch import Tensor

from bnstudy.metrics.class_clustering import MOTIONS
from bnstudy.metrics.registry import NotApplicable, Undefined, metric
from bnstudy.representations import Layer
from bnstudy.representations.sums import ROUNDING, ClassSums

RESOLUTION = 1e-13  # of the largest eigenvalue: below it, an eigenvalue of S_B is 0
IN_FLOAT32 = 1e-7  # of it: below that, inner products in float32 are not exact enough
PAPYAN = "Papyan, Han and Donoho 2020, doi 10.1073/pnas.2015509117"


def _norms(layer: Layer) -> Tensor:
    """Norms of the class means after the mean of all is subtracted: float64, C."""
    norms = layer.class_geometry.mean_norms
    if not norms.any():
        raise Undefined("all class means are the same")
    return norms


@metric(
    direction="lower",
    bounds=(0, math.inf),
    invariant_to=MOTIONS,
    needs=["classes", "variation"],
    source=f"{PAPYAN}, NC1",
)
def nc1(layer: Layer) -> float:
    """tr(S_W S_B^+) / C: variability within classes over that between them.

    S_B = M^T W M with the centred class means M and the classes' shares W; its pseudoinverse acts
    within their span, so that C x C products are all it takes.
    """
    layer.shared(_norms)
    values, along = _between(layer, layer.class_geometry)
    if (values < IN_FLOAT32 * values[-1]).any():
        values, along = _between(layer, layer.in_float64(ClassSums))
    return float((along / values).square().sum(1).mean()) / layer.num_classes


def _between(layer: Layer, sums: ClassSums) -> tuple[Tensor, Tensor]:
    """The eigenvalues of S_B that are not 0, the largest last; the residuals along its axes.

    Returns:
        float64, K; and with S_B = B^T B, B = sqrt(W) M, the residuals r as V^T B r with the
        eigenvectors V of B B^T, so that tr(S_W S_B^+) is the mean over samples of
        |V^T B r / eigenvalues|^2: float64, N x K.
    """
    weights = (layer.class_sizes.double() / layer.num_samples).sqrt()
    values, vectors = torch.linalg.eigh(weights[:, None] * sums.means_gram * weights)
    within = float(sums.residual_norms_squared.double().mean())
    is_positive = values > max(RESOLUTION * float(values[-1]), ROUNDING * within)
    vectors = vectors[:, is_positive]
    return values[is_positive], (sums.residuals_dot_means * weights) @ vectors


@metric(
    direction="lower",
    bounds=(0, math.inf),
    invariant_to=MOTIONS,
    needs=["classes", "variation"],
    source=f"{PAPYAN}, NC2, equal norms",
)
def nc2_norm(layer: Layer) -> float:
    """Coefficient of variation of the centred class means' norms; 0 where they are equally long."""
    norms = layer.shared(_norms)
    return (norms.std(correction=0) / norms.mean()).item()


@metric(
    direction="lower",
    bounds=(0, 2),
    invariant_to=MOTIONS,
    needs=["classes", "variation"],
    source=f"{PAPYAN}, NC2, maximal equal angles",
)
def nc2_angle(layer: Layer) -> float:
    """Mean over pairs of classes of |cos + 1 / (C - 1)|; 0 where their means are a simplex."""
    norms, count = layer.shared(_norms), layer.num_classes
    if not norms.all():
        raise Undefined("a class mean is the mean of all samples")
    cosines = layer.class_geometry.means_gram / norms / norms[:, None]
    away = (cosines + 1 / (count - 1)).abs()
    return ((away.sum() - away.diagonal().sum()) / (count * (count - 1))).item()


@metric(
    direction="lower",
    bounds=(0, 2),
    invariant_to=["scale", "translation"],
    needs=["classes", "variation", "network"],
    source=f"{PAPYAN}, NC3",
)
def nc3(layer: Layer) -> float:
    """|W / |W| - M / |M|| of the last layer's weights and the centred class means: duality.

    At the site `features` only: what the last linear layer reads. |.| is the Frobenius norm.
    """
    weights = layer.network.classifier_weights if layer.network else None
    if weights is None:
        raise NotApplicable("it is not what the last linear layer reads")
    if layer.num_classes != len(weights):
        raise Undefined("not every class of the last layer has a sample")
    if layer.num_units != weights.shape[1]:
        raise NotApplicable("the last linear layer reads only a part of it at a time")
    layer.shared(_norms)
    means, weights = layer.class_geometry.centred_means.double(), weights.double()
    difference = weights / torch.linalg.norm(weights) - means / torch.linalg.norm(means)
    return float(torch.linalg.norm(difference))


@metric(
    direction="higher",
    bounds=(0, 1),
    invariant_to=MOTIONS,
    needs=["classes", "variation", "network"],
    source=f"{PAPYAN}, NC4",
)
def ncc_agreement(layer: Layer) -> float:
    """Share of samples whose nearest class mean is of the class that the network predicts."""
    logits = layer.network.logits if layer.network else None
    if logits is None:
        raise NotApplicable("the network does not put out a number for each class")
    if not logits.isfinite().all():
        raise Undefined("a logit is not finite")
    nearest = layer.class_labels[layer.nearest_means]
    return (nearest == logits.argmax(1)).double().mean().item()
