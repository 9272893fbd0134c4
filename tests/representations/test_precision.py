"""Ways to multiply residuals, and the precision of torch's products."""

import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bnstudy.errors import UserError
from bnstudy.metrics import METRICS, evaluate
from bnstudy.representations import Layer, capture
from bnstudy.representations import precision as module
from bnstudy.representations.precision import (
    FLOAT32,
    SPLIT,
    Multiplication,
    choose_multiplication,
    in_float32,
)
from bnstudy.representations.sums import ClassSums, Products
from bnstudy.trained.finished_run import FinishedRun
from bnstudy.trained.selection import Selection
from tests.conftest import SMALL, CommandLine, description, read_rows
from tests.metrics.samples import generator

COUNT, UNITS, CLASSES = 300, 1500, 10
LAYERS = ("block01", "block02")  # of a small run
LABELS = torch.arange(COUNT) % CLASSES
# Counts of samples, whose decisions may change: the bound is that of 2 samples.
DECISIONS = ("knn_purity", "kmeans_purity", "linear_probe")
NAMES = [name for name, metric in METRICS.items() if metric.needs & {"variation", "distances"}]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def factors() -> Tensor:
    """Create representations that vary in 30 directions, as those of networks do in few."""
    return normal(COUNT, 30, seed=3) @ normal(30, UNITS, seed=4)


def means(scale: float) -> Tensor:
    return scale * normal(CLASSES, UNITS, seed=1)[LABELS]


def modes(apart: float) -> Tensor:
    is_far = torch.rand(COUNT, generator=generator(7)) < 0.5
    return apart * is_far[:, None] * normal(UNITS, seed=8)


def outlier() -> Tensor:
    x = factors() + means(5)
    x[3] *= 1e4
    return x


# Representations, and whether they need not be multiplied in float32.
CASES: dict[str, tuple[Callable[[], Tensor], bool]] = {
    "untrained": (lambda: factors().relu(), True),
    "trained": (lambda: (factors() + means(5)).relu(), True),
    "collapsed": (lambda: 1e-5 * factors() + means(1), False),
    "offset": (lambda: (factors() + means(5)).relu() + 1e3, True),
    "noise": (lambda: normal(COUNT, UNITS) + means(0.5), True),
    "collapsed noise": (lambda: 1e-5 * normal(COUNT, UNITS) + means(1), False),
    "far modes": (lambda: factors() + means(5) + modes(1e4), False),
    "heavy tails": (lambda: (2 * factors()).sign() * (0.7 * factors()).exp(), False),
    "an outlier": (outlier, False),
    "constant": (lambda: torch.ones(COUNT, UNITS), False),
}


@cache
def case(name: str) -> Tensor:
    return CASES[name][0]()


def in_float64(x: Tensor) -> Layer:
    """Create a layer all of whose sums are computed in float64."""
    layer = Layer(x, LABELS)
    with in_float32(x.device):
        exact = layer.in_float64(Products)
    layer._sums |= {Products: exact, ClassSums: exact}
    return layer


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_metrics_are_those_of_float64(name: str) -> None:
    x = case(name)
    layer = Layer(x, LABELS, precision="bfloat16x3")
    metrics = [METRICS[metric] for metric in NAMES]
    found = evaluate(metrics, layer)
    expected = evaluate(metrics, in_float64(x))
    if name == "constant":
        assert all(math.isnan(value.number) for value in found.values())
        return
    assert layer.product_precision == ("bfloat16x3" if CASES[name][1] else "float32")
    for metric, value in expected.items():
        bound = {"abs": 2 / COUNT, "rel": 0} if metric in DECISIONS else {"rel": 1e-4, "abs": 1e-12}
        assert found[metric].number == pytest.approx(value.number, nan_ok=True, **bound), metric


