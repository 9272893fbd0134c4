"""Reference: training as the widely used Lightning-Hydra templates set it up.

PIL images out of a Dataset, transformed one by one in a `DataLoader`'s processes; torchmetrics of
loss and accuracy in the training step; tensors with channels first. The template's progress bar,
checkpoints and evaluation, which would take more time, are left out.
"""

from copy import deepcopy
from typing import Any

import lightning as L
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import Compose, Normalize, ToTensor

WORKERS = 2


class PILImages(Dataset[tuple[Tensor, int]]):
    """Data set like torchvision's MNIST: makes a PIL image of the pixels and transforms it.

    Args:
        images: uint8, N x 1 x H x W.
        labels: int64, N.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images[:, 0]
        self.labels = labels
        self.transform = Compose([ToTensor(), Normalize((0.13,), (0.31,))])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.images[index].numpy())
        return self.transform(image), int(self.labels[index])


class TemplateModule(L.LightningModule):
    """Cross-entropy training that updates and logs loss and accuracy in each step."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, classes: int) -> None:
        super().__init__()
        self.network = network
        self.optimizer = optimizer
        self.train_loss = MeanMetric()
        self.train_accuracy = MulticlassAccuracy(classes, average="micro")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute the loss; log loss and accuracy."""
        images, labels = batch
        logits = self.network(images)
        loss = functional.cross_entropy(logits, labels)
        self.train_loss(loss)
        self.train_accuracy(logits.argmax(1), labels)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("train/acc", self.train_accuracy, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Return the given optimizer."""
        return self.optimizer


class Template:
    """Training that is continued one epoch at a time.

    Args:
        network: Network, which is copied with its weights.
        optimizer: Optimizer of the network; the copy gets one like it.
        data: uint8 images N x 1 x H x W and int64 labels N.
        classes: Number of classes.
        batch_size: Size of a training batch.
        precision: Argument of Lightning's Trainer.
        callback: Callback of the trainer.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        data: tuple[Tensor, Tensor],
        classes: int,
        batch_size: int,
        precision: Any,
        callback: L.Callback,
    ) -> None:
        network = deepcopy(network).to(memory_format=torch.contiguous_format)
        self.module = TemplateModule(network, like(optimizer, network), classes)
        self.loader = DataLoader(
            PILImages(*data),
            batch_size,
            shuffle=True,
            num_workers=WORKERS,
            persistent_workers=True,
        )
        self.trainer = L.Trainer(
            max_epochs=0,
            accelerator="cpu",
            precision=precision,
            callbacks=[callback],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def train_an_epoch(self) -> None:
        """Train for one more epoch."""
        assert self.trainer.max_epochs is not None
        self.trainer.fit_loop.max_epochs = self.trainer.max_epochs + 1
        self.trainer.fit(self.module, self.loader)


def like(optimizer: torch.optim.Optimizer, network: nn.Module) -> torch.optim.Optimizer:
    """Make an optimizer of the same kind and options for another network."""
    made: torch.optim.Optimizer = type(optimizer)(network.parameters(), **optimizer.defaults)
    return made
