"""The LightningModule that trains any network to classify."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from bnstudy.errors import UserError
from bnstudy.terms import SPLITS

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
}


def make_optimizer(
    network: nn.Module, name: str, schedule: str, **options: Any
) -> torch.optim.Optimizer:
    """The optimizer of all parameters of a network.

    Raises:
        UserError: There is none of that name, or it does not take one of the options.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"optim.name={name} is not known; it takes {', '.join(OPTIMIZERS)}")
    try:
        return OPTIMIZERS[name](network.parameters(), **options)
    except TypeError as error:
        raise UserError(f"optim: {error}; remove that key") from error


class Classifier(L.LightningModule):
    """Cross-entropy training, and loss and accuracy of both splits at each epoch's end.

    `trainer.callback_metrics` has `train/loss`, `train/accuracy`, `test/loss` and `test/accuracy`,
    measured in eval mode with the same weights; the loggers get `train/loss_step` as it trains.

    Args:
        network: Maps images N x C x H x W to logits N x `num_classes`.
        num_classes: How many classes there are.
        optim: The optimizer's `name`, its `lr` and other options, and the `schedule`.
    """

    diverged: Tensor

    def __init__(self, network: nn.Module, num_classes: int, optim: dict[str, Any]) -> None:
        super().__init__()
        # Convolutions are faster with channels last: on two cores a training step takes 0.8 of the
        # time, a forward pass 0.5.
        self.network = network.to(memory_format=torch.channels_last)
        self.optimizer, self.schedule = make_optimizer(self.network, **optim), optim["schedule"]
        # Whether a loss was ever not finite, in training or evaluation; kept in checkpoints.
        self.register_buffer("diverged", torch.tensor(False))
        self.train_loss, self.test_loss = (MeanMetric(nan_strategy="disable") for _ in SPLITS)
        self.train_accuracy, self.test_accuracy = (
            MulticlassAccuracy(num_classes, average="micro") for _ in SPLITS
        )

    def forward(self, images: Tensor) -> Tensor:
        """The logits, N x `num_classes`."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean cross-entropy of a batch."""
        images, labels = batch
        loss = functional.cross_entropy(self(images), labels)
        self.diverged |= ~loss.detach().isfinite()
        self.log("train/loss_step", loss, on_step=True, on_epoch=False)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Start both splits' loss and accuracy anew."""
        for loss, accuracy in self._performance():
            loss.reset()
            accuracy.reset()

    def validation_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Add a batch of the split `SPLITS[dataloader_idx]` to its loss and accuracy."""
        images, labels = batch
        if len(labels) == 0:  # a process's share of a small last batch
            return
        logits = self(images)
        loss, accuracy = self._performance()[dataloader_idx]
        loss.update(functional.cross_entropy(logits, labels), weight=len(labels))
        accuracy.update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        """Give out both splits' loss and accuracy, over all processes."""
        for split, (loss, accuracy) in zip(SPLITS, self._performance(), strict=True):
            mean_loss = loss.compute()
            self.diverged |= ~mean_loss.isfinite()
            self.log(f"{split}/loss", mean_loss, logger=False, sync_dist=True)
            self.log(f"{split}/accuracy", accuracy.compute(), logger=False, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """The optimizer and, unless it is constant, the schedule, stepped after each batch."""
        if self.schedule == "constant":
            return self.optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        return {
            "optimizer": self.optimizer,
            "lr_scheduler": {
                "scheduler": CosineAnnealingLR(self.optimizer, T_max=steps),
                "interval": "step",
            },
        }

    def _performance(self) -> list[tuple[MeanMetric, MulticlassAccuracy]]:
        return [
            (self.train_loss, self.train_accuracy),
            (self.test_loss, self.test_accuracy),
        ]
