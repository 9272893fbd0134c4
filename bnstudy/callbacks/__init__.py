"""What happens at an epoch's end: measure, record, show."""

from bnstudy.callbacks.progress import Progress
from bnstudy.callbacks.recorder import Recorder
from bnstudy.callbacks.representation_metrics import RepresentationMetrics

__all__ = ["Progress", "Recorder", "RepresentationMetrics"]
