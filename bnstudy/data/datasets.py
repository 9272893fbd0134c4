"""Adapters from PyTorch data sets to the batches, splits and probe sets of a run."""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from rich.progress import track
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from bnstudy.batching import MIN_BATCH_SIZE, batch_sizes
from bnstudy.data.batches import choose_balanced
from bnstudy.data.module import DataModule, MakeGenerator
from bnstudy.errors import UserError, first_line, shorten
from bnstudy.randomness import generator_for
from bnstudy.representations.network import Batch
from bnstudy.terms import EvaluatedSplit

DEFAULT_BATCH_SIZE = 128  # if neither data.batch_size nor a data loader sets it
MAX_COMPARED_SAMPLES = 8  # one sample would miss a random flip half of the time
MAX_CHECKED_CLASSES = 1_000  # one sample of each is read to check the known labels
MAX_HASHED_SAMPLES = 100  # of each split; more would take long to decode
# Largest number of classes of data with fewer samples. Larger labels are not class numbers, and
# memory grows with the number of classes.
MAX_CLASSES = 100_000
EXPECTED_DATA = (
    "Expected: a LightningDataModule, or (train, test) or {'train': ..., 'test': ...} of data sets "
    "whose samples are (tensor, label)"
)
EXPECTED_LABEL = "Expected: one integer from 0 to the number of classes - 1"


@dataclass(frozen=True)
class SplitSource:
    """Data set of one split, and the options by which its samples become batches.

    Attributes:
        dataset: Data set with `len()` and samples (inputs, label).
        collate: Function that makes a batch of a list of samples.
        num_workers: Number of processes that read samples; with 0 this process reads them.
        batch_size: Samples in a batch of the user's own data loader; None if there is none.
        worker_init: Function that each process that reads samples calls first, with its number.
    """

    dataset: Dataset[Any]
    collate: Callable[[list[Any]], Any] = default_collate
    num_workers: int = 0
    batch_size: int | None = None
    worker_init: Callable[[int], None] | None = None

    @classmethod
    def from_data(cls, data: Any, name: str) -> "SplitSource":
        """Create a source from a data set, or from the data set and the options of a data loader.

        The loader's order is not used: bnstudy chooses the order of the samples.

        Args:
            data: Data loader or data set.
            name: Name for error messages, such as `data._target_=mypackage.Data: train`.

        Raises:
            UserError: The samples cannot be read by their index, or have an order of their own.
        """
        loader = data if isinstance(data, DataLoader) else None
        dataset = data if loader is None else loader.dataset
        if isinstance(dataset, IterableDataset) or not (
            hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        ):
            raise UserError(
                f"{name}: a {type(dataset).__name__}, whose samples have no index\n{EXPECTED_DATA}"
            )
        if loader is None:
            return cls(dataset)
        has_own_batches = type(loader.batch_sampler) not in (BatchSampler, NoneType)
        sampler = loader.batch_sampler if has_own_batches else loader.sampler
        if type(sampler) not in (RandomSampler, SequentialSampler):
            raise UserError(
                f"{name}: its data loader has a {type(sampler).__name__}; bnstudy chooses "
                "the order of the samples, the same for every norm\nCreate the loader without a "
                "sampler"
            )
        return replace(cls(dataset).with_loader_options(loader), batch_size=loader.batch_size)

    def with_loader_options(self, loader: DataLoader[Any]) -> "SplitSource":
        """Return a copy that uses a loader's collate function, workers and worker initialization.

        The loader's order is ignored.
        """
        return replace(
            self,
            collate=loader.collate_fn,
            num_workers=loader.num_workers,
            worker_init=loader.worker_init_fn,
        )

    def read_labels(self) -> Tensor:
        """Return each sample's label, int64, N.

        If the data set has an attribute with labels, some samples are read to check it. All samples
        are read if there is no such attribute, or if a label that was read differs from it.
        """
        count = len(self.dataset)  # type: ignore[arg-type]
        known = _known_labels(self.dataset)
        if known is not None and len(known) == count:
            # The attribute can differ from the samples' labels (target_transform), so one sample of
            # each class and the last one are checked.
            firsts = np.unique(known.numpy(), return_index=True)[1]
            checked = sorted({*firsts[:MAX_CHECKED_CLASSES].tolist(), count - 1})
            read = torch.cat([labels for _, labels in self.batches(checked)])
            if torch.equal(known[checked], read):
                return known
        batches = track(self.batches(range(count)), "Reading labels", transient=True)
        return torch.cat([labels for _, labels in batches])

    def is_random(self) -> bool:
        """Check whether the first samples differ between two reads, as by random augmentation."""
        rows = range(min(MAX_COMPARED_SAMPLES, len(self.dataset)))  # type: ignore[arg-type]
        reads = [
            [self.collate([_Reproducible(self.dataset, draw)[row]])[0] for row in rows]
            for draw in (0, 1)
        ]
        return not all(map(torch.equal, *reads))

    def batches(self, rows: Iterable[int], size: int = DEFAULT_BATCH_SIZE) -> "DatasetBatches":
        """Return the batches of some samples, in their order."""
        return DatasetBatches(self, torch.as_tensor(list(rows)), size)


