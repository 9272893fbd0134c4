"""The LightningDataModule that every data set is."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor

from bnstudy.data.batches import Augment, Batches, Mixed, Normalize, balanced, stratified
from bnstudy.data.contents import Listing
from bnstudy.data.images import Images
from bnstudy.errors import UserError
from bnstudy.randomness import generator_for
from bnstudy.terms import EVALUATED_SPLITS, SPLITS, EvaluatedSplit, Split

PROBE_SAMPLES = 5_000  # by default, as in the paper
EVALUATION_BATCH = 250
MAX_CALIBRATION_SAMPLES = 5_000
CALIBRATION_BATCH = 250


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
        validation: Share of the training split that is held out, class-balanced, the same samples
            for every run of a data set: a split of its own, and no part of what is said of the
            training split here.

    Attributes:
        data: The data set, once it is loaded, whole.
        indices: By split, the samples in it: of `data`, `validation` of its training split.
        probe_indices: By split, the samples in it whose representations are measured, likewise.
    """

    def __init__(
        self,
        batch_size: int,
        seed: int,
        probe: dict[Split, int | None],
        flip: bool = False,
        shift: int = 0,
        name: str | None = None,
        validation: float = 0,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.seed = seed
        self.probe_samples = probe
        self.augment = Augment(flip, shift)
        self.name = name
        self.validation = validation

    @abstractmethod
    def load(self) -> Images:
        """Read both splits into memory.

        Raises:
            UserError: The files are not there, or damaged.
        """

    def setup(self, stage: str | None = None) -> None:
        """Load the data set, once.

        Raises:
            UserError: It cannot be loaded, or is too small for the validation split or the probe
                set asked for.
        """
        if hasattr(self, "indices"):
            return
        self._load_once()
        self._of_split: dict[EvaluatedSplit, tuple[Tensor, Tensor]] = {
            split: (self.data.images[split], self.data.labels[split]) for split in SPLITS
        }
        self.indices = {
            split: torch.arange(len(labels)) for split, (_, labels) in self._of_split.items()
        }
        if self.validation:
            self._hold_out()
        self.normalize = Normalize.of(self._of_split["train"][0])
        self.probe_indices = {split: self._choose_probe(split) for split in SPLITS}

    def read_sha256(self) -> str:
        """SHA-256 of every pixel and label, which is noted for `bnstudy.data.contents`."""
        self._load_once()
        sha256 = self.data.fingerprint()
        if listing := self.listing():
            listing.write_note(sha256)
        return sha256

    def listing(self) -> Listing | None:
        """Files that `load` reads; None where there are none."""
        return None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return cast(tuple[int, int, int], tuple(self.data.images["train"].shape[1:]))

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.data.class_names)

    @property
    def evaluated_splits(self) -> tuple[EvaluatedSplit, ...]:
        """Those with a loss and an accuracy: train and test, and validation if there is one."""
        return tuple(split for split in EVALUATED_SPLITS if split in self.indices)

    def facts(self) -> dict[str, Any]:
        """What a run's record says of its data."""
        return {
            "sha256": self.read_sha256(),
            **{split: len(self.indices.get(split, ())) for split in EVALUATED_SPLITS},
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
        """The `evaluated_splits`, each in order and as it is."""
        return [self._batches(split, EVALUATION_BATCH) for split in self.evaluated_splits]

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

    def calibration(self) -> Mixed:
        """The training samples that running statistics come from before training.

        At most 5,000, class-balanced, in mixed batches of 250: the same for every run of a data
        set, whatever its norm and its probe set.
        """
        images, labels = self._of_split["train"]
        chosen = balanced(labels, min(MAX_CALIBRATION_SAMPLES, len(labels)))
        samples = Batches(images[chosen], labels[chosen], CALIBRATION_BATCH, self.normalize)
        return samples.mixed(CALIBRATION_BATCH)

    def _load_once(self) -> None:
        """Load the images, once."""
        if not hasattr(self, "data"):
            self.data = self.load()

    def _batches(
        self,
        split: EvaluatedSplit,
        size: int,
        shuffle: Callable[[], torch.Generator] | None = None,
    ) -> Batches:
        trainer = self.trainer
        assert trainer is not None
        device = trainer.strategy.root_device
        images, labels = self._of_split[split]
        return Batches(
            images.to(device),
            labels.to(device),
            size,
            self.normalize.to(device),
            shuffle,
            self.augment,
            trainer.global_rank,
            trainer.world_size,
        )

    def _hold_out(self) -> None:
        """Move some of the training samples to the validation split."""
        images, labels = self._of_split["train"]
        held_out = stratified(labels, self.validation)
        present, sizes = labels.unique(return_counts=True)
        smallest = present[sizes.argmin()]  # if one class is too small, this one is
        count, size = int(held_out[labels == smallest].sum()), int(sizes.min())
        if not 0 < count < size:
            shares = f"from {1 / size:.3g} to {1 - 1 / size:.3g}, or 0 for none"
            raise UserError(
                f"data.validation={self.validation} holds out {count} of the {size} training "
                f"samples of class {self.data.class_names[smallest]}, and of each class at least "
                "one has to be held out and one left\n"
                f"Choose a share {shares if size > 1 else 'of 0, for none'}"
            )
        parts: dict[EvaluatedSplit, Tensor] = {"train": ~held_out, "validation": held_out}
        for split, part in parts.items():
            self.indices[split] = torch.nonzero(part).flatten()
            self._of_split[split] = images[part], labels[part]

    def _choose_probe(self, split: Split) -> Tensor:
        _, labels = self._of_split[split]
        asked = self.probe_samples[split]
        if asked is not None and asked > len(labels):
            raise UserError(
                f"probe.{split}={asked} is more than there is: the {split} split has "
                f"{len(labels)} samples; ask for at most that, or null for all up to 5,000"
            )
        return self.indices[split][balanced(labels, min(asked or PROBE_SAMPLES, len(labels)))]
