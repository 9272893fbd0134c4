"""The networks, their normalization layers, and the LightningModule that trains them."""

from bnstudy.models.classifier import Classifier
from bnstudy.models.cnn import CNN
from bnstudy.models.initialization import initialize

__all__ = ["CNN", "Classifier", "initialize"]
