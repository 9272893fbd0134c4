"""What is known of every metric, by name."""

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from bnstudy.errors import UserError
from bnstudy.representations import Layer
from bnstudy.representations.sums import in_float32

Direction = Literal["higher", "lower"]
Invariance = Literal["rotation", "scale", "translation"]
Need = Literal["classes", "variation", "products", "distances", "network"]

# Largest activations between which float32 holds the sums of squares without overflow or underflow.
REPRESENTABLE = (1e-12, 1e12)
SMALLEST_VARIATION = 1e-30  # mean squared distance to the mean whose parts float32 holds as well


class Undefined(Exception):
    """A metric has no value for this layer; the message says why."""


class NotApplicable(Undefined):
    """The metric is not about layers of this kind; nothing is wrong with the layer."""


@dataclass(frozen=True)
class Declaration:
    """What a number that describes representations says of itself.

    Attributes:
        name: As in a record.
        family: Which of the modules here it is in.
        direction: Which values mean better clustered, or more alike; None where neither is better.
        bounds: Smallest and largest possible value.
        invariant_to: What the representations can undergo without a change of the value: any
            rotation, any positive scale, any translation.
        needs: What must be there: two `classes` or more; samples that differ (`variation`); the
            inner `products` of the samples; the `distances` between samples that differ, which
            include both; the `network` that the layer is of.
        source: Who defined it, and as what.
        function: Computes it; raises `Undefined` where there is no such number.
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
        """Whether it takes what is computed for each pair of samples."""
        return not self.needs.isdisjoint({"products", "distances"})

    @property
    def description(self) -> str:
        """What it is, in a line."""
        return (self.function.__doc__ or "").splitlines()[0]


@dataclass(frozen=True)
class Metric(Declaration):
    """A number that describes a layer's representations."""

    function: Callable[[Layer], float]

    def __call__(self, layer: Layer) -> float:
        """The value for a layer; NaN where it is undefined."""
        return evaluate([self], layer)[self.name].number


class Value(NamedTuple):
    """What a metric is of a layer.

    Attributes:
        number: NaN where it is undefined.
        reason: Why it is undefined; None where it is not.
        is_applicable: Whether the metric is about layers of this kind.
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
    """Declare a function `Layer -> float` as the metric of its name."""

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
    """The metrics' values for a layer, by name."""
    metrics = list(metrics)
    values = {}
    # Those that need products come first: the one pass that computes these gives what the others
    # need as well.
    for one in sorted(metrics, key=lambda one: not one.needs_products):
        try:
            check(one.needs, layer)
            with in_float32(layer.labels.device):
                number = one.function(layer)
            if not math.isfinite(number):
                raise Undefined("the result is not finite")
            values[one.name] = Value(number)
        except Undefined as reason:
            applicable = not isinstance(reason, NotApplicable)
            values[one.name] = Value(math.nan, str(reason), applicable)
    return {one.name: values[one.name] for one in metrics}


def check(needs: Iterable[Need], layer: Layer) -> None:
    """Make sure that a layer has what is needed of it, and finite activations.

    Raises:
        Undefined: It has not; the message says what.
    """
    needs = set(needs)
    if layer.num_samples == 0:
        raise Undefined("there are no samples")
    largest = layer.activity.largest
    if not math.isfinite(largest):
        raise Undefined("an activation is not finite")
    if "network" in needs and layer.network is None:
        raise NotApplicable("it is not known what network the layer is of")
    if "classes" in needs and layer.num_classes < 2:
        raise Undefined("there is only one class")
    if needs & {"variation", "distances"} and layer.activity.is_constant:
        raise Undefined("all samples have the same representation")
    if needs & {"variation", "products", "distances"}:
        low, high = REPRESENTABLE
        if largest and not low < largest < high:
            raise Undefined(f"powers of activations up to {largest:.0e} exceed float32")
    if needs & {"variation", "distances"}:
        with in_float32(layer.labels.device):
            _ = layer.products if "distances" in needs else layer.class_sums
        if layer.total_variation < SMALLEST_VARIATION:
            raise Undefined("the squared differences between samples are too small for float32")


def chosen(names: Iterable[str]) -> list[Metric]:
    """The metrics of the given names, each once.

    Raises:
        UserError: There is none of a name; the message lists the near ones.
    """
    for name in names:
        if name not in METRICS:
            near = difflib.get_close_matches(str(name), METRICS) or sorted(METRICS)
            raise UserError(
                f"metrics.names: there is no metric {name}; near: {', '.join(near)}\n"
                "python -m bnstudy.metrics lists all; those of similarity, which compare two "
                "layers, are what python -m bnstudy.measure similarity computes"
            )
    return [METRICS[name] for name in dict.fromkeys(names)]
