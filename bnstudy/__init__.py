"""What does normalization do to a network's representations? See README.md.

For use as a library: `capture` reads the layers of any network, `METRICS` and `evaluate` measure
one, `SIMILARITIES` compare two.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnstudy.metrics import METRICS, SIMILARITIES, chosen, evaluate
    from bnstudy.representations import Layer, Tap, capture

__version__ = "0.1.0"

__all__ = ["METRICS", "SIMILARITIES", "Layer", "Tap", "capture", "chosen", "evaluate"]


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: torch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "representations" if name in {"Layer", "Tap", "capture"} else "metrics"
    return getattr(import_module(f"{__name__}.{home}"), name)
