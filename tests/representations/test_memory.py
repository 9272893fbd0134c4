"""Reading of a network within a memory budget."""

import math
import platform
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from bnstudy.errors import UserError
from bnstudy.metrics import METRICS, evaluate
from bnstudy.representations import capture
from tests.representations.networks import Batches, batches, cnn, state

GIBIBYTE = 2**30
SITES = ["conv", "act", "features"]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the working memory, which would exceed these layers."""
    for module in ("sums", "capture"):
        monkeypatch.setattr(sys.modules[f"bnstudy.representations.{module}"], "BLOCK_NUMEL", 2**12)


def fixed(count: int, distances: bool = True) -> int:
    """Return the bytes that metrics need for any layer."""
    return 6 * 4 * count**2 * distances + 2 * 4 * 2**12


def budget(count: int, activations: int, distances: bool = True) -> float:
    return (fixed(count, distances) + activations) / GIBIBYTE


def passes_of(model: nn.Module) -> list[int]:
    """Record the number of samples of each following forward pass."""
    passes: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    return passes


DATA = batches(40, 15, num_classes=4)
LAYER = 40 * 4 * 16 * 16 * 4  # bytes of the largest layer


@pytest.mark.slow
@pytest.mark.parametrize("share", [5, 1, 0.6, 0.25])
def test_a_small_budget_gives_the_same_numbers(share: float) -> None:
    model = cnn()
    whole = list(capture(model, DATA, sites=SITES))
    before = state(model)
    layers = {}
    held = []
    for layer in capture(
        model, DATA, sites=SITES, memory_budget=budget(45, int(share * 1.2 * LAYER))
    ):
        held.append(layer.activations is not None)
        layers[layer.tap] = evaluate(METRICS.values(), layer)
    assert state(model) == before
    assert all(held) == (share >= 1)
    assert {one.tap for one in whole} == set(layers)
    for one in whole:
        for name, expected in evaluate(METRICS.values(), one).items():
            number, reason, is_applicable = layers[one.tap][name]
            assert number == pytest.approx(expected.number, rel=1e-3, abs=1e-5, nan_ok=True), (
                one.tap,
                name,
            )
            assert (reason, is_applicable) == (expected.reason, expected.is_applicable)


def test_layers_come_in_the_order_of_computation_where_one_pass_is_enough() -> None:
    layers = list(capture(cnn(depth=4), DATA, sites=SITES))
    indices = [one.tap.layer_index for one in layers]
    assert indices == sorted(indices)


@pytest.mark.parametrize("room", [20, 3, 2, 1])
def test_layers_are_read_in_as_few_passes_as_the_budget_allows(room: int) -> None:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1 if i == 0 else 4, 4, 3, padding=1) for i in range(6)]
    model = nn.Sequential(*convolutions)
    data = batches(20, 20)
    layer = 20 * 4 * 16 * 16 * 4
    passes = passes_of(model)
    layers = capture(model, data, sites=["conv"], memory_budget=budget(20, room * layer + 100))
    assert len(list(layers)) == 6
    _, *after_the_first = passes  # the first pass is the trial run
    assert sum(after_the_first) == 20 * math.ceil(6 / room)


def test_without_distances_there_is_more_room() -> None:
    count = 60
    data = batches(count, 30)
    largest = count * 4 * 16 * 16 * 4
    tight = budget(count, largest, distances=False)
    assert fixed(count) - fixed(count, distances=False) > 80_000
    layers = list(capture(cnn(), data, memory_budget=tight, distances=False))
    assert len(layers) == 3
    assert all(one.activations is not None for one in layers)


@pytest.mark.parametrize("wrong", [float("inf"), float("nan"), 1e308, "2", None])
def test_a_budget_that_is_no_finite_number_is_refused(wrong: Any) -> None:
    with pytest.raises(UserError, match=r"^memory_budget=.* not allowed; expected a finite number"):
        capture(cnn(), DATA, memory_budget=wrong)


@pytest.mark.parametrize("distances", [True, False])
def test_a_budget_that_is_too_small_is_told(distances: bool) -> None:
    channel = 40 * 16 * 16 * 4
    enough = budget(40, channel, distances)
    with pytest.raises(UserError, match=r"memory_budget=.* 40 samples .*\n.*memory_budget"):
        capture(cnn(), DATA, memory_budget=0.99 * enough, distances=distances)
    layers = list(capture(cnn(), DATA, memory_budget=1.001 * enough, distances=distances))
    assert len(layers) == 3
    assert any(one.activations is None for one in layers)


def test_a_layer_read_in_blocks_without_distances_has_the_other_metrics() -> None:
    data = batches(40, 20)
    tight = budget(40, LAYER // 2, distances=False)
    first, *_ = capture(cnn(), data, memory_budget=tight, distances=False)
    assert first.activations is None
    expected, *_ = capture(cnn(), data)
    others = [one for one in METRICS.values() if not one.needs_products]
    others.remove(METRICS["mixup_accuracy"])  # see below
    theirs = evaluate(others, expected)
    for name, value in evaluate(others, first).items():
        assert value.number == pytest.approx(theirs[name].number, rel=1e-3, abs=1e-5, nan_ok=True)


def test_no_more_is_held_than_the_budget_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["bnstudy.representations.capture"]
    room, held, hold = LAYER // 2, [], module._run_pass

    def weigh(*arguments: object) -> object:
        rows, labels = hold(*arguments)
        held.append(sum(one.buffer.nbytes for one in rows.values()))
        return rows, labels

    monkeypatch.setattr(module, "_run_pass", weigh)
    assert len(list(capture(cnn(), DATA, sites=["conv"], memory_budget=budget(45, room)))) == 3
    assert 0 < max(held) <= room


def test_the_pairs_of_mixup_do_not_depend_on_the_budget() -> None:
    data = batches(40, 20)
    values = []
    for size in (2, budget(40, LAYER, distances=False), budget(40, LAYER // 2, distances=False)):
        layer, *_ = capture(cnn(), data, memory_budget=size, distances=False)
        values.append(METRICS["mixup_accuracy"](layer))
    assert len(set(values)) == 1


def uneven() -> Batches:
    return [(images.repeat(7, 1, 1, 1), labels.repeat(7)) for images, labels in batches(2, 1)] + [
        (images, labels) for images, labels in batches(40, 40)
    ]


@pytest.mark.slow
def test_batches_that_grow_may_be_read_in_blocks() -> None:
    data = uneven()
    small = list(capture(cnn(), data, memory_budget=budget(54, LAYER // 2)))
    whole = list(capture(cnn(), data))
    by_tap = {one.tap: one for one in small}
    for one in whole:
        assert METRICS["norm_mean"](by_tap[one.tap]) == pytest.approx(METRICS["norm_mean"](one))
        assert METRICS["silhouette"](by_tap[one.tap]) == pytest.approx(
            METRICS["silhouette"](one), rel=1e-4
        )


class Augmented(torch.utils.data.TensorDataset):
    """Data set that flips images at random, as torchvision's transforms do."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        image, label = super().__getitem__(index)
        return image.flip(2) if torch.rand(()) < 0.5 else image, label


