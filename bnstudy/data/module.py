"""Base classes of the data sets."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, cast

import lightning as L
import torch
from torch import Tensor

from bnstudy.batching import MIN_BATCH_SIZE
from bnstudy.data.batches import (
    Augment,
    Batches,
    Normalize,
    add_label_noise,
    balanced_order,
    choose_balanced,
    choose_stratified,
)
from bnstudy.data.contents import FilesIdentity
from bnstudy.data.images import Images
from bnstudy.errors import UserError
from bnstudy.randomness import generator_for
from bnstudy.representations.network import Batch
from bnstudy.terms import EVALUATED_SPLITS, SPLITS, EvaluatedSplit, Split, format_count

PAPER_PROBE_SAMPLES = 5_000
EVALUATION_BATCH = 250
MAX_CALIBRATION_SAMPLES = 5_000
CALIBRATION_BATCH = 250
# Share of a GPU's free memory that the images of a split may take; larger ones stay on the CPU.
MAX_SHARE_OF_DEVICE = 0.3

MakeGenerator = Callable[[], torch.Generator]


class SampleBatches(Protocol):
    """Iterable over the batches of some samples, such as `bnstudy.data.batches.Batches`."""

    @property
    def size(self) -> int:
        """Samples in a batch."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield inputs and labels."""

    def shuffled(self, size: int) -> Iterable[Batch]:
        """Return the samples in one fixed random order, in batches of nearly equal size."""