def test_a_layer_read_in_blocks_is_multiplied_in_the_same_way() -> None:
    x = case("trained")
    network = torch.nn.Sequential(torch.nn.Unflatten(1, (UNITS, 1)), torch.nn.Identity())
    batches = list(zip(x.split(100), LABELS.split(100), strict=True))
    room = 6 * 4 * COUNT**2 + 2 * 4 * 2**24 + 700 * 4 * COUNT
    (layer,) = capture(network, batches, ["1"], memory_budget=room / 2**30, precision="bfloat16x3")
    assert layer.activations is None
    assert layer.product_precision == "bfloat16x3"
    whole = Layer(x, LABELS)
    for metric in ("silhouette", "participation_ratio", "effective_rank", "knn_purity"):
        assert METRICS[metric](layer) == pytest.approx(METRICS[metric](whole), rel=1e-5)


@pytest.mark.parametrize("wrong", ["bf16", "float64", "", None])
def test_an_unknown_precision_is_refused(wrong: Any) -> None:
    message = f"^precision={wrong} is not allowed; expected auto, bfloat16x3, float32$"
    with pytest.raises(UserError, match=message):
        Layer(torch.zeros(2, 2), torch.arange(2), precision=wrong)
    batches = [(torch.zeros(2, 2), torch.arange(2))]
    with pytest.raises(UserError, match=message):
        capture(torch.nn.Sequential(torch.nn.ReLU()), batches, precision=wrong)


@pytest.mark.parametrize("name", ["trained", "offset", "noise"])
def test_products_are_exact_to_their_resolution(name: str) -> None:
    layer = Layer(case(name), LABELS, precision="bfloat16x3")
    exact = in_float64(case(name)).products.residuals_gram
    norms = exact.diagonal().sqrt()
    errors = (layer.products.residuals_gram - exact).abs() / (norms[:, None] * norms)
    assert 1e-8 < errors.max() < SPLIT.resolution
    assert errors.square().mean().sqrt() < SPLIT.resolution / 16
    assert torch.equal(layer.products.residuals_gram, layer.products.residuals_gram.T)


def test_neighbours_are_exact_whatever_was_computed_before() -> None:
    """Samples that vary in 6 directions, with equal units, so that rounding errors add up."""
    x = normal(500, 6, seed=1).repeat_interleave(200, 1)
    exact = x.double()
    distances = torch.cdist(exact, exact, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.fill_diagonal_(torch.inf).topk(10, largest=False).indices.sort(1).values
    layer = Layer(x, torch.zeros(len(x), dtype=torch.int64), precision="bfloat16x3")
    _ = layer.squared_distances
    assert layer.product_precision == "bfloat16x3"
    _ = layer.spectrum
    assert layer.product_precision == "float32"
    assert torch.equal(layer.neighbours.indices.sort(1).values, nearest)


def test_few_units_and_float32_are_not_split() -> None:
    cpu = torch.device("cpu")
    assert choose_multiplication("bfloat16x3", 1000, cpu) == SPLIT
    assert choose_multiplication("bfloat16x3", 999, cpu) == FLOAT32
    assert choose_multiplication("float32", 10**5, cpu) == FLOAT32
    layer = Layer(case("trained"), LABELS)
    assert layer.product_precision is None
    _ = layer.products
    assert layer.product_precision == "float32"


@pytest.mark.parametrize(
    ("has_units", "split_seconds", "rounds", "chosen"),
    [
        (True, 1, False, SPLIT),
        (True, 1.9, False, FLOAT32),
        (True, 1, True, FLOAT32),
        (False, 1, False, FLOAT32),
    ],
    ids=["faster", "hardly faster", "not exact", "no matrix units"],
)
def test_auto_splits_operands_only_where_that_is_faster_and_exact(
    monkeypatch: pytest.MonkeyPatch,
    has_units: bool,
    split_seconds: float,
    rounds: bool,
    chosen: Multiplication,
) -> None:
    seconds = {FLOAT32: 2, SPLIT: split_seconds}
    now, add_products = 0.0, module.add_products

    def add_in_given_time(
        totals: Tensor, rows: Tensor, tiles: Any, multiplication: Multiplication
    ) -> None:
        nonlocal now
        now += seconds[multiplication]
        if rounds:
            rows = rows.bfloat16().float()
        add_products(totals, rows, tiles, multiplication)

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_units)
    monkeypatch.setattr(module, "TRIAL_ROWS", {"cpu": 64})
    monkeypatch.setattr(module, "add_products", add_in_given_time)
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    assert module._fastest.__wrapped__(torch.device("cpu")) == chosen


