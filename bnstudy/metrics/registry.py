"""Registry of the metrics: declaration, evaluation and selection by name."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from bnstudy.errors import UserError
from bnstudy.representations import Layer
from bnstudy.representations.precision import in_float32
from bnstudy.terms import suggest

Direction = Literal["higher", "lower"]
Invariance = Literal["rotation", "scale", "translation"]
Need = Literal["classes", "variation", "products", "distances", "network"]

ROTATION_SCALE_TRANSLATION: tuple[Invariance, ...] = ("rotation", "scale", "translation")
# Range of the largest activation in which sums of squares neither overflow nor underflow float32.
REPRESENTABLE_RANGE = (1e-12, 1e12)
MIN_VARIANCE = 1e-30  # mean squared distance to the mean; smaller ones underflow float32


class Undefined(Exception):
    """Exception for a metric that has no value for a layer; the message gives the reason."""


class NotApplicable(Undefined):
    """Exception for a metric that does not apply to this kind of layer."""


@dataclass(frozen=True)
class Declaration:
    """Declared properties of a metric or similarity.

    Attributes:
        name: Name in the records.
        family: Name of the module that defines it, with spaces.
        direction: Whether higher or lower values mean better separated classes or clusters, a more
            robust classifier, or more similar layers; None if neither does.
        bounds: Smallest and largest possible value.
        invariant_to: Transformations of the representations that do not change the value: any
            rotation (orthogonal map, such as a permutation of the units), any positive scale, any
            translation.
        needs: Requirements: at least two `classes`; samples that differ (`variation`); the inner
            `products` of the samples; the `distances` between samples; the `network` that contains
            the layer. `distances` imply `variation` and `products`.
        source: Publication, and the variant that is computed.
        function: Function that computes the value, or raises `Undefined` if there is none.
    """

    name: str
    family: str
    direction: Direction | None
    bounds: tuple[float, float]
    invariant_to: frozenset[Invariance]
    needs: frozenset[Need]
    source: str
    function: Callable[..., float]

    @property
    def needs_products(self) -> bool:
        """True if the value depends on products or distances of pairs of samples."""
        return not self.needs.isdisjoint({"products", "distances"})

    @property
    def description(self) -> str:
        """First line of the function's docstring."""
        return (self.function.__doc__ or "").splitlines()[0]


@dataclass(frozen=True)
class Metric(Declaration):
    """Number that describes the representations of a layer."""

    function: Callable[[Layer], float]

    def __call__(self, layer: Layer) -> float:
        """Compute the value for a layer; NaN if it is undefined."""
        return evaluate([self], layer)[self.name].number


class Value(NamedTuple):
    """Value of a metric for a layer.

    Attributes:
        number: Value; NaN if it is undefined.
        reason: Reason why the value is undefined; None if it is defined.
        is_applicable: Whether the metric applies to this kind of layer.
    """

    number: float
    reason: str | None = None
    is_applicable: bool = True


METRICS: dict[str, Metric] = {}


def metric(
    *,
    direction: Direction | None,
    bounds: tuple[float, float],
    source: str,
    invariant_to: Iterable[Invariance] = (),
    needs: Iterable[Need] = (),
) -> Callable[[Callable[[Layer], float]], Metric]:
    """Register a function `Layer -> float` as a metric under the function's name.

    `Declaration` describes the arguments.
    """

    def declare(function: Callable[[Layer], float]) -> Metric:
        declared = Metric(
            function.__name__,
            function.__module__.rpartition(".")[2].replace("_", " "),
            direction,
            bounds,
            frozenset(invariant_to),
            frozenset(needs),
            source,
            function,
        )
        METRICS[declared.name] = declared
        return declared

    return declare


def evaluate(metrics: Iterable[Metric], layer: Layer) -> dict[str, Value]:
    """Compute metrics for a layer.

    Args:
        metrics: Metrics to compute.
        layer: Representations of N samples.

    Returns:
        Values by name of the metric, in the given order.

    Example:
        >>> import torch
        >>> layer = Layer(torch.tensor([[0.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1]))
        >>> evaluate(chosen(["unit_sparsity"]), layer)
        {'unit_sparsity': Value(number=0.5, reason=None, is_applicable=True)}
    """
    metrics = list(metrics)
    values = {}
    # Metrics that need products come first: the pass that computes them also computes the sums that
    # the other metrics need.
    for declared in sorted(metrics, key=lambda declared: not declared.needs_products):
        try:
            check_needs(declared.needs, layer)
            with in_float32(layer.labels.device):
                number = declared.function(layer)
            if not math.isfinite(number):
                raise Undefined("the result is not finite")
            values[declared.name] = Value(number)
        except Undefined as reason:
            is_applicable = not isinstance(reason, NotApplicable)
            values[declared.name] = Value(math.nan, str(reason), is_applicable)
    return {declared.name: values[declared.name] for declared in metrics}


def check_needs(needs: Iterable[Need], layer: Layer) -> None:
    """Check that a layer has samples and finite activations and meets the given needs.

    Raises:
        Undefined: One of these conditions is not met; the message says which.
    """
    needs = set(needs)
    if layer.num_samples == 0:
        raise Undefined("there are no samples")
    largest = layer.activity.largest
    if not math.isfinite(largest):
        raise Undefined("an activation is not finite")
    if "network" in needs and layer.network is None:
        raise NotApplicable("the network that contains the layer is not known")
    if "classes" in needs and layer.num_classes < 2:
        raise Undefined("there is only one class")
    if needs & {"variation", "distances"} and layer.activity.is_constant:
        raise Undefined("all samples have the same representation")
    if needs & {"variation", "products", "distances"}:
        low, high = REPRESENTABLE_RANGE
        if largest and not low < largest < high:
            raise Undefined(
                f"powers of activations up to {largest:.0e} are outside of float32's range"
            )
    if needs & {"variation", "distances"}:
        with in_float32(layer.labels.device):
            if needs & {"products", "distances"}:
                _ = layer.products  # before the variance, which then follows from the same sums
            total_variance = layer.total_variance
        if total_variance < MIN_VARIANCE:
            raise Undefined("the squared differences between samples are too small for float32")


def chosen(names: Iterable[str]) -> list[Metric]:
    """Look up metrics by name, without duplicates.

    Raises:
        UserError: There is no metric of a name; the message suggests similar names.
    """
    for name in names:
        if name not in METRICS:
            advice = suggest(str(name), METRICS)
            raise UserError(
                f"metrics.names: there is no metric {name}{advice and f'; {advice}'}\n"
                "python -m bnstudy.metrics lists all metrics; python -m bnstudy.measure similarity "
                "computes those that compare two layers"
            )
    return [METRICS[name] for name in dict.fromkeys(names)]
