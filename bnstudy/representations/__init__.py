"""Activations of a network's layers, and the view of a layer that every metric reads."""

from bnstudy.representations.capture import capture
from bnstudy.representations.layer import Layer
from bnstudy.representations.taps import Tap

__all__ = ["Layer", "Tap", "capture"]
