"""Reader of a network's activations, and the `Layer` objects that all metrics use."""

from bnstudy.representations.capture import capture
from bnstudy.representations.layer import Layer
from bnstudy.representations.taps import Tap

__all__ = ["Layer", "Tap", "capture"]
