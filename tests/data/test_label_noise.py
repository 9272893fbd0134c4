"""Tests of label noise, fewer samples and the border of shifted images."""

import itertools

import pytest
import torch
from torchvision.transforms.v2 import functional as transforms

from bnstudy.data.batches import Augment, Normalize
from bnstudy.errors import UserError
from tests.callbacks.training import noise


def test_a_share_of_the_training_labels_is_wrong() -> None:
    clean, some, more = (noise(label_noise=share) for share in (0, 0.2, 0.5))
    truth = clean.labels["train"]
    wrong = [data.labels["train"] != truth for data in (some, more)]
    assert [int(one.sum()) for one in wrong] == [round(share * len(truth)) for share in (0.2, 0.5)]
    assert (wrong[1] | ~wrong[0]).all()  # a smaller share is part of a larger one
    assert torch.equal(some.labels["train"][wrong[0]], more.labels["train"][wrong[0]])
    assert torch.equal(some.labels["test"], clean.labels["test"])
    assert torch.equal(some.probe_indices["train"], clean.probe_indices["train"])
    probe = some.probe("train")
    assert torch.equal(probe.labels, some.labels["train"][some.probe_indices["train"]])
    assert some.read_sha256() == clean.read_sha256()


def test_all_labels_can_be_wrong_and_each_class_occurs() -> None:
    truth, noisy = (noise(label_noise=share).labels["train"] for share in (0, 1))
    assert (noisy != truth).all()
    pairs = set(zip(truth.tolist(), noisy.tolist(), strict=True))
    assert pairs == set(itertools.permutations(truth.unique().tolist(), 2))


def test_as_many_samples_of_each_class_are_used_as_asked_for() -> None:
    few, more = (noise(samples_per_class=count) for count in (3, 9))
    labels = few.labels["train"][few.indices["train"]]
    assert torch.bincount(labels).tolist() == [3] * few.num_classes
    assert set(few.indices["train"].tolist()) < set(more.indices["train"].tolist())
    assert set(few.probe_indices["train"].tolist()) <= set(few.indices["train"].tolist())
    assert few.facts()["train"] == 3 * few.num_classes
    with pytest.raises(UserError, match=r"samples_per_class=100000: .* expected 1 to \d+, or null"):
        noise(samples_per_class=100_000)


@pytest.mark.parametrize("fill", ["mean", "black", "reflect"])
def test_shifted_images_are_crops_with_a_border(fill: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 6, 6), generator=generator, dtype=torch.uint8)
    normalize = Normalize.from_images(images)
    augment = Augment(flip=False, shift=2, fill=fill).with_black_of(normalize)
    moved = augment(normalize(images), generator)
    if fill == "reflect":
        padded = normalize(transforms.pad(images, [2] * 4, padding_mode="reflect"))
    elif fill == "black":
        padded = normalize(transforms.pad(images, [2] * 4))
    else:
        padded = transforms.pad(normalize(images), [2] * 4)
    offsets = list(itertools.product(range(5), repeat=2))
    crops = torch.stack([transforms.crop(padded, *offset, 6, 6) for offset in offsets])
    is_crop = (crops == moved).all(dim=(2, 3, 4))
    assert is_crop.any(0).all()
    assert is_crop.any(1).sum() > 15  # of the 25 crops
