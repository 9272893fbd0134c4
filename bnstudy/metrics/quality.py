"""Margins and mixing accuracies: how robustly the network classifies from a layer on."""

import math

from torch import Tensor

from bnstudy.metrics.registry import NotApplicable, Undefined, metric
from bnstudy.representations import Layer
from bnstudy.representations.network import NetworkAtCall


def _classifier_at(layer: Layer) -> NetworkAtCall:
    """Return the network around a layer.

    Raises:
        NotApplicable: The network is unknown, or does not classify the samples.
    """
    if layer.network is None or layer.network.logits is None:
        raise NotApplicable("the network's output is not one logit per class")
    return layer.network


def _finite_margins(layer: Layer) -> Tensor:
    """Return the margins of the samples whose gradient is not 0: float64."""
    margins = _classifier_at(layer).margins
    if margins.isnan().any():
        raise Undefined("a logit or its gradient is not finite")
    margins = margins[margins.isfinite()]
    if not len(margins):
        raise Undefined("the logits do not depend on this layer")
    return margins


@metric(
    direction="higher",
    bounds=(0, 1),
    needs=["classes", "network"],
    source="Natekar and Sharma 2020, arXiv 2012.02775, section 3.2",
)
def mixup_accuracy(layer: Layer) -> float:
    """Accuracy after pairs of same-class representations are averaged at this layer.

    A prediction from logits that are not finite counts as wrong.
    """
    accuracy = _classifier_at(layer).mixed_accuracy
    if math.isnan(accuracy):
        raise Undefined("no class has two samples")
    return accuracy


@metric(
    direction="higher",
    bounds=(-math.inf, math.inf),
    needs=["classes", "network"],
    source="Elsayed et al. 2018, arXiv 1803.05598, first order",
)
def margin_mean(layer: Layer) -> float:
    """Mean margin: first-order distance of a representation to the decision boundary.

    The margin is the logit of the sample's class minus the largest other logit, divided by the norm
    of the gradient of that difference with respect to the representation. It is negative if the
    sample is misclassified. Samples whose gradient is 0 are left out.
    """
    return layer.shared(_finite_margins).mean().item()


@metric(
    direction="higher",
    bounds=(-math.inf, math.inf),
    needs=["classes", "variation", "network"],
    source="Jiang et al. 2019, arXiv 1810.00113, normalized by the total variation",
)
def margin_normalized(layer: Layer) -> float:
    """Mean margin / square root of the total variation of the representations."""
    return layer.shared(_finite_margins).mean().item() / math.sqrt(layer.total_variance)
