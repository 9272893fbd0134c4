"""Neural collapse: variability within classes, and symmetry of the class means.

Example:
    >>> layer = Layer(torch.tensor([[0.0], [2.0], [9.0], [11.0]]), torch.tensor([0, 0, 1, 1]))
    >>> nc2_norm(layer), round(nc1(layer), 4)
    (0.0, 0.0247)
"""

import math

import torch
from torch import Tensor

from bnstudy.metrics.registry import ROTATION_SCALE_TRANSLATION, NotApplicable, Undefined, metric
from bnstudy.representations import Layer
from bnstudy.representations.sums import ClassSums

MIN_EIGENVALUE = 1e-13  # of S_B, relative to the largest one; smaller ones count as 0
MAX_ERROR = 1e-3  # relative rounding error of the residuals along the eigenvectors of S_B
PAPYAN = "Papyan, Han and Donoho 2020, doi 10.1073/pnas.2015509117"


def _class_mean_norms(layer: Layer) -> Tensor:
    """Return the norms of the centred class means: float64, C.

    Raises:
        Undefined: All class means are the same.
    """
    norms = layer.precise_class_sums.class_mean_norms
    if not norms.any():
        raise Undefined("all class means are the same")
    return norms


@metric(
    direction="lower",
    bounds=(0, math.inf),
    invariant_to=ROTATION_SCALE_TRANSLATION,
    needs=["classes", "variation"],
    source=f"{PAPYAN}, NC1",
)
def nc1(layer: Layer) -> float:
    """tr(S_W S_B^+) / C: variability within classes relative to variability between classes.

    S_B = M^T W M, where M are the centred class means and W are the shares of the classes. Its
    pseudoinverse acts within the span of the class means, so C x C products are sufficient.
    """
    layer.shared(_class_mean_norms)  # raises Undefined if all class means are the same
    trace, is_exact = _trace(layer, layer.precise_class_sums)
    if not is_exact:
        trace, _ = _trace(layer, layer.in_float64(ClassSums))
    return trace / layer.num_classes


def _trace(layer: Layer, sums: ClassSums) -> tuple[float, bool]:
    """Compute tr(S_W S_B^+); return it and whether its rounding error is small.

    With S_B = B^T B, B = sqrt(W) M, the trace is the mean over samples of |V^T B r / L|^2, where r
    are the residuals, V the eigenvectors of B B^T and L its eigenvalues. Eigenvalues of 0 are left
    out.
    """
    weights = (layer.class_sizes.double() / layer.num_samples).sqrt()
    values, vectors = torch.linalg.eigh(weights[:, None] * sums.class_means_gram * weights)
    largest = float(values[-1])
    within = float(sums.residual_norms_squared.double().mean())
    # Class means are exact to about the resolution times the norms of the averaged activations.
    rounding = (10 * sums.resolution) ** 2 * (within + sums.global_mean_norm_squared)
    is_positive = values > max(MIN_EIGENVALUE * largest, rounding)
    values, vectors = values[is_positive], vectors[:, is_positive]
    along = (sums.residuals_dot_class_means * weights) @ vectors / values
    trace = float(along.square().sum(1).mean())
    squared_error = float((sums.resolution / values).square().sum()) * within * largest
    has_full_rank = len(values) == min(layer.num_classes - 1, layer.num_units)
    return trace, has_full_rank and squared_error <= MAX_ERROR**2 * trace


@metric(
    direction="lower",
    bounds=(0, math.inf),
    invariant_to=ROTATION_SCALE_TRANSLATION,
    needs=["classes", "variation"],
    source=f"{PAPYAN}, NC2, equal norms",
)
def nc2_norm(layer: Layer) -> float:
    """Coefficient of variation of the norms of the centred class means; 0 if they are equal."""
    norms = layer.shared(_class_mean_norms)
    return (norms.std(correction=0) / norms.mean()).item()


@metric(
    direction="lower",
    bounds=(0, 2),
    invariant_to=ROTATION_SCALE_TRANSLATION,
    needs=["classes", "variation"],
    source=f"{PAPYAN}, NC2, maximal equal angles",
)
def nc2_angle(layer: Layer) -> float:
    """Mean over pairs of centred class means of |cos + 1 / (C - 1)|; 0 if they form a simplex."""
    norms, count = layer.shared(_class_mean_norms), layer.num_classes
    if not norms.all():
        raise Undefined("a class mean is the mean of all samples")
    cosines = layer.precise_class_sums.class_means_gram / norms / norms[:, None]
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
    """Distance |W / |W| - M / |M|| of classifier weights W and centred class means M.

    It is defined only at the site `features`, the input of the last linear layer. |.| is the
    Frobenius norm.
    """
    weights = layer.network.classifier_weights if layer.network else None
    if weights is None:
        raise NotApplicable("it is not what the last linear layer reads")
    if layer.num_classes != len(weights):
        raise Undefined("not every class of the last layer has a sample")
    if layer.num_units != weights.shape[1]:
        raise NotApplicable(
            "the last linear layer reads only a part of the representation at a time"
        )
    layer.shared(_class_mean_norms)  # raises Undefined if all class means are the same
    means, weights = layer.precise_class_sums.centred_means.double(), weights.double()
    difference = weights / torch.linalg.norm(weights) - means / torch.linalg.norm(means)
    return float(torch.linalg.norm(difference))


@metric(
    direction="higher",
    bounds=(0, 1),
    invariant_to=ROTATION_SCALE_TRANSLATION,
    needs=["classes", "variation", "network"],
    source=f"{PAPYAN}, NC4",
)
def ncc_agreement(layer: Layer) -> float:
    """Share of samples whose nearest class mean is that of the class the network predicts."""
    logits = layer.network.logits if layer.network else None
    if logits is None:
        raise NotApplicable("the network's output is not one logit per class")
    if not logits.isfinite().all():
        raise Undefined("a logit is not finite")
    nearest = layer.class_labels[layer.nearest_mean_classes]
    return (nearest == logits.argmax(1)).double().mean().item()
