"""What does normalization do to a network's representations? See README.md.

For use as a library: `capture` reads the layers of any network, `METRICS` and `evaluate` measure
one, `SIMILARITIES` compare two; `recalibrate` gives BatchNorm layers the running statistics that an
untrained network lacks; `load` reads the runs of a study.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnstudy.metrics import METRICS, SIMILARITIES, chosen, evaluate
    from bnstudy.models import recalibrate
    from bnstudy.representations import Layer, Tap, capture
    from bnstudy.study.study import Study, load

__version__ = "0.2.0"

_HOMES = {
    "representations": ["Layer", "Tap", "capture"],
    "models": ["recalibrate"],
    "metrics": ["METRICS", "SIMILARITIES", "chosen", "evaluate"],
    "study.study": ["Study", "load"],
}

__all__ = [
    "METRICS",
    "SIMILARITIES",
    "Layer",
    "Study",
    "Tap",
    "capture",
    "chosen",
    "evaluate",
    "load",
    "recalibrate",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: torch takes seconds."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
