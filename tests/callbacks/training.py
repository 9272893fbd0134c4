"""Training of small networks with callbacks, and copies of them from any time of the training."""

import warnings
from copy import deepcopy
from typing import Any

import lightning as L
import torch
from torch import nn

from bnstudy.callbacks.optimization import OptimizationMetrics
from bnstudy.data.images import Images
from bnstudy.data.module import ImageDataModule
from bnstudy.models import Classifier, calibrated
from bnstudy.representations.network import Batch
from bnstudy.runs.long_table import Row
from bnstudy.terms import SPLITS

# Options of a trainer that writes and prints nothing.
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}


class Noise(ImageDataModule):
    """A data set of 60 training and 30 test images of 8x8 pixels in 3 classes, sorted by class."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            **{"batch_size": 20, "seed": 0, "probe": {"train": None, "test": None}} | options
        )

    def load(self) -> Images:
        generator = torch.Generator().manual_seed(0)
        labels = {
            split: torch.arange(3).repeat_interleave(count)
            for split, count in zip(SPLITS, (20, 10), strict=True)
        }
        images = {
            split: (
                40 * labels[split][:, None, None, None]
                + torch.randint(0, 130, (len(labels[split]), 1, 8, 8), generator=generator)
            ).to(torch.uint8)
            for split in SPLITS
        }
        return Images(images, labels, ("a", "b", "c"))


def noise(**options: Any) -> Noise:
    """Load the data set."""
    data = Noise(**options)
    data.setup()
    return data


class Watch(L.Callback):
    """Copies of the network and the batch before each step, and of the network after each epoch.

    In the copy from before training, the running statistics are those of the training data.
    """

    def __init__(self, watched: OptimizationMetrics | None = None) -> None:
        self.watched = watched
        self.steps: list[tuple[nn.Module, Batch]] = []
        self.epochs: list[nn.Module] = []
        self.rows: list[Row] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with calibrated(pl_module.network, trainer.datamodule.calibration()):
            self._note(pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self.steps.append((deepcopy(pl_module.network), batch))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note(pl_module)

    def _note(self, module: L.LightningModule) -> None:
        self.epochs.append(deepcopy(module.network))
        self.rows += self.watched.rows if self.watched else []

    def values(self, metric: str) -> dict[tuple[int, str, str], float]:
        """Return the values by epoch, split and layer with its site."""
        return {
            (row.epoch, row.split, f"{row.layer}.{row.site}" if row.site else row.layer): row.value
            for row in self.rows
            if row.metric == metric
        }


def small_network(norm: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        norm or nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Conv2d(4, 5, 3, stride=2),
        nn.BatchNorm2d(5) if norm is None else nn.Identity(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 3),
    )


def train(
    network: nn.Module,
    *callbacks: L.Callback,
    epochs: int = 2,
    lr: float = 0.1,
    weight_decay: float = 0.0,
    data: ImageDataModule | None = None,
    name: str = "sgd",
    **options: Any,
) -> Classifier:
    optim: dict[str, Any] = {"name": name, "lr": lr, "weight_decay": weight_decay}
    optim |= {"momentum": 0.9} if name == "sgd" else {}
    optim |= {"schedule": "constant", "trainable": "all"}
    data = data or Noise()
    data.setup()
    module = Classifier(network, optim, splits=data.evaluated_splits)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")
        warnings.filterwarnings("ignore", ".*does not have many workers")
        L.Trainer(
            **QUIET | {"max_epochs": epochs, "num_sanity_val_steps": 0} | options,
            callbacks=list(callbacks),
        ).fit(module, datamodule=data)
    return module
