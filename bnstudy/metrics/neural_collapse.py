"""How far classes have collapsed to the vertices of a simplex (Papyan, Han and Donoho 2020)."""

import math

import torch
from torch import Tensor

from bnstudy.metrics.class_clustering import MOTIONS
from bnstudy.metrics.registry import NotApplicable, Undefined, metric
from bnstudy.representations import Layer

RESOLUTION = 1e-9  # of the largest eigenvalue: below it, an eigenvalue of S_B is 0
PAPYAN = "Papyan, Han and Donoho 2020, doi 10.1073/pnas.2015509117"


def _norms(layer: Layer) -> Tensor:
    """Norms of the class means after the mean of all is subtracted: float64, C."""
    norms: Tensor = layer.class_sums.means_gram.diagonal().sqrt()
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
    sums, share = layer.class_sums, layer.class_sizes.double() / layer.num_samples
    weights = share.sqrt()
    # S_B = B^T B with B = sqrt(W) M; tr(S_W S_B^+) = mean over samples of |(B B^T)^+ B r|^2.
    between = weights[:, None] * sums.means_gram * weights
    inverse = torch.linalg.pinv(between, rtol=RESOLUTION, hermitian=True)
    ratios = ((sums.residuals_dot_means.double() * weights) @ inverse).square().sum(1)
    return float(ratios.mean()) / layer.num_classes


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
    cosines = layer.class_sums.means_gram / norms / norms[:, None]
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
    sums = layer.class_sums
    means = sums.class_means.double()
    means = means - layer.class_sizes.double() @ means / layer.num_samples
    weights = weights.double()
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
    nearest = layer.class_labels[layer.squared_distances_to_means.argmin(1)]
    return (nearest == logits.argmax(1)).double().mean().item()
