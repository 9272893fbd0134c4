"""Metrics of a layer's representations, similarities of two layers, and their registry.

Each module of this folder is imported here, which registers its metrics and similarities.
"""

from importlib import import_module
from pkgutil import iter_modules

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

# Families at the beginning of METRICS and of all tables; other modules follow by name.
FIRST_FAMILIES = (
    "sparsity",
    "class_clustering",
    "implicit_clustering",
    "quality",
    "geometry",
    "neural_collapse",
    "separability",
)


def register_all() -> None:
    """Import all modules of this folder, which registers their metrics and similarities."""
    families = sorted(module.name for module in iter_modules(__path__) if module.name != "__main__")
    for name in (*FIRST_FAMILIES, *families):
        import_module(f"{__name__}.{name}")


register_all()
