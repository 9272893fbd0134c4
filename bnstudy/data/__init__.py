"""LightningDataModules of bnstudy's data sets and of the user's own data."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnstudy.data.image_folder import ImageFolder
    from bnstudy.data.images import Images
    from bnstudy.data.mnist5k import MNIST5k
    from bnstudy.data.module import DataModule, ImageDataModule
    from bnstudy.data.own_data import make_data
    from bnstudy.data.planted import PlantedGroups
    from bnstudy.data.torchvision_images import TorchvisionImages

_MODULES = {  # by exported name
    "DataModule": "module",
    "ImageDataModule": "module",
    "ImageFolder": "image_folder",
    "Images": "images",
    "MNIST5k": "mnist5k",
    "PlantedGroups": "planted",
    "TorchvisionImages": "torchvision_images",
    "make_data": "own_data",
}

__all__ = [
    "DataModule",
    "ImageDataModule",
    "ImageFolder",
    "Images",
    "MNIST5k",
    "PlantedGroups",
    "TorchvisionImages",
    "make_data",
]


def __getattr__(name: str) -> Any:
    """Import a name on first access: `contents` does not need torch, whose import takes seconds."""
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
