"""LightningDataModules, and where their pixels come from."""

from bnstudy.data.image_folder import ImageFolder
from bnstudy.data.images import Images
from bnstudy.data.mnist5k import MNIST5k
from bnstudy.data.module import ImageDataModule
from bnstudy.data.planted import PlantedGroups
from bnstudy.data.torchvision import TorchvisionImages

__all__ = [
    "ImageDataModule",
    "ImageFolder",
    "Images",
    "MNIST5k",
    "PlantedGroups",
    "TorchvisionImages",
]