@pytest.mark.parametrize("num_classes", [1, 4])
@pytest.mark.parametrize(
    ("kind", "shuffle"), [(torch.utils.data.TensorDataset, True), (Augmented, False)]
)
def test_samples_that_are_not_the_same_again_are_refused(
    kind: type[torch.utils.data.TensorDataset], shuffle: bool, num_classes: int
) -> None:
    images, labels = (torch.cat(parts) for parts in zip(*DATA, strict=True))
    loader = torch.utils.data.DataLoader(kind(images, labels % num_classes), 40, shuffle=shuffle)
    with pytest.raises(ValueError, match=r"same order.*shuffle=False.*augmentation"):
        list(capture(cnn(), loader, memory_budget=budget(40, LAYER)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.uint8])
def test_the_same_samples_are_recognized_however_they_are_divided(dtype: torch.dtype) -> None:
    checksums = sys.modules["bnstudy.representations.capture"]._checksums
    images = torch.cat([images for images, _ in DATA]).mul(50).to(dtype)
    whole = checksums(images)
    assert len(whole.unique()) == len(images)
    for size in (1, 7):
        assert torch.equal(torch.cat([checksums(part) for part in images.split(size)]), whole)
    assert torch.equal(checksums(images.to(memory_format=torch.channels_last)), whole)
    assert (checksums(images.flip(3)) != whole).all()


RETAIN = """
import resource
import torch
from bnstudy.representations.memory import release_memory, retain_memory

def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

size = 10_000_000  # 40 MB
default = faults(size)
retain_memory()
faults(size)
print(default, faults(size), resident())
release_memory()
print(resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept_for_the_next_step_until_it_is_released() -> None:
    run = subprocess.run([sys.executable, "-c", RETAIN], capture_output=True, text=True, check=True)
    default, retained, before, after = map(int, run.stdout.split())
    assert retained < default / 100
    assert before - after > 35e6
