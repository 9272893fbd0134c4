"""Linear separability of the classes.

Example:
    >>> layer = Layer(torch.tensor([[0.0], [1.0], [7.0], [8.0]]), torch.tensor([0, 0, 1, 1]))
    >>> linear_probe(layer)
    1.0
"""

import torch
from torch import Tensor

from bnstudy.metrics.registry import ROTATION_SCALE_TRANSLATION, Undefined, metric
from bnstudy.representations import Layer

REGULARIZATION = 0.1  # relative to the mean squared distance to the mean


@metric(
    direction="higher",
    bounds=(0, 1),
    invariant_to=ROTATION_SCALE_TRANSLATION,
    needs=["classes", "products", "variation"],
    source="Rifkin and Lippert 2007, MIT-CSAIL-TR-2007-025; ridge classifier, closed form",
)
def linear_probe(layer: Layer) -> float:
    """Leave-one-out accuracy of a ridge classifier.

    The classifier is one-against-all with targets of +1 and -1 and an intercept that is not
    penalized. The penalty is 0.1 times the mean squared distance to the mean. With the hat matrix H
    of all samples, intercept included, and its diagonal h, the prediction for a left-out sample is
    y - (y - H y) / (1 - h).
    """
    centred = layer.products.centred
    targets = 2 * layer.membership - 1
    penalty = REGULARIZATION * layer.total_variance
    if centred is None:
        centred_fit, leverage = _hat_of_gram(layer.gram, targets, penalty)
    else:
        centred_fit, leverage = _hat_of_units(centred, targets, penalty)
    # The intercept adds the mean to the fit, and 1/N to the diagonal of the hat matrix.
    residuals = targets - centred_fit - targets.mean(0)
    predictions = targets - residuals / (1 - leverage - 1 / layer.num_samples)[:, None]
    if not predictions.isfinite().all():
        raise Undefined("a prediction is not finite")
    return (predictions.argmax(1) == layer.classes).double().mean().item()


def _hat_of_gram(gram: Tensor, targets: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Compute H y and the diagonal of H = G (G + p I)^-1 = I - p (G + p I)^-1, for centred data."""
    inverse = _invert(gram, penalty)
    return targets - penalty * (inverse @ targets), 1 - penalty * inverse.diagonal()


def _hat_of_units(centred: Tensor, targets: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Compute H y and the diagonal of H = X (X^T X + p I)^-1 X^T, for centred data X."""
    weights = centred @ _invert(centred.T @ centred, penalty)
    return weights @ (centred.T @ targets), (weights * centred).sum(1)


def _invert(products: Tensor, penalty: float) -> Tensor:
    """Compute (P + p I)^-1 for a positive semidefinite matrix P."""
    regularized = products.clone()
    regularized.diagonal().add_(penalty)
    return torch.cholesky_inverse(torch.linalg.cholesky(regularized))
