"""Activations of a network's layers, and the view of a layer that every metric reads."""

from bnstudy.representations.capture import Tap, capture
from bnstudy.representations.layer import Layer

__all__ = ["Layer", "Tap", "capture"]
