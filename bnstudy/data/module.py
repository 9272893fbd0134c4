"""Base class of the data sets."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor

from bnstudy.batching import MIN_SAMPLES
from bnstudy.data.batches import (
    Augment,
    Batches,
    Mixed,
    Normalize,
    balanced,
    balanced_order,
    stratified,
    with_wrong_labels,
)
from bnstudy.data.contents import Listing
from bnstudy.data.images import Images
from bnstudy.errors import UserError
from bnstudy.randomness import generator_for
from bnstudy.terms import EVALUATED_SPLITS, SPLITS, EvaluatedSplit, Split, format_count

PAPER_PROBE_SAMPLES = 5_000
EVALUATION_BATCH = 250
MAX_CALIBRATION_SAMPLES = 5_000
CALIBRATION_BATCH = 250


class ImageDataModule(L.LightningDataModule, ABC):
    """Data module that keeps uint8 images in memory and makes batches on the training device.

    A subclass reads or generates the images in `load`.

    Args:
        batch_size: Training samples in a batch, summed over the processes of a distributed run.
        seed: Seed; with the epoch it determines the order of the samples and the augmentation.
        probe: Maximum number of samples of each split that are measured, all of a smaller split;
            None for 5,000.
        flip: Whether to mirror each training image with probability 1/2.
        shift: Maximum number of pixels by which training images are moved.
        fill: Border of moved images: mean (colour of the training images), black, or reflect.
        name: Name of the data in a run's identity, which does not contain the data set's path.
        validation: Share of each class of the training split that is held out as the validation
            split. All runs of a data set hold out the same samples, and the split `train` does not
            contain them.
        label_noise: Share of the training samples, without those held out, that get the label of
            another class. All runs of a data set have the same wrong labels. Training, evaluation
            and probe set use them; samples are chosen by the true ones.
        samples_per_class: Training samples of each class, without those held out; None for all.

    Attributes:
        data: The whole data set, after loading.
        labels: Labels of the training and test split of `data`, with label noise.
        indices: Indices of each split's samples: those of `train` and `validation` refer to the
            training split of `data`, those of `test` to its test split.
        probe_indices: Indices of the probe sets' samples by split, as in `indices`.
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
        fill: str = "mean",
        label_noise: float = 0,
        samples_per_class: int | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.seed = seed
        self.probe_samples = probe
        self.augment = Augment(flip, shift, fill)
        self.name = name
        self.validation = validation
        self.label_noise = label_noise
        self.samples_per_class = samples_per_class

    @abstractmethod
    def load(self) -> Images:
        """Read both splits into memory.

        Raises:
            UserError: The files do not exist, or are damaged.
        """

    def setup(self, stage: str | None = None) -> None:
        """Load the data set, once.

        Raises:
            UserError: The data set cannot be loaded, or is too small for the validation split.
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
        if self.samples_per_class is not None:
            self._reduce(self.samples_per_class)
        self.normalize = Normalize.of(self._of_split["train"][0])
        self.probe_indices = {split: self._choose_probe(split) for split in SPLITS}
        self.labels = dict(self.data.labels)
        if self.label_noise:
            self._mislabel()

    def read_sha256(self) -> str:
        """Compute the SHA-256 of all pixels and labels, and note it for `bnstudy.data.contents`."""
        self._load_once()
        sha256 = self.data.fingerprint()
        if listing := self.listing():
            listing.write_note(sha256)
        return sha256

    def listing(self) -> Listing | None:
        """Return the state of the files that `load` reads; None if there are none."""
        return None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return cast(tuple[int, int, int], tuple(self.data.images["train"].shape[1:]))

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.data.class_names)

    @property
    def evaluated_splits(self) -> tuple[EvaluatedSplit, ...]:
        """Splits with loss and accuracy: train, test and, if there is one, validation."""
        return tuple(split for split in EVALUATED_SPLITS if split in self.indices)

    def facts(self) -> dict[str, Any]:
        """Return the description of the data in a run's record."""
        return {
            "sha256": self.read_sha256(),
            **{split: len(self.indices.get(split, ())) for split in EVALUATED_SPLITS},
            "classes": list(self.data.class_names),
            "probe": {split: len(self.probe_indices[split]) for split in SPLITS},
        }

    def require_batches(self, num_processes: int) -> None:
        """Verify that every process gets at least two samples of each training batch.

        BatchNorm needs them. Other norms do not, but batches are the same for every norm.

        Args:
            num_processes: Number of processes.

        Raises:
            UserError: The batch size or the training split is too small.
        """
        smallest, present = MIN_SAMPLES * num_processes, len(self.indices["train"])
        shared = f" with {num_processes} processes" if num_processes > 1 else ""
        if self.batch_size < smallest:
            raise UserError(
                f"data.batch_size={self.batch_size} is too small: every process needs "
                f"{MIN_SAMPLES} samples of a batch\nSet it to at least {smallest}{shared}"
            )
        if present < smallest:
            raise UserError(
                f"data: the train split has {format_count(present, 'sample')}; training{shared} "
                f"takes at least {smallest}"
            )

    def train_dataloader(self) -> Batches:
        """Return the training split, shuffled and augmented by the seed and the epoch."""
        trainer = self.trainer
        assert trainer is not None
        return self._batches(
            "train",
            self.batch_size,
            shuffle=lambda: generator_for(self.seed, "epoch", trainer.current_epoch),
        )

    def val_dataloader(self) -> list[Batches]:
        """Return the `evaluated_splits`, neither shuffled nor augmented.

        With `limit_val_batches`, whose batches are the first ones, these are class-balanced.
        """
        assert self.trainer is not None
        limit = self.trainer.limit_val_batches
        is_whole = isinstance(limit, float) and limit == 1  # the integer 1 is one batch
        return [
            self._batches(split, EVALUATION_BATCH, in_order=is_whole)
            for split in self.evaluated_splits
        ]

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Return the batch, which is already on the device."""
        return batch

    def probe(self, split: Split) -> Batches:
        """Return the probe set of a split: class-balanced samples, the same for every run."""
        indices = self.probe_indices[split]
        return Batches(
            self.data.images[split][indices],
            self.labels[split][indices],
            EVALUATION_BATCH,
            self.normalize,
        )

    def calibration(self) -> Mixed:
        """Return the training samples that determine running statistics before training.

        These are at most 5,000 class-balanced samples in shuffled batches of 250, the same for
        every run of a data set, whatever its norm and its probe set.
        """
        images, labels = self._of_split["train"]
        chosen = balanced(labels, min(MAX_CALIBRATION_SAMPLES, len(labels)))
        samples = Batches(images[chosen], labels[chosen], CALIBRATION_BATCH, self.normalize)
        return samples.mixed(CALIBRATION_BATCH)

    def _load_once(self) -> None:
        if not hasattr(self, "data"):
            self.data = self.load()

    def _batches(
        self,
        split: EvaluatedSplit,
        size: int,
        shuffle: Callable[[], torch.Generator] | None = None,
        in_order: bool = True,
    ) -> Batches:
        trainer = self.trainer
        assert trainer is not None
        device = trainer.strategy.root_device
        images, labels = self._of_split[split]
        if not in_order:
            order = balanced_order(labels)
            images, labels = images[order], labels[order]
        return Batches(
            images.to(device),
            labels.to(device),
            size,
            self.normalize.to(device),
            shuffle,
            self.augment.of(self.normalize.to(device)),
            trainer.global_rank,
            trainer.world_size,
        )

    def _hold_out(self) -> None:
        """Move some of the training samples to the validation split."""
        images, labels = self._of_split["train"]
        held_out = stratified(labels, self.validation)
        present, sizes = labels.unique(return_counts=True)
        smallest = present[sizes.argmin()]  # if any class is too small, this one is
        count, size = int(held_out[labels == smallest].sum()), int(sizes.min())
        if not 0 < count < size:
            shares = f"from {1 / size:.3g} to {1 - 1 / size:.3g}, or 0 for none"
            raise UserError(
                f"data.validation={self.validation} holds out {count} of the {size} training "
                f"samples of class {self.data.class_names[smallest]}; at least one sample of each "
                "class has to be held out, and one left\n"
                f"Choose a share {shares if size > 1 else 'of 0, for none'}"
            )
        parts: dict[EvaluatedSplit, Tensor] = {"train": ~held_out, "validation": held_out}
        for split, part in parts.items():
            self.indices[split] = torch.nonzero(part).flatten()
            self._of_split[split] = images[part], labels[part]

    def _reduce(self, samples_per_class: int) -> None:
        """Keep some training samples of each class; a larger number contains a smaller one's."""
        images, labels = self._of_split["train"]
        present, sizes = labels.unique(return_counts=True)
        if samples_per_class > sizes.min():
            name = self.data.class_names[int(present[sizes.argmin()])]
            raise UserError(
                f"data.samples_per_class={samples_per_class}: the train split has {sizes.min()} "
                f"samples of class {name}; it takes 1 to {sizes.min()}, or null for all"
            )
        kept = balanced(labels, samples_per_class * len(present))
        self.indices["train"] = self.indices["train"][kept]
        self._of_split["train"] = images[kept], labels[kept]

    def _mislabel(self) -> None:
        """Give some of the training samples the labels of other classes."""
        indices, (images, labels) = self.indices["train"], self._of_split["train"]
        wrong = with_wrong_labels(labels, self.label_noise, self.num_classes)
        self.labels["train"] = self.labels["train"].clone()
        self.labels["train"][indices] = wrong
        self._of_split["train"] = images, wrong

    def _choose_probe(self, split: Split) -> Tensor:
        _, labels = self._of_split[split]
        count = self.probe_samples[split] or PAPER_PROBE_SAMPLES
        return self.indices[split][balanced(labels, min(count, len(labels)))]
