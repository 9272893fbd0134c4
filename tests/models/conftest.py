"""Networks and norms of the shipped configurations."""

from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from bnstudy.config import CONFIG_FOLDER
from bnstudy.models import CNN, VGG, Normalization, ResNet, initialize, seeded

NORMS: dict[str, Any] = {
    path.stem: OmegaConf.to_container(OmegaConf.load(path))
    for path in sorted(Path(CONFIG_FOLDER, "norm").glob("*.yaml"))
}
GREY = {"input_shape": (1, 28, 28), "num_classes": 10}
COLOUR = {"input_shape": (3, 32, 32), "num_classes": 10}
MAKE: dict[str, Any] = {
    "cnn": CNN,
    "vgg": VGG,
    "resnet": ResNet,
    "plain": partial(ResNet, shortcuts=False),
}
SMALLEST: dict[str, dict[str, Any]] = {
    "cnn": {"depth": 4, "width": 8},
    "vgg": {"depth": 11, "width": 1 / 16},
    "resnet": {"depth": 8, "width": 1 / 2},
    "plain": {"depth": 8, "width": 1 / 2},
}


def normalization(norm: str, **options: Any) -> Normalization:
    return Normalization(**NORMS[norm] | options)


def network(
    model: str,
    norm: str | Normalization = "none",
    seed: int = 0,
    initialization: str = "he",
    **options: Any,
) -> nn.Module:
    """Create a small network of a kind, for 28x28 grey images."""
    norm = normalization(norm) if isinstance(norm, str) else norm
    arguments = SMALLEST[model] | GREY | {"norm": norm} | options
    with seeded(seed):
        made: nn.Module = MAKE[model](**arguments)
    initialize(made, seed, initialization)
    return made


def weighted(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the convolutions and linear layers, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