class DataModule(L.LightningDataModule, ABC):
    """Data module that makes the batches, probe sets and calibration batches of a run.

    The order of the training samples depends on the seed and the epoch alone, whatever the norm.

    Args:
        batch_size: Training samples in a batch, summed over the processes of a distributed run.
        seed: Seed; with the epoch it determines the order of the samples and the augmentation.
        probe: Size of the probe set of each split; None for 5,000. If a split has fewer samples,
            its probe set has all of them.
        name: Name of the data in a run's identity, which does not contain the data set's path.
        validation: Share of each class of the training split that is held out as the validation
            split. All runs of a data set hold out the same samples, and the split `train` does not
            contain them.
        samples_per_class: Training samples of each class, without those held out; None for all.

    Attributes:
        true_labels: Labels of the splits as they were loaded. Samples are chosen by these labels.
        labels: Labels in the batches: `true_labels`, with label noise if there is any.
        indices: Indices of each split's samples in the split as it was loaded; those of held-out
            samples are indices in the training split.
        probe_indices: Indices of the probe sets' samples by split, as in `indices`.
    """

    def __init__(
        self,
        batch_size: int,
        seed: int,
        probe: dict[Split, int | None],
        name: str | None = None,
        validation: float = 0,
        samples_per_class: int | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.seed = seed
        self.probe_samples = probe
        self.name = name
        self.validation = validation
        self.samples_per_class = samples_per_class

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a sample; channels, height and width of an image."""

    @property
    @abstractmethod
    def class_names(self) -> Sequence[str]:
        """Names of the classes, in the order of the labels."""

    @abstractmethod
    def read_sha256(self) -> str:
        """Load the data set, and compute a SHA-256 that identifies its content."""

    @abstractmethod
    def _load_once(self) -> dict[EvaluatedSplit, Tensor]:
        """Load the data set, unless it is loaded already; return the labels of its splits."""

    @abstractmethod
    def _batches(
        self,
        split: EvaluatedSplit,
        rows: Tensor | None,
        size: int,
        make_generator: MakeGenerator | None = None,
        trainer: L.Trainer | None = None,
    ) -> SampleBatches:
        """Make the batches of some samples of a split.

        Args:
            split: Split as it was loaded.
            rows: Indices of the samples; None for all.
            size: Samples in a batch.
            make_generator: Function that returns the generator of an epoch's order and
                augmentation; None for the order of `rows`, without augmentation.
            trainer: Trainer whose device and process get the batches; None for all samples, on the
                CPU.
        """

    def setup(self, stage: str | None = None) -> None:
        """Load the data set and choose the samples of splits and probe sets, once.

        Raises:
            UserError: The data set cannot be loaded, is too small for `validation` or
                `samples_per_class`, or has a validation split of its own although `validation` is
                set.
        """
        if hasattr(self, "probe_indices"):
            return
        self.true_labels = self._load_once()
        self.labels = dict(self.true_labels)
        self.indices = {split: torch.arange(len(labels)) for split, labels in self.labels.items()}
        if self.validation:
            self._hold_out()
        if self.samples_per_class is not None:
            self._keep_per_class(self.samples_per_class)
        self.probe_indices = {
            split: self._choose(split, self.probe_samples[split] or PAPER_PROBE_SAMPLES)
            for split in SPLITS
        }

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def evaluated_splits(self) -> tuple[EvaluatedSplit, ...]:
        """Splits with loss and accuracy: train, test and, if there is one, validation."""
        return tuple(split for split in EVALUATED_SPLITS if split in self.indices)

    def facts(self) -> dict[str, Any]:
        """Return the description of the data in a run's record."""
        return {
            "sha256": self.read_sha256(),
            **{split: len(self.indices.get(split, ())) for split in EVALUATED_SPLITS},
            "classes": list(self.class_names),
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
        required, num_samples = MIN_BATCH_SIZE * num_processes, len(self.indices["train"])
        processes = f" with {num_processes} processes" if num_processes > 1 else ""
        if self.batch_size < required:
            raise UserError(
                f"data.batch_size={self.batch_size} is too small: every process needs "
                f"{MIN_BATCH_SIZE} samples of a batch\nSet it to at least {required}{processes}"
            )
        if num_samples < required:
            raise UserError(
                f"data: the train split has {format_count(num_samples, 'sample')}; "
                f"training{processes} takes at least {required}"
            )

    def train_dataloader(self) -> SampleBatches:
        """Return the training split; seed and epoch determine its order and augmentation."""
        trainer = self.trainer
        assert trainer is not None
        return self._batches(
            "train",
            self._rows("train"),
            self.batch_size,
            lambda: generator_for(self.seed, "epoch", trainer.current_epoch),
            trainer,
        )

    def val_dataloader(self) -> list[SampleBatches]:
        """Return the `evaluated_splits`, neither shuffled nor augmented.

        If `limit_val_batches` takes only the first batches, these are class-balanced.
        """
        assert self.trainer is not None
        limit = self.trainer.limit_val_batches
        is_whole = isinstance(limit, float) and limit == 1  # the integer 1 is one batch
        return [
            self._batches(
                self._source(split),
                self._rows(split) if is_whole else self._balanced(split),
                EVALUATION_BATCH,
                trainer=self.trainer,
            )
            for split in self.evaluated_splits
        ]

    def probe(self, split: Split) -> SampleBatches:
        """Return the probe set of a split: class-balanced samples, whatever the seed and norm."""
        return self._batches(split, self.probe_indices[split], EVALUATION_BATCH)

    def whole(self, split: Split) -> SampleBatches:
        """Return all samples of a split, in their order."""
        return self._batches(split, self._rows(split), EVALUATION_BATCH)

    def calibration(self) -> Iterable[Batch]:
        """Return the training samples by which running statistics are computed anew.

        This is done before training and for measurements within an epoch. The samples are at most
        5,000 class-balanced ones, shuffled, in batches of at least 250 samples (fewer than 250 make
        one batch). They do not depend on the seed, the norm or the probe set.
        """
        chosen = self._choose("train", MAX_CALIBRATION_SAMPLES)
        return self._batches("train", chosen, CALIBRATION_BATCH).shuffled(CALIBRATION_BATCH)

    def mislabel(self, share: float) -> None:
        """Give a share of the training samples the labels of other classes, in `self.labels`."""
        rows = self.indices["train"]
        wrong = add_label_noise(self.labels["train"][rows], share, self.num_classes)
        self.labels["train"] = self.labels["train"].index_copy(0, rows, wrong)

    def _source(self, split: EvaluatedSplit) -> EvaluatedSplit:
        """Return the loaded split to which the `indices` of a split refer."""
        return split if split in self.labels else "train"

    def _true_labels(self, split: EvaluatedSplit) -> Tensor:
        return self.true_labels[self._source(split)][self.indices[split]]

    def _rows(self, split: EvaluatedSplit) -> Tensor | None:
        """Return a split's indices; None for all samples of the split as it was loaded."""
        rows = self.indices[split]
        return None if len(rows) == len(self.labels[self._source(split)]) else rows

    def _balanced(self, split: EvaluatedSplit) -> Tensor:
        """Return a split's indices in the order of `balanced_order`."""
        return self.indices[split][balanced_order(self._true_labels(split))]

    def _choose(self, split: EvaluatedSplit, count: int) -> Tensor:
        """Return the indices of `count` class-balanced samples of a split, or of all it has."""
        labels = self._true_labels(split)
        return self.indices[split][choose_balanced(labels, min(count, len(labels)))]

    def _hold_out(self) -> None:
        """Move some of the training samples to the validation split."""
        if "validation" in self.labels:
            raise UserError(
                f"data.validation={self.validation}: the data have a validation split of their own"
                "\nSet it to 0"
            )
        labels = self.true_labels["train"]
        held_out = choose_stratified(labels, self.validation)
        classes, sizes = labels.unique(return_counts=True)
        smallest = classes[sizes.argmin()]  # if any class is too small, this one is
        count, size = int(held_out[labels == smallest].sum()), int(sizes.min())
        if not 0 < count < size:
            shares = f"from {1 / size:.3g} to {1 - 1 / size:.3g}, or 0 for none"
            raise UserError(
                f"data.validation={self.validation} holds out {count} of the {size} training "
                f"samples of class {self.class_names[smallest]}; at least one sample of each "
                "class has to be held out, and one left\n"
                f"Choose a share {shares if size > 1 else 'of 0, for none'}"
            )
        self.indices |= {
            "train": torch.nonzero(~held_out).flatten(),
            "validation": torch.nonzero(held_out).flatten(),
        }

    def _keep_per_class(self, samples_per_class: int) -> None:
        """Keep this many training samples of each class; a larger number keeps these and more."""
        classes, sizes = self._true_labels("train").unique(return_counts=True)
        if samples_per_class > sizes.min():
            name = self.class_names[int(classes[sizes.argmin()])]
            raise UserError(
                f"data.samples_per_class={samples_per_class}: the train split has {sizes.min()} "
                f"samples of class {name}; expected 1 to {sizes.min()}, or null for all"
            )
        self.indices["train"] = self._choose("train", samples_per_class * len(classes))


class ImageDataModule(DataModule):
    """Data module that keeps uint8 images in memory and makes batches on the training device.

    A subclass defines `load`, which reads or generates the images.

    Args:
        flip: Whether to mirror each training image with probability 1/2.
        shift: Maximum number of pixels by which training images are moved, less than their size.
        fill: Border of moved images: mean (colour of the training images), black, or reflect.
        label_noise: Share of the training samples, after `validation` and `samples_per_class`, that
            get the label of another class. The wrong labels do not depend on the seed. Training,
            evaluation and probe set use them.
        options: Options of `DataModule`.

    Attributes:
        data: The whole data set with its true labels, after `setup`.
        normalize: Standardization by the images of the split `train`, after `setup`.
    """

    def __init__(
        self,
        flip: bool = False,
        shift: int = 0,
        fill: str = "mean",
        label_noise: float = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.augment = Augment(flip, shift, fill)
        self.label_noise = label_noise
        self._images_on: dict[tuple[torch.device, Split], Tensor] = {}

    @abstractmethod
    def load(self) -> Images:
        """Read both splits into memory.

        Raises:
            UserError: The files do not exist, or are damaged.
        """

    def setup(self, stage: str | None = None) -> None:
        """Load the data set, choose samples, and determine normalization and label noise, once.

        Raises:
            UserError: The data set cannot be loaded, is too small for `validation` or
                `samples_per_class`, or its images are too small for `shift`.
        """
        if not hasattr(self, "normalize"):
            super().setup(stage)
            self._require_shift_in_images()
            self.normalize = Normalize.from_images(self.data.images["train"], self._rows("train"))
            if self.label_noise:
                self.mislabel(self.label_noise)

    def read_sha256(self) -> str:
        """Compute the SHA-256 of all pixels and labels, and write it to a file for later calls."""
        self._load_once()
        sha256 = self.data.sha256
        if identity := self.files_identity():
            identity.write_note(sha256)
        return sha256

    def files_identity(self) -> FilesIdentity | None:
        """Return the identity of the files that `load` reads; None if there are none."""
        return None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return cast(tuple[int, int, int], tuple(self.data.images["train"].shape[1:]))

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes, in the order of the labels."""
        return self.data.class_names

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Return the batch, which is already on the device."""
        return batch

    def _load_once(self) -> dict[EvaluatedSplit, Tensor]:
        if not hasattr(self, "data"):
            self.data = self.load()
        return {split: self.data.labels[split] for split in SPLITS}

    def _require_shift_in_images(self) -> None:
        """Verify that a shifted image still shows some of its pixels; `reflect` needs this, too."""
        _, height, width = self.input_shape
        if self.augment.shift >= min(height, width):
            raise UserError(
                f"data.shift={self.augment.shift}: moves images of {height}x{width} pixels out of "
                f"view\nSet it to at most {min(height, width) - 1}"
            )

    def _batches(
        self,
        split: EvaluatedSplit,
        rows: Tensor | None,
        size: int,
        make_generator: MakeGenerator | None = None,
        trainer: L.Trainer | None = None,
    ) -> Batches:
        assert split != "validation"  # its samples are rows of the training split
        images, labels = self.data.images[split], self.labels[split]
        if trainer is None:
            if rows is not None:
                images, labels = images[rows], labels[rows]
            return Batches(images, labels, size, self.normalize)
        device = trainer.strategy.root_device
        normalize = self.normalize.to(device)
        return Batches(
            self._copy_to(device, split),
            labels.to(device),
            size,
            normalize,
            make_generator,
            self.augment.with_black_of(normalize),
            trainer.global_rank,
            trainer.world_size,
            None if rows is None else rows.to(device),
        )

    def _copy_to(self, device: torch.device, split: Split) -> Tensor:
        """Return a split's images, copied to the device once if it has memory for them."""
        if (device, split) not in self._images_on:
            images = self.data.images[split]
            self._images_on[device, split] = images.to(device) if _fits(images, device) else images
        return self._images_on[device, split]


def _fits(images: Tensor, device: torch.device) -> bool:
    """Check whether a device has memory for the images of a split beside the network."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes < MAX_SHARE_OF_DEVICE * free
