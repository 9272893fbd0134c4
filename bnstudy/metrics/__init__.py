"""Pure functions from a layer's representations to a number, and their registry."""

from bnstudy.metrics import class_clustering, implicit_clustering, sparsity  # noqa: F401
from bnstudy.metrics.registry import METRICS, Metric, Undefined, check_names, evaluate

__all__ = ["METRICS", "Metric", "Undefined", "check_names", "evaluate"]
