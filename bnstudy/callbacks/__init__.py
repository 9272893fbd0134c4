"""Callbacks that measure, record and display a run while the network is trained."""

from bnstudy.callbacks.activation_drift import ActivationDrift
from bnstudy.callbacks.batch_statistics import BatchStatistics
from bnstudy.callbacks.gradient_norms import GradientNorms
from bnstudy.callbacks.loss_landscape import LossLandscape
from bnstudy.callbacks.progress_bar import Progress
from bnstudy.callbacks.recorder import Recorder
from bnstudy.callbacks.representation_metrics import RepresentationMetrics

__all__ = [
    "ActivationDrift",
    "BatchStatistics",
    "GradientNorms",
    "LossLandscape",
    "Progress",
    "Recorder",
    "RepresentationMetrics",
]
