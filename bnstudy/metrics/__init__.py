"""Metrics of a layer's representations, similarities of two layers, and their registry."""

from bnstudy.metrics import (  # noqa: F401, each registers its metrics
    activation_statistics,
    class_clustering,
    geometry,
    implicit_clustering,
    neural_collapse,
    quality,
    separability,
    sparsity,
)
from bnstudy.metrics.registry import METRICS, Metric, Undefined, Value, chosen, evaluate
from bnstudy.metrics.similarity import SIMILARITIES, Similarity

__all__ = [
    "METRICS",
    "SIMILARITIES",
    "Metric",
    "Similarity",
    "Undefined",
    "Value",
    "chosen",
    "evaluate",
]
