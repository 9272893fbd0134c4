"""Tools to train networks with different normalizations, measure their layers and compare them.

Use as a library: `capture` reads the layers of any network; `METRICS` and `evaluate` measure one
layer, `SIMILARITIES` compare two; `recalibrate` computes the running statistics of BatchNorm layers
anew; `StudyRecorder` (Lightning) and `Run` (any loop) record your own training as runs of a study;
`load` reads the runs of a study. docs/ describes the commands.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnstudy.metrics import METRICS, SIMILARITIES, chosen, evaluate
    from bnstudy.models import recalibrate
    from bnstudy.representations import Layer, Tap, capture
    from bnstudy.study.study import Study, load
    from bnstudy.training.own_run import Run
    from bnstudy.training.study_recorder import StudyRecorder

__version__ = "0.2.0"

_EXPORTS = {
    "representations": ["Layer", "Tap", "capture"],
    "models": ["recalibrate"],
    "metrics": ["METRICS", "SIMILARITIES", "chosen", "evaluate"],
    "study.study": ["Study", "load"],
    "training.own_run": ["Run"],
    "training.study_recorder": ["StudyRecorder"],
}

__all__ = [
    "METRICS",
    "SIMILARITIES",
    "Layer",
    "Run",
    "Study",
    "StudyRecorder",
    "Tap",
    "capture",
    "chosen",
    "evaluate",
    "load",
    "recalibrate",
]


def __getattr__(name: str) -> Any:
    """Import an exported name on first access, because importing torch takes seconds."""
    for module, names in _EXPORTS.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
