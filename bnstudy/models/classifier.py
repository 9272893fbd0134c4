"""The LightningModule that trains any network to classify."""

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR

from bnstudy.errors import UserError
from bnstudy.models.regularizers import Regularizer
from bnstudy.randomness import generator_for
from bnstudy.terms import SPLITS, EvaluatedSplit

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
}


def make_optimizer(
    network: nn.Module, name: str, schedule: str, trainable: str, **options: Any
) -> torch.optim.Optimizer:
    """The optimizer of a network; parameters that are not trained need no gradients afterwards.

    Args:
        network: All of its parameters are trained, or those of its normalization layers.
        name: The optimizer's.
        schedule: Not used here.
        trainable: `all`; or `norm` (Frankle, Schwab and Morcos 2021, arXiv 2003.00152).
        options: Of the optimizer.

    Raises:
        UserError: There is none of that name, it does not take one of the options, or there is
            nothing to train.
    """
    if trainable == "norm":
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.requires_grad_(False)
    parameters = [one for one in network.parameters() if one.requires_grad]
    if not parameters:
        raise UserError(
            "optim.trainable=norm: this norm has no scale and shift to train; take another norm, "
            "or optim.trainable=all"
        )
    if name not in OPTIMIZERS:
        raise UserError(f"optim.name={name} is not known; it takes {', '.join(OPTIMIZERS)}")
    try:
        return OPTIMIZERS[name](parameters, **options)
    except TypeError as error:
        raise UserError(f"optim: {error}; remove that key") from error


def is_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Which predictions are right: bool, N.

    A prediction from logits that are not all finite is wrong: the argmax of NaN is class 0.

    Args:
        logits: N x classes.
        labels: int64, N.

    Example:
        >>> is_correct(torch.tensor([[2.0, 1.0], [torch.nan, torch.nan]]), torch.tensor([0, 0]))
        tensor([ True, False])
    """
    return (logits.argmax(1) == labels) & logits.isfinite().all(1)


class Classifier(L.LightningModule):
    """Cross-entropy training, and loss and accuracy of each split at each epoch's end.

    These are measured in eval mode with the same weights. `performance` has them exactly;
    `trainer.callback_metrics` has `<split>/loss` and `<split>/accuracy` as Lightning keeps them, in
    float32; the loggers get `train/loss_step` as it trains.

    Args:
        network: Maps images N x C x H x W to logits N x classes.
        optim: The optimizer's `name`, its `lr` and other options, the `schedule`, and what is
            `trainable`.
        seed: Of what layers draw as they are trained, such as dropout.
        regularizer: Adds to the loss.
        compiled: Whether the training step's forward pass is compiled by `torch.compile`.
        splits: Which are evaluated, in the order of the validation dataloaders.

    Attributes:
        performance: By split and metric, the latest loss (the mean of the samples' losses, in
            float64) and accuracy (the share of right predictions, the quotient of two counts).
    """

    diverged: Tensor

    def __init__(
        self,
        network: nn.Module,
        optim: dict[str, Any],
        seed: int = 0,
        regularizer: Regularizer | None = None,
        compiled: bool = False,
        splits: Sequence[EvaluatedSplit] = SPLITS,
    ) -> None:
        super().__init__()
        # Convolutions are faster with channels last: on two cores a training step takes 0.8 of the
        # time, a forward pass 0.5.
        self.network = network.to(memory_format=torch.channels_last)
        self.optimizer, self.schedule = make_optimizer(self.network, **optim), optim["schedule"]
        self.seed = seed
        self.regularizer = regularizer
        # A function, which is no part of this module: names and checkpoints stay as they are.
        self.logits = torch.compile(network.forward) if compiled else network.forward
        # Whether a loss was ever not finite, in training or evaluation; kept in checkpoints.
        self.register_buffer("diverged", torch.tensor(False))
        self.splits = splits
        self.performance: dict[tuple[EvaluatedSplit, str], float] = {}
        self._sums = torch.empty(0)  # by split: the losses' sum, right predictions, samples

    def forward(self, images: Tensor) -> Tensor:
        """The logits, N x `num_classes`."""
        logits: Tensor = self.network(images)
        return logits

    def on_train_epoch_start(self) -> None:
        """What is drawn depends on seed and epoch alone: runs are paired, and can be resumed."""
        torch.manual_seed(generator_for(self.seed, "layers", self.current_epoch).initial_seed())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean cross-entropy of a batch, and what the regularizer adds."""
        images, labels = batch
        if self.regularizer is None:
            loss = functional.cross_entropy(self.logits(images), labels)
        else:
            with self.regularizer.watching():
                loss = functional.cross_entropy(self.logits(images), labels)
                loss = loss + self.regularizer(labels)
        self.diverged |= ~loss.detach().isfinite()
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step + 1) % every == 0:  # Lightning would take 1 ms to see that
            self.log("train/loss_step", loss, on_step=True, on_epoch=False)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Start each split's loss and accuracy anew."""
        self._sums = torch.zeros(len(self.splits), 3, dtype=torch.float64)

    def validation_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Add a batch of the split `splits[dataloader_idx]` to its loss and accuracy."""
        images, labels = batch
        if len(labels) == 0:  # a process's share of a small last batch
            return
        logits, labels = self(images).cpu().double(), labels.cpu()
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        right = is_correct(logits, labels).sum()
        self._sums[dataloader_idx] += torch.stack([loss, right, torch.tensor(len(labels))])

    def on_validation_epoch_end(self) -> None:
        """Set each split's loss and accuracy, over all processes."""
        sums = self._sums
        if self.trainer.world_size > 1:  # float64: counts stay exact
            sums = self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum").cpu()
        for split, (loss, right, count) in zip(self.splits, sums.tolist(), strict=True):
            self.performance[split, "loss"] = loss / count
            self.performance[split, "accuracy"] = right / count
            self.diverged |= not isfinite(loss)
            for metric in ("loss", "accuracy"):
                value = self.performance[split, metric]
                self.log(f"{split}/{metric}", value, logger=False, sync_dist=True)

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
