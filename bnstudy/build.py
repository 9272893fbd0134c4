"""The data and the network that a configuration describes."""

from functools import partial
from typing import Any

from hydra.utils import instantiate

from bnstudy.data import ImageDataModule
from bnstudy.errors import UserError
from bnstudy.models import Classifier, initialize
from bnstudy.models.normalization import normalization
from bnstudy.runs.record import Record


def build(config: dict[str, Any], record: Record) -> tuple[ImageDataModule, Classifier]:
    """Load the data; make the network, with its initial weights, in its LightningModule.

    Args:
        config: The resolved configuration.
        record: Of the run; told what the data are.

    Raises:
        UserError: The data cannot be had, are not those the record knows, or do not fit the network.
    """
    data: ImageDataModule = instantiate(config["data"], seed=config["seed"], probe=config["probe"])
    data.setup()
    facts = data.facts()
    if record.description.setdefault("data", facts) != facts:
        raise UserError(
            f"data: not the images that {record.folder} was trained on (their SHA-256 differs)\n"
            "Put those back, or choose another study=NAME"
        )
    network = instantiate(
        config["model"],
        input_shape=data.input_shape,
        num_classes=data.num_classes,
        norm=partial(normalization, **config["norm"]),
    )
    initialize(network, config["seed"])
    return data, Classifier(network, data.num_classes, config["optim"])
