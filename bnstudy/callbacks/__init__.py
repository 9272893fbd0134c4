"""Callbacks that measure, record and display a run while the network is trained."""

from bnstudy.callbacks.activation_drift import ActivationDrift
from bnstudy.callbacks.batch_statistics import BatchStatistics
from bnstudy.callbacks.gradient_norms import GradientNorms
from bnstudy.callbacks.hessian import Hessian
from bnstudy.callbacks.loss_landscape import LossLandscape
from bnstudy.callbacks.progress_bar import Progress
from bnstudy.callbacks.recorder import Recorder
from bnstudy.callbacks.representation_metrics import RepresentationMetrics
from bnstudy.callbacks.weight_norms import WeightNorms

__all__ = [
    "ActivationDrift",
    "BatchStatistics",
    "GradientNorms",
    "Hessian",
    "LossLandscape",
    "Progress",
    "Recorder",
    "RepresentationMetrics",
    "WeightNorms",
]