@dataclass(frozen=True)
class DatasetBatches:
    """Iterable over batches (inputs, labels int64 N) of a data set's samples.

    The random draws of a sample, such as augmentation, depend only on its index and on the epoch's
    generator. Without `make_generator` they are the same at each pass.

    Attributes:
        source: Data set.
        rows: Indices of the samples, int64.
        size: Samples in a batch, summed over the processes of a distributed run.
        make_generator: Function that returns the generator of the sample order and of the random
            draws at the start of an epoch; None for the order of `rows`.
        rank: Number of this process in a distributed run; it gets its share of every batch.
        world_size: Number of processes.
        sizes: Number of samples in each batch; None for batches of `size` samples, divided as in
            `bnstudy.data.batches.Batches`.
    """

    source: SplitSource
    rows: Tensor
    size: int
    make_generator: MakeGenerator | None = None
    rank: int = 0
    world_size: int = 1
    sizes: list[int] | None = None

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return len(self.rows)

    def __len__(self) -> int:
        return len(self._sizes())

    def __iter__(self) -> Iterator[Batch]:
        rows, draw = self.rows, 0
        if self.make_generator:
            generator = self.make_generator()
            rows = rows[torch.randperm(len(rows), generator=generator)]
            draw = int(torch.randint(2**31, (), generator=generator))
        batches = rows.split(self._sizes())
        shares = [batch[self.rank :: self.world_size] for batch in batches]
        loader = DataLoader(
            _Reproducible(self.source.dataset, draw),
            # An empty batch has the shapes of one sample, which is read and left out.
            batch_sampler=[
                (share if len(share) else batch[:1]).tolist()
                for share, batch in zip(shares, batches, strict=True)
            ],
            collate_fn=self.source.collate,
            num_workers=self.source.num_workers,
            worker_init_fn=self.source.worker_init,
            # Otherwise, the loader would draw from the global generator, which training uses.
            generator=torch.Generator(),
        )
        return map(_make_pair, loader, [len(share) == 0 for share in shares])

    def shuffled(self, size: int) -> "DatasetBatches":
        """Return the samples in one fixed random order, in batches of nearly equal size."""
        count = len(self.rows)
        order = torch.randperm(count, generator=generator_for("mixed"))
        sizes = [len(batch) for batch in order.tensor_split(max(1, count // size))]
        return replace(self, rows=self.rows[order], size=size, sizes=sizes)

    def _sizes(self) -> list[int]:
        return self.sizes or batch_sizes(
            len(self.rows), self.size, MIN_BATCH_SIZE * self.world_size
        )


class DatasetModule(DataModule):
    """Data module of PyTorch data sets, such as the user's own.

    Args:
        sources: Data set of each split: train, test and, possibly, validation.
        name_in_messages: Name for error messages, such as `data._target_=mypackage.Data`.
        class_names: Names of the classes, if they are known.
        batch_size: Training samples in a batch; None for that of the user's data loader or, if
            there is none, 128.
        options: Options of `DataModule`.

    Raises:
        UserError: A data set is empty, or a sample is not a pair of a floating-point tensor and a
            label.
    """

    def __init__(
        self,
        sources: Mapping[EvaluatedSplit, SplitSource],
        name_in_messages: str,
        class_names: Sequence[str] | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            batch_size=batch_size or sources["train"].batch_size or DEFAULT_BATCH_SIZE, **options
        )
        self.sources = sources
        self.name_in_messages = name_in_messages
        self._class_names = class_names
        for split, source in sources.items():
            _require_pairs(source, f"{name_in_messages}: {split}")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a sample."""
        inputs, _ = next(iter(self.sources["train"].batches([0])))
        return tuple(inputs.shape[1:])

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes; their numbers, if the data set does not name all of them."""
        count = 1 + max(int(labels.max()) for labels in self._load_once().values())
        names = self._class_names
        return names if names and len(names) >= count else [str(n) for n in range(count)]

    def read_sha256(self) -> str:
        """Compute the SHA-256 of all labels and of some class-balanced samples of each split."""
        digest = hashlib.sha256()
        for split, labels in self._load_once().items():
            rows = choose_balanced(labels, min(MAX_HASHED_SAMPLES, len(labels)))
            digest.update(f"{split} {tuple(labels.shape)}".encode())
            digest.update(labels.numpy().data)
            for inputs, _ in self.sources[split].batches(rows.tolist()):
                digest.update(inputs.contiguous().numpy().data)
        return digest.hexdigest()

    def _load_once(self) -> dict[EvaluatedSplit, Tensor]:
        if not hasattr(self, "_all_labels"):
            self._all_labels = {
                split: source.read_labels() for split, source in self.sources.items()
            }
            limit = max(MAX_CLASSES, sum(map(len, self._all_labels.values())))
            for split, labels in self._all_labels.items():
                for label in (labels.min(), labels.max()):
                    if not 0 <= label < limit:
                        raise UserError(
                            f"{self.name_in_messages}: {split}: a label is {label}, not from 0 to "
                            f"{limit - 1}\n{EXPECTED_LABEL}"
                        )
        return self._all_labels

    def _batches(
        self,
        split: EvaluatedSplit,
        rows: Tensor | None,
        size: int,
        make_generator: MakeGenerator | None = None,
        trainer: L.Trainer | None = None,
    ) -> DatasetBatches:
        rows = torch.arange(len(self.labels[split])) if rows is None else rows
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        return DatasetBatches(self.sources[split], rows, size, make_generator, rank, world_size)


def _require_pairs(source: SplitSource, name: str) -> None:
    """Verify, for one sample, that batches are pairs of floating-point inputs and labels."""
    if not len(source.dataset):  # type: ignore[arg-type]
        raise UserError(f"{name} has no samples\n{EXPECTED_DATA}")
    sample = _Reproducible(source.dataset, draw=0)[0]
    try:
        batch = source.collate([sample])
    except (RuntimeError, TypeError, ValueError) as error:
        if source.collate is not default_collate:
            raise
        raise UserError(
            f"{name}: a sample cannot be made a batch ({first_line(error)})\n{EXPECTED_DATA}"
        ) from error
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise UserError(f"{name}: a batch is a {type(batch).__name__}, not a pair\n{EXPECTED_DATA}")
    inputs, given = batch
    if not (isinstance(inputs, Tensor) and inputs.is_floating_point()):
        dtype = getattr(inputs, "dtype", type(inputs).__name__)
        raise UserError(
            f"{name}: inputs are {dtype}, not floating-point tensors\n"
            "Convert and standardize them in the data set, for example by a transform"
        )
    try:
        labels = torch.as_tensor(given)
    except (RuntimeError, TypeError, ValueError) as error:  # for example, names
        raise UserError(
            f"{name}: labels are {shorten(given)} for a sample\n{EXPECTED_LABEL}"
        ) from error
    if labels.is_floating_point() or labels.shape != (1,):
        raise UserError(
            f"{name}: labels are {labels.dtype} of shape {tuple(labels.shape[1:])} for a sample\n"
            f"{EXPECTED_LABEL}"
        )


def _known_labels(dataset: Any) -> Tensor | None:
    """Return the labels that a data set has in an attribute; None if there is none."""
    match dataset:
        case Subset():
            whole = _known_labels(dataset.dataset)
            return None if whole is None else whole[list(dataset.indices)]
        case ConcatDataset():
            known = [_known_labels(part) for part in dataset.datasets]
            return None if any(labels is None for labels in known) else torch.cat(known)  # type: ignore[arg-type]
        case TensorDataset():
            return dataset.tensors[-1].long()
    for name in ("targets", "labels"):
        values = getattr(dataset, name, None)
        if isinstance(values, list | tuple | np.ndarray | Tensor) and len(values):
            try:
                labels = torch.as_tensor(values)
            except (TypeError, ValueError):  # for example, labels given as names
                continue
            return None if labels.is_floating_point() or labels.ndim != 1 else labels.long()
    return None


def _make_pair(batch: Any, is_empty: bool) -> Batch:
    """Return inputs and int64 labels of a batch; without its samples if it should be empty."""
    inputs, given = batch
    labels = torch.as_tensor(given).long()
    return (inputs[:0], labels[:0]) if is_empty else (inputs, labels)


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, Python and NumPy in the body, then restore their states.

    Generators of GPUs are not seeded.
    """
    with isolate_rng(include_cuda=False):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        yield


@dataclass(frozen=True)
class _Reproducible(Dataset[Any]):
    """Data set whose random draws are a function of a sample's index and of `draw`."""

    dataset: Dataset[Any]
    draw: int

    def __getitem__(self, index: int) -> Any:
        with global_seed((self.draw * 1_000_003 + index) % 2**32):
            return self.dataset[index]
