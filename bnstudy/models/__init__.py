"""Networks, normalization layers, and the LightningModule that trains a network."""

from bnstudy.models.batchnorm_parts import FrozenBatchNorm
from bnstudy.models.classifier import Classifier
from bnstudy.models.cnn import CNN
from bnstudy.models.convnext import convnext
from bnstudy.models.initialization import initialize, seeded
from bnstudy.models.normalization import Normalization
from bnstudy.models.own_network import adapt
from bnstudy.models.recalibration import calibrate, calibrated, recalibrate, recalibrated
from bnstudy.models.resnet import ResNet
from bnstudy.models.torchvision_models import torchvision_network
from bnstudy.models.vgg import VGG

__all__ = [
    "CNN",
    "VGG",
    "Classifier",
    "FrozenBatchNorm",
    "Normalization",
    "ResNet",
    "adapt",
    "calibrate",
    "calibrated",
    "convnext",
    "initialize",
    "recalibrate",
    "recalibrated",
    "seeded",
    "torchvision_network",
]