def state() -> tuple[str, ...]:
    """Read all of torch's options, by the older functions too; they may raise."""
    try:
        old = torch.get_float32_matmul_precision()
    except RuntimeError:
        old = "mixed"
    backends = torch.backends
    return (
        old,
        backends.fp32_precision,
        backends.cuda.matmul.fp32_precision,
        backends.mkldnn.matmul.fp32_precision,
        backends.cudnn.conv.fp32_precision,
    )


@pytest.fixture
def _restored() -> Iterator[None]:
    before = [backend.fp32_precision for backend in module.BACKENDS]
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    for backend, own in zip(module.BACKENDS, before, strict=True):
        backend.fp32_precision = own


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize(
    "change",
    [
        lambda: None,
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
        lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
        lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    ],
    ids=["as it is", "old high", "old medium", "new tf32", "new bf16", "new for all"],
)
def test_no_precision_stays_set_whatever_it_was_set_by(change: Callable[[], None]) -> None:
    change()
    before = state()
    with in_float32(torch.device("cpu")):
        inside = [backend.fp32_precision for backend in module.BACKENDS]
        with module._set_precision(module.LOWER_PRECISION):
            assert [backend.fp32_precision for backend in module.BACKENDS[:2]] == ["tf32", "bf16"]
        assert [backend.fp32_precision for backend in module.BACKENDS] == inside == ["ieee"] * 4
    assert state() == before
    expected = evaluate([METRICS["silhouette"]], Layer(case("trained"), LABELS))
    assert not math.isnan(expected["silhouette"].number)
    assert state() == before
    torch.backends.fp32_precision = "ieee"  # what is inherited is still inherited
    if before[1:] == ("tf32", "tf32", "tf32", "tf32"):
        assert state()[1:4] == ("ieee", "ieee", "ieee")


def test_networks_are_read_in_full_float32() -> None:
    found = []

    class Watch(torch.nn.Identity):
        def forward(self, x: Tensor) -> Tensor:
            found.append([backend.fp32_precision for backend in module.BACKENDS])
            return x

    before = state()
    batches = [(torch.ones(4, 2, 3, 3), torch.arange(4) % 2)]
    assert list(capture(torch.nn.Sequential(Watch()), batches, ["0"]))
    assert found
    assert all(precisions == ["ieee"] * 4 for precisions in found)
    assert state() == before


@pytest.mark.slow
def test_the_precision_is_recorded_and_hardly_matters(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_fastest", lambda device: SPLIT)
    names = ["silhouette", "within_between_ratio", "participation_ratio", "intrinsic_dimension"]
    options = (f"metrics.names=[{','.join(names)}]", "metrics.precision=auto", "seed=0,1,2", "-m")
    result = command_line(*SMALL, *options)
    assert result.returncode == 0, result.stderr
    found: dict[tuple[str, str], list[float]] = {}
    expected: dict[tuple[str, str], list[float]] = {}
    for cell in sorted((tmp_path / "multirun").glob("*/*-*/")):
        assert description(cell)["precisions"] == {layer: ["bfloat16x3"] for layer in LAYERS}
        for row in read_rows(cell):
            if row["epoch"] == 2 and row["split"] == "test" and row["metric"] in names:
                found.setdefault((row["layer"], row["metric"]), []).append(row["value"])
        for layer in FinishedRun.open(cell, None).read_layers(Selection("test", 200, ("act",))):
            for name in names:
                expected.setdefault((layer.name, name), []).append(METRICS[name](layer))
            assert layer.product_precision == "float32"
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        difference = (torch.tensor(found[key]) - torch.tensor(values)).abs().max()
        assert difference < 0.01 * torch.tensor(values).std(), key
