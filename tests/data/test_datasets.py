"""Tests of the adapters from PyTorch data sets to batches and splits."""

from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from bnstudy.data.datasets import DatasetBatches, DatasetModule, SplitSource
from bnstudy.errors import UserError


class Labelled(Dataset[Any]):
    """Samples with any objects as labels."""

    def __init__(self, *labels: Any) -> None:
        self.of_samples = labels

    def __len__(self) -> int:
        return len(self.of_samples)

    def __getitem__(self, index: int) -> Any:
        return torch.ones(4), self.of_samples[index]


def load(train: Dataset[Any]) -> DatasetModule:
    sources = {"train": SplitSource(train), "test": SplitSource(Labelled(0, 1))}
    data = DatasetModule(sources, "data", seed=0, probe={"train": 5, "test": 5})  # type: ignore[arg-type]
    data.setup()
    return data


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("cat", r"train: labels are \('cat',\) for a sample\nExpected: one integer from 0"),
        (["cat", "dog"], r"train: labels are \[\('cat',\), .* for a sample\nExpected"),
        (None, "train: a sample cannot be made a batch .*'NoneType'.*\nExpected: a Lightning"),
        (2**70, "train: a sample cannot be made a batch .*\nExpected: a Lightning"),
        (2**40, "train: a label is 1099511627776, not from 0 to 99999\nExpected: one integer"),
        (100_000, "train: a label is 100000, not from 0 to 99999\nExpected: one integer"),
        (-1, "train: a label is -1, not from 0 to 99999\nExpected: one integer"),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused(label: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        load(Labelled(label, label))
    assert len(str(error.value).splitlines()) == 2


def test_labels_may_be_as_large_as_the_number_of_samples() -> None:
    assert load(Labelled(99_999)).num_classes == 100_000  # for example some of many classes
    labels = torch.arange(100_001)
    assert load(TensorDataset(torch.ones(len(labels), 1), labels)).num_classes == 100_001


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_process_without_a_sample_gets_an_empty_batch(num_workers: int) -> None:
    source = SplitSource(Labelled(2), num_workers=num_workers)
    shares = [
        list(DatasetBatches(source, torch.arange(1), 250, rank=rank, world_size=3))
        for rank in range(3)
    ]
    for ((inputs, labels),), count in zip(shares, (1, 0, 0), strict=True):
        assert (inputs.shape, inputs.dtype) == ((count, 4), torch.float32)
        assert (labels.shape, labels.dtype) == ((count,), torch.int64)
