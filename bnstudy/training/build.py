"""The data, the network and the trainer that a configuration describes."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from bnstudy.data import ImageDataModule
from bnstudy.errors import UserError
from bnstudy.models import (
    Classifier,
    FrozenBatchNorm,
    Normalization,
    calibrate,
    calibrated,
    initialize,
    recalibrate,
    seeded,
)
from bnstudy.models.regularizers import regularizer
from bnstudy.training.checkpoints import load_checkpoint


def build(config: dict[str, Any]) -> tuple[ImageDataModule, Classifier]:
    """Load the data, and build the network on them: see `load_data` and `build_classifier`.

    Args:
        config: The resolved configuration.

    Raises:
        UserError: The data cannot be had, or do not fit the network.
    """
    data = load_data(config)
    return data, build_classifier(config, data)


def load_data(config: dict[str, Any]) -> ImageDataModule:
    """Load the data.

    Args:
        config: The resolved configuration.

    Raises:
        UserError: The data cannot be had.
    """
    data: ImageDataModule = _make(config["data"], seed=config["seed"], probe=config["probe"])
    data.setup()
    return data


def build_classifier(config: dict[str, Any], data: ImageDataModule) -> Classifier:
    """Build the network, with its initial weights, in its LightningModule.

    Args:
        config: The resolved configuration; a target of the regularizer is in numbers, as
            `bnstudy.training.twin.with_target_sparsity` makes it.
        data: The data, loaded.

    Raises:
        UserError: The data do not fit the network.
    """
    model = dict(config["model"])
    initialization = model.pop("initialization", "he")  # as every network before 0.2 had it
    with seeded(config["seed"]):
        network: nn.Module = _make(
            model,
            input_shape=data.input_shape,
            num_classes=data.num_classes,
            norm=Normalization(
                **config["norm"], synchronized=config["trainer"].get("sync_batchnorm", False)
            ),
        )
    initialize(network, config["seed"], initialization)
    return Classifier(
        network,
        config["optim"],
        config["seed"],
        regularizer(network, **config["regularizer"]),
        config["trainer"]["compile"],
        data.evaluated_splits,
    )


def evaluate_before_training(
    trainer: L.Trainer, classifier: Classifier, data: ImageDataModule
) -> None:
    """Evaluate a network with its initial weights, and running statistics of the training data.

    Those of `batchnorm_frozen` stay; all others are for this evaluation only, and the training that
    follows does not change.
    """
    classifier.to(trainer.strategy.root_device)
    network = classifier.network
    if any(isinstance(module, FrozenBatchNorm) for module in network.modules()):
        recalibrate(network, data.calibration())
    with calibrated(network, data.calibration()):
        trainer.validate(classifier, datamodule=data, verbose=False)


def load_weights(classifier: Classifier, checkpoint: Path, data: ImageDataModule) -> int:
    """Load the weights of a checkpoint to measure them: in their precision, on a GPU if there is.

    Running statistics that no batch had updated when it was saved, as before training, are those of
    the training data.

    Returns:
        Batches of training before it was saved.

    Raises:
        UserError: It cannot be read.
    """
    content = load_checkpoint(checkpoint)
    weights = content["state_dict"]
    # Measured in the precision that the run was trained in, as it would have been then.
    classifier.to(next(w.dtype for w in weights.values() if w.is_floating_point()))
    classifier.load_state_dict(weights)
    classifier.to("cuda" if torch.cuda.is_available() else "cpu")
    calibrate(classifier.network, data.calibration())
    return int(content["global_step"])


def build_trainer(config: dict[str, Any], callbacks: list[L.Callback]) -> L.Trainer:
    """Lightning's trainer, without the parts whose work the callbacks do.

    Raises:
        UserError: This machine does not have what the configuration asks for.
    """
    try:
        trainer: L.Trainer = instantiate(
            {key: value for key, value in config["trainer"].items() if key != "compile"},
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # batches are shared out as they are made
            plugins=_cluster(),
        )
    except InstantiationException as error:
        if isinstance(error.__cause__, MisconfigurationException | TypeError | ValueError):
            asked = ", ".join(
                f"trainer.{key}={config['trainer'][key]}"
                for key in ("accelerator", "devices", "precision")
            )
            told = " ".join(str(error.__cause__).split())
            raise UserError(f"{told}\nAsked for: {asked}; see also trainer=default") from error
        raise
    return trainer


def _cluster() -> list[SLURMEnvironment]:
    """Keep Lightning from requeueing a SLURM job itself.

    The launcher does, and Lightning would leave a checkpoint behind that it later prefers.
    """
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


def _make(node: dict[str, Any], **arguments: Any) -> Any:
    """Hydra's instantiate, but a mistake of the user's is told as that."""
    try:
        return instantiate(node, **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise
