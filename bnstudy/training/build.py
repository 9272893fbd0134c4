"""Construction of the data, the network and the trainer from a configuration."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from bnstudy.config.schema import Model
from bnstudy.config.targets import TARGET, instantiate_group, select_accepted_arguments
from bnstudy.data import DataModule, make_data
from bnstudy.errors import UserError
from bnstudy.models import (
    Classifier,
    FrozenBatchNorm,
    Normalization,
    adapt,
    calibrate,
    calibrated,
    initialize,
    recalibrate,
    seeded,
)
from bnstudy.models.regularizers import make_regularizer
from bnstudy.training.checkpoints import load_checkpoint


def load_data(config: dict[str, Any]) -> DataModule:
    """Load the data.

    Args:
        config: Resolved configuration.

    Raises:
        UserError: The data cannot be loaded.
    """
    data = make_data(config["data"], config["seed"], config["probe"])
    data.setup()
    return data


def build_classifier(config: dict[str, Any], data: DataModule) -> Classifier:
    """Build the network with its initial weights, and wrap it in a LightningModule.

    Args:
        config: Resolved configuration. If `regularizer.target` was the name of a norm, the caller
            has replaced it by the sparsity measured with that norm: see
            `bnstudy.training.twin.with_target_sparsity`.
        data: Data, already loaded.

    Raises:
        UserError: The data do not fit the network.
    """
    network = build_network(config, data)
    return Classifier(
        network,
        config["optim"],
        config["seed"],
        make_regularizer(network, **config["regularizer"]),
        config["trainer"].get("compile", False),
        data.evaluated_splits,
    )


def build_network(config: dict[str, Any], data: DataModule) -> nn.Module:
    """Build the network with its initial weights.

    Args:
        config: Resolved configuration.
        data: Data, already loaded.

    Raises:
        UserError: The data do not fit the network, or a network of the user's cannot be used.
    """
    model = dict(config["model"])
    initialization = model.pop("initialization", "he")  # configurations before 0.2 have no such key
    norm = Normalization(
        **config["norm"], synchronized=config["trainer"].get("sync_batchnorm", False)
    )
    available = {"input_shape": data.input_shape, "num_classes": data.num_classes, "norm": norm}
    arguments = select_accepted_arguments("model", model[TARGET], available)
    with seeded(config["seed"]):
        network: nn.Module = instantiate_group("model", model, **arguments)
        if model[TARGET] not in Model.keys_of:  # the user's own network
            name = f"model.{TARGET}={model[TARGET]}"
            replacement = None if "norm" in arguments else norm
            adapt(network, name, replacement, data.input_shape, data.num_classes)
    initialize(network, config["seed"], initialization)
    return network


def evaluate_before_training(trainer: L.Trainer, classifier: Classifier, data: DataModule) -> None:
    """Evaluate a network with its initial weights and running statistics of the training data.

    A network with `batchnorm_frozen` keeps these running statistics. Any other network gets its
    previous ones back afterwards.

    Args:
        trainer: Trainer of the run.
        classifier: Network with its initial weights.
        data: Data, already loaded.
    """
    classifier.to(trainer.strategy.root_device)
    network = classifier.network
    if any(isinstance(module, FrozenBatchNorm) for module in network.modules()):
        recalibrate(network, data.calibration())
    with calibrated(network, data.calibration()):
        trainer.validate(classifier, datamodule=data, verbose=False)


def load_weights(classifier: Classifier, checkpoint: Path, data: DataModule) -> int:
    """Load the weights of a checkpoint for measuring, on the GPU if there is one.

    Running statistics that no batch had updated yet (epoch 0) are computed from the training data.

    Args:
        classifier: Network of the run; its weights are replaced.
        checkpoint: File of the checkpoint.
        data: Data, already loaded.

    Returns:
        Number of optimizer steps before the checkpoint was saved.

    Raises:
        UserError: The checkpoint cannot be read.
    """
    content = load_checkpoint(checkpoint)
    weights = content["state_dict"]
    try:
        # The precision of training, so that values equal those measured during training.
        classifier.to(next(w.dtype for w in weights.values() if w.is_floating_point()))
        classifier.load_state_dict(weights)
    except (AttributeError, RuntimeError, StopIteration) as error:
        raise UserError(
            f"{checkpoint}: not the weights of this run's network\n"
            "Put back the checkpoint that was trained with this run.json, or train the run again"
        ) from error
    classifier.to("cuda" if torch.cuda.is_available() else "cpu")
    calibrate(classifier.network, data.calibration())
    return int(content["global_step"])


def build_trainer(config: dict[str, Any], callbacks: list[L.Callback]) -> L.Trainer:
    """Build Lightning's trainer, without the parts that bnstudy's callbacks replace.

    Args:
        config: Resolved configuration.
        callbacks: Callbacks, in the order of their calls.

    Raises:
        UserError: This machine does not support an option of the configuration.
    """
    arguments = {key: value for key, value in config["trainer"].items() if key != "compile"}
    if arguments.get("deterministic"):
        arguments["benchmark"] = False  # cuDNN would choose algorithms by their measured speed
    try:
        trainer: L.Trainer = instantiate(
            arguments,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the data module divides batches among processes
            plugins=_slurm_plugins(),
        )
    except InstantiationException as error:
        if isinstance(error.__cause__, MisconfigurationException | TypeError | ValueError):
            requested = ", ".join(
                f"trainer.{key}={config['trainer'][key]}"
                for key in ("accelerator", "devices", "precision")
            )
            reason = " ".join(str(error.__cause__).split())
            message = f"{reason}\nRequested: {requested}; change these, or use trainer=default"
            raise UserError(message) from error
        raise
    return trainer


@contextmanager
def convert_trainer_errors() -> Iterator[None]:
    """Convert errors about the trainer's options, raised in the context, to UserErrors.

    Raises:
        UserError: The options do not fit the data or the device.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    except ValueError as error:
        if "SyncBatchNorm" not in str(error):
            raise
        raise UserError(
            f"trainer.sync_batchnorm=true: {error}\n"
            "Set it to false, or choose trainer.accelerator=gpu"
        ) from error


def _slurm_plugins() -> list[SLURMEnvironment]:
    """Return the plugin that prevents Lightning from requeueing a SLURM job, if this is one.

    The launcher requeues the job. Lightning would also save a checkpoint of its own, and later load
    that one instead of the run's last checkpoint.
    """
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
