"""LightningModule that trains a network as a classifier."""

from collections.abc import Sequence
from math import isfinite
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional

from bnstudy.models.optimizers import Recipe, clip_adaptively, make_optimizer
from bnstudy.models.regularizers import Regularizer
from bnstudy.randomness import generator_for
from bnstudy.representations.network import Batch
from bnstudy.terms import SPLITS, EvaluatedSplit


def is_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Mark the correct predictions: bool, N.

    A prediction counts as wrong if any of its logits is not finite: the argmax of NaN would be 0.

    Args:
        logits: N x classes.
        labels: int64, N.

    Example:
        >>> is_correct(torch.tensor([[2.0, 1.0], [torch.nan, torch.nan]]), torch.tensor([0, 0]))
        tensor([ True, False])
    """
    return (logits.argmax(1) == labels) & logits.isfinite().all(1)


def sum_performance(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum the cross-entropy and count the correct predictions: float64, 3, on the CPU.

    Args:
        logits: N x classes.
        labels: int64, N.

    Returns:
        Sum of the losses, number of correct predictions, and N.
    """
    logits, labels = logits.cpu().double(), labels.cpu()
    loss = functional.cross_entropy(logits, labels, reduction="sum")
    return torch.stack([loss, is_correct(logits, labels).sum(), torch.tensor(len(labels))])


class Classifier(L.LightningModule):
    """Classifier trained with cross-entropy, and evaluated on each split by Lightning's validation.

    Loss and accuracy of all splits are computed in eval mode. `performance` has them in float64;
    `trainer.callback_metrics` has them in float32, as `<split>/loss` and `<split>/accuracy`. Only
    `train/loss_step`, the loss that a training step minimizes, is sent to the loggers.

    Args:
        network: Module that maps images N x C x H x W to logits N x classes.
        optim: Configuration group `optim`: `name`, the options of a `Recipe`, and those of the
            optimizer, such as `lr`.
        seed: Seed of the random numbers that layers such as dropout draw in training.
        regularizer: Regularizer whose penalty is added to the loss; None for none.
        compiled: Whether `torch.compile` compiles the training step's forward pass.
        splits: Splits to evaluate, in the order of the validation dataloaders.

    Attributes:
        performance: Mean loss of the samples and share of correct predictions, by split and metric.
            Empty if the network was trained since it was evaluated.
        diverged: Whether any loss was not finite, in training or evaluation; a buffer, so that
            checkpoints contain it. It is updated by each evaluation.
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
        # On two CPU cores, channels last saves a fifth of the time of a training step, and half of
        # that of a forward pass.
        self.network = network.to(memory_format=torch.channels_last)
        self.recipe, options = Recipe.split(optim)
        self.optimizer = make_optimizer(self.network, self.recipe, **options)
        self.seed = seed
        self.regularizer = regularizer
        # Only the function is compiled: a compiled module would have other parameter names, and so
        # would its checkpoints.
        self.compute_logits = torch.compile(network.forward) if compiled else network.forward
        self.register_buffer("diverged", torch.tensor(False))
        # Whether a training loss of this process was not finite. DDP overwrites the buffer of every
        # process with that of the first one.
        self._not_finite = torch.tensor(False)
        self.splits = splits
        self.performance: dict[tuple[EvaluatedSplit, str], float] = {}
        self._sums = torch.empty(0)  # split x (loss sum, correct, samples)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, N x classes."""
        logits: Tensor = self.network(images)
        return logits

    def on_train_epoch_start(self) -> None:
        """Seed torch's random numbers from the seed, the epoch and the process alone.

        Dropout then draws the same numbers for every norm, and in a resumed run; the processes of a
        distributed run draw different ones.
        """
        self.performance = {}
        process = (self.global_rank,) if self.global_rank else ()
        purpose = (self.seed, "layers", self.current_epoch, *process)
        torch.manual_seed(generator_for(*purpose).initial_seed())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of a batch plus the regularizer's penalty."""
        images, labels = batch
        if self.regularizer is None:
            loss = self._loss(images, labels)
        else:
            with self.regularizer.watching():
                loss = self._loss(images, labels)
                loss = loss + self.regularizer(labels)
        self._not_finite = self._not_finite.to(loss.device) | ~loss.detach().isfinite()
        interval: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        # self.log takes 1 ms even in steps that are not logged.
        if interval and (self.global_step + 1) % interval == 0:
            self.log("train/loss_step", loss, on_step=True, on_epoch=False)
        return loss

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        smoothing = self.recipe.label_smoothing
        return functional.cross_entropy(
            self.compute_logits(images), labels, label_smoothing=smoothing
        )

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients relative to the weights if the recipe says so, then as Lightning does."""
        if self.recipe.adaptive_clipping is not None:
            clip_adaptively(self.network, self.recipe.adaptive_clipping)
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_validation_epoch_start(self) -> None:
        """Reset the sums of each split."""
        self._sums = torch.zeros(len(self.splits), 3, dtype=torch.float64)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch of the split `splits[dataloader_idx]` to the sums."""
        images, labels = batch
        if len(labels) == 0:  # a split may have fewer samples than processes
            return
        self._sums[dataloader_idx] += sum_performance(self(images), labels)

    def on_validation_epoch_end(self) -> None:
        """Compute each split's loss and accuracy over all processes."""
        sums, not_finite = self._sums, self._not_finite
        if self.trainer.world_size > 1:  # counts are exact in float64
            reduce = self.trainer.strategy.reduce
            sums = reduce(sums.to(self.device), reduce_op="sum").cpu()
            not_finite = reduce(not_finite.float().to(self.device), reduce_op="max").bool()
        self.diverged |= not_finite
        for split, (loss, correct, count) in zip(self.splits, sums.tolist(), strict=True):
            self.performance[split, "loss"] = loss / count
            self.performance[split, "accuracy"] = correct / count
            self.diverged |= not isfinite(loss)
            for metric in ("loss", "accuracy"):
                value = self.performance[split, metric]
                self.log(f"{split}/{metric}", value, logger=False, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Return the optimizer and, unless the learning rate is constant, its schedule."""
        epochs = self.trainer.max_epochs
        assert epochs is not None
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = self.recipe.scheduler(self.optimizer, steps, epochs)
        if scheduler is None:
            return self.optimizer
        return {
            "optimizer": self.optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }
