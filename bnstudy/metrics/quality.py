"""What the rest of the network makes of a layer's representations."""

import math

from torch import Tensor

from bnstudy.metrics.registry import NotApplicable, Undefined, metric
from bnstudy.representations import Layer
from bnstudy.representations.network import View

JIANG = "Jiang et al. 2019, arXiv 1810.00113"


def _view(layer: Layer) -> View:
    """The network around a layer, which has to be a classifier of the samples' classes."""
    if layer.network is None or layer.network.logits is None:
        raise NotApplicable("the network does not put out a number for each class")
    return layer.network


def _finite_margins(layer: Layer) -> Tensor:
    """Margins of the samples whose gradient is not 0: float64."""
    margins = _view(layer).margins
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
    """Accuracy when two representations of a class are averaged here and sent on.

    As elsewhere, a prediction from logits that are not finite is wrong.
    """
    accuracy = _view(layer).mixed_accuracy
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
    """Distance from the representation to the decision boundary, mean over samples.

    To first order: the logit of the sample's class minus the largest other one, over the norm of
    that difference's gradient here. Negative where a sample is classified wrongly; samples whose
    gradient is 0 are left out.
    """
    return layer.shared(_finite_margins).mean().item()


@metric(
    direction="higher",
    bounds=(-math.inf, math.inf),
    needs=["classes", "variation", "network"],
    source=f"{JIANG}, normalized by the total variation",
)
def margin_normalized(layer: Layer) -> float:
    """Mean margin / square root of the representations' total variation."""
    return layer.shared(_finite_margins).mean().item() / math.sqrt(layer.total_variation)
