"""The LightningDataModule that every data set is."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, cast

import lightning as L
import torch

from bnstudy.data.batches import Augment, Batches, Normalize, balanced
from bnstudy.data.images import Images
from bnstudy.errors import UserError
from bnstudy.randomness import generator_for
from bnstudy.terms import SPLITS, Split

PROBE_SAMPLES = 5_000  # by default, as in the paper
EVALUATION_BATCH = 250


class ImageDataModule(L.LightningDataModule, ABC):
    """A data set in memory as uint8, its batches made on the training device.

    A subclass says where the images come from, in `load`.

    Args:
        batch_size: Of training, summed over the processes of a distributed run.
        seed: With the epoch, all that the order of the samples and the augmentation depend on.
        probe: How many samples of each split are measured; None: 5,000, or all where it has fewer.
        flip: Mirror half of the training images.
        shift: Move the training images by up to so many pixels.
        name: Stands for the data in a run's identity, for data sets that a path tells apart.
    """

    def __init__(
        self,
        batch_size: int,
        seed: int,
        probe: dict[Split, int | None],
        flip: bool = False,
        shift: int = 0,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.seed = seed
        self.probe_samples = probe
        self.augment = Augment(flip, shift)
        self.name = name

    @abstractmethod
    def load(self) -> Images:
        """Read both splits into memory.

        Raises:
            UserError: The files are not there, or damaged.
        """

    def setup(self, stage: str | None = None) -> None:
        """Load the data set, once.

        Raises:
            UserError: It cannot be loaded, or is smaller than the probe set asked for.
        """
        if hasattr(self, "data"):
            return
        self.data = self.load()
        self.normalize = Normalize.of(self.data.images["train"])
        self.probe_indices = {split: self._choose_probe(split) for split in SPLITS}

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return cast(tuple[int, int, int], tuple(self.data.images["train"].shape[1:]))

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.data.class_names)

    def facts(self) -> dict[str, Any]:
        """What a run's record says of its data."""
        return {
            "sha256": self.data.fingerprint(),
            "train": len(self.data.labels["train"]),
            "test": len(self.data.labels["test"]),
            "classes": list(self.data.class_names),
            "probe": {split: len(self.probe_indices[split]) for split in SPLITS},
        }

    def train_dataloader(self) -> Batches:
        """The training split, in the order of (seed, epoch), augmented as asked."""
        trainer = self.trainer
        assert trainer is not None
        return self._batches(
            "train",
            self.batch_size,
            shuffle=lambda: generator_for(self.seed, "epoch", trainer.current_epoch),
        )

    def val_dataloader(self) -> list[Batches]:
        """Both splits, in order, as they are: training split first."""
        return [self._batches(split, EVALUATION_BATCH) for split in SPLITS]

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Nothing to do: batches are made there."""
        return batch

    def probe(self, split: Split) -> Batches:
        """The samples of a split whose representations are measured: class-balanced, fixed."""
        indices = self.probe_indices[split]
        return Batches(
            self.data.images[split][indices],
            self.data.labels[split][indices],
            EVALUATION_BATCH,
            self.normalize,
        )

    def _batches(
        self, split: Split, size: int, shuffle: Callable[[], torch.Generator] | None = None
    ) -> Batches:
        trainer = self.trainer
        assert trainer is not None
        device = trainer.strategy.root_device
        return Batches(
            self.data.images[split].to(device),
            self.data.labels[split].to(device),
            size,
            self.normalize.to(device),
            shuffle,
            self.augment,
            trainer.global_rank,
            trainer.world_size,
        )

    def _choose_probe(self, split: Split) -> torch.Tensor:
        labels = self.data.labels[split]
        asked = self.probe_samples[split]
        if asked is not None and asked > len(labels):
            raise UserError(
                f"probe.{split}={asked} is more than there is: the {split} split has "
                f"{len(labels)} samples; ask for at most that, or null for all up to 5,000"
            )
        return balanced(labels, min(asked or PROBE_SAMPLES, len(labels)))
