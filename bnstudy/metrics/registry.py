"""What is known of every metric, by name."""

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from bnstudy.errors import UserError
from bnstudy.representations import Layer

Direction = Literal["higher", "lower"]
Invariance = Literal["rotation", "scale", "translation"]
Need = Literal["classes", "distances"]


# Largest activations between which float32 holds the sums of squares without overflow or underflow.
REPRESENTABLE = (1e-12, 1e12)


class Undefined(Exception):
    """A metric has no value for this layer; the message says why."""


@dataclass(frozen=True)
class Metric:
    """A number that describes a layer's representations.

    Attributes:
        name: As in a record.
        function: Computes it; raises `Undefined` where there is no such number.
        direction: Which values mean better clustered classes; None where neither is better.
        bounds: Smallest and largest possible value.
        invariant_to: What the representations can undergo without a change of the value.
        needs: What must be there: two `classes` or more; `distances` that are not all 0.
        source: Who defined it, and as what.
    """

    name: str
    function: Callable[[Layer], float]
    direction: Direction | None
    bounds: tuple[float, float]
    invariant_to: frozenset[Invariance]
    needs: frozenset[Need]
    source: str

    def __call__(self, layer: Layer) -> float:
        """The value for a layer; NaN where it is undefined."""
        return evaluate(self, layer)[0]


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
            function,
            direction,
            bounds,
            frozenset(invariant_to),
            frozenset(needs),
            source,
        )
        METRICS[declared.name] = declared
        return declared

    return declare


def evaluate(metric: Metric, layer: Layer) -> tuple[float, str | None]:
    """A metric's value and None, or NaN and the reason why it has none."""
    try:
        _check(metric, layer)
        return metric.function(layer), None
    except Undefined as reason:
        return math.nan, str(reason)


def _check(metric: Metric, layer: Layer) -> None:
    if layer.num_samples == 0:
        raise Undefined("there are no samples")
    if not math.isfinite(layer.largest):
        raise Undefined("an activation is not finite")
    if "classes" in metric.needs and layer.num_classes < 2:
        raise Undefined("there is only one class")
    if "distances" in metric.needs:
        if layer.is_constant:
            raise Undefined("all samples have the same representation")
        low, high = REPRESENTABLE
        if not low < layer.largest < high:
            raise Undefined(f"distances of activations up to {layer.largest:.0e} exceed float32")


def check_names(names: Iterable[str]) -> None:
    """Make sure that every name is a metric's.

    Raises:
        UserError: One is not; the message lists the near ones.
    """
    for name in names:
        if name not in METRICS:
            near = difflib.get_close_matches(str(name), METRICS) or sorted(METRICS)
            raise UserError(f"metrics.names: there is no metric {name}; near: {', '.join(near)}")
