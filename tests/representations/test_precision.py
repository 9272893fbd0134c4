"""Products of residuals that are rounded to bfloat16, and the precision of torch's products."""

import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from bnstudy.metrics import METRICS, evaluate
from bnstudy.representations import Layer, capture
from bnstudy.representations import precision as module
from bnstudy.representations.precision import in_float32, should_round
from bnstudy.representations.sums import ClassSums, Products
from tests.conftest import SMALL, CommandLine, description
from tests.metrics.samples import generator

COUNT, UNITS, CLASSES = 300, 1500, 10
LABELS = torch.arange(COUNT) % CLASSES
# Counts of samples, whose decisions may change: the bound is that of 2 samples.
DECISIONS = ("knn_purity", "kmeans_purity", "linear_probe")
NAMES = [name for name, metric in METRICS.items() if metric.needs & {"variation", "distances"}]
# Standard errors by bootstrap are not exact to more than some percent anyway.
NAMES.remove("intrinsic_dimension_error")


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


CASES: dict[str, tuple[Callable[[], Tensor], bool]] = {
    "untrained": (lambda: factors().relu(), True),
    "trained": (lambda: (factors() + means(5)).relu(), True),
    "collapsed": (lambda: 1e-5 * factors() + means(1), True),
    "offset": (lambda: factors() + means(5) + 1e3, True),
    "noise": (lambda: normal(COUNT, UNITS) + means(0.5), False),
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


@pytest.mark.parametrize("name", CASES)
def test_metrics_are_those_of_float64(name: str) -> None:
    x = case(name)
    layer = Layer(x, LABELS, precision="bfloat16")
    metrics = [METRICS[metric] for metric in NAMES]
    found = evaluate(metrics, layer)
    expected = evaluate(metrics, in_float64(x))
    if name == "constant":
        assert all(math.isnan(value.number) for value in found.values())
        return
    assert layer.products.is_rounded == CASES[name][1]
    for metric, value in expected.items():
        bound = {"abs": 2 / COUNT, "rel": 0} if metric in DECISIONS else {"rel": 1e-4, "abs": 1e-12}
        assert found[metric].number == pytest.approx(value.number, nan_ok=True, **bound), metric


@pytest.mark.parametrize("name", ["trained", "collapsed"])
def test_a_layer_read_in_blocks_is_rounded_too(name: str) -> None:
    x = case(name)
    network = torch.nn.Sequential(torch.nn.Unflatten(1, (UNITS, 1)), torch.nn.Identity())
    batches = list(zip(x.split(100), LABELS.split(100), strict=True))
    room = 6 * 4 * COUNT**2 + 2 * 4 * 2**24 + 700 * 4 * COUNT
    (layer,) = capture(network, batches, ["1"], memory_budget=room / 2**30, precision="bfloat16")
    assert layer.activations is None
    assert layer.product_precision == "bfloat16"
    whole = Layer(x, LABELS, precision="bfloat16")
    for metric in ("silhouette", "participation_ratio", "effective_rank", "knn_purity"):
        assert METRICS[metric](layer) == pytest.approx(METRICS[metric](whole), rel=1e-4)


def test_rounded_operands_are_multiplied_exactly() -> None:
    products = Layer(case("trained"), LABELS, precision="bfloat16").products
    with in_float32(LABELS.device):
        sums = Layer(case("trained"), LABELS).class_sums
        residuals, *_ = sums._residuals(case("trained")[:, :, None])
    rounded = residuals.bfloat16().double()
    expected = rounded @ rounded.T
    assert (products.residuals.double() - expected).abs().max() < 1e-5 * expected.diagonal().max()
    assert torch.equal(products.residuals, products.residuals.T)


def test_few_units_and_float32_are_not_rounded() -> None:
    cpu = torch.device("cpu")
    assert should_round("bfloat16", 1000, cpu)
    assert not should_round("bfloat16", 999, cpu)
    assert not should_round("float32", 10**5, cpu)
    assert Layer(case("trained"), LABELS).product_precision is None
    layer = Layer(case("trained"), LABELS)
    assert layer.products is layer.unrounded_products
    assert layer.product_precision == "float32"


@pytest.mark.parametrize(("seconds", "is_faster"), [((1.0, 3.0), True), ((1.0, 1.1), False)])
def test_auto_takes_what_is_faster_here(
    monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], is_faster: bool
) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += seconds[0 if module.BACKENDS[1].fp32_precision == "bf16" else 1] / 2
        return now

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(module.time, "perf_counter", clock)
    module._is_faster.cache_clear()
    try:
        assert should_round("auto", 10**4, torch.device("cpu")) == is_faster
    finally:
        module._is_faster.cache_clear()


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
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    for backend in module.BACKENDS:
        backend.fp32_precision = "none"


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
        with module.at_bfloat16_speed():
            assert [backend.fp32_precision for backend in module.BACKENDS] == ["tf32", "bf16"]
        assert [backend.fp32_precision for backend in module.BACKENDS] == inside == ["ieee"] * 2
    assert state() == before
    expected = evaluate([METRICS["silhouette"]], Layer(case("trained"), LABELS))
    assert not math.isnan(expected["silhouette"].number)
    assert state() == before
    torch.backends.fp32_precision = "ieee"  # what is inherited is still inherited
    if before[1:] == ("tf32", "tf32", "tf32", "tf32"):
        assert state()[1:4] == ("ieee", "ieee", "ieee")


def test_the_precision_is_recorded_and_hardly_matters(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_is_faster", lambda device: True)
    names = ["silhouette", "within_between_ratio", "participation_ratio", "intrinsic_dimension"]
    run = (*SMALL, f"metrics.names=[{','.join(names)}]")
    values: dict[tuple[str, str, str], dict[str, float]] = {}
    for precision in ("auto", "float32"):
        study = f"study={precision}"
        result = command_line(*run, f"metrics.precision={precision}", study, "seed=0,1,2", "-m")
        assert result.returncode == 0, result.stderr
        for cell in sorted((tmp_path / "multirun" / precision).glob("*-*/")):
            precisions = description(cell)["precisions"]
            assert precisions.keys() == {"block01", "block02"}
            found = {one for layer in precisions.values() for one in layer}
            assert ("bfloat16" in found) == (precision == "auto")
            for row in pq.read_table(cell / "metrics.parquet").to_pylist():
                if row["epoch"] == 2 and row["metric"] in names:
                    key = (row["split"], row["layer"], row["metric"])
                    values.setdefault((precision, *key), []).append(row["value"])
    for (precision, *key), found in values.items():
        if precision == "auto":
            other = torch.tensor(values["float32", *key])
            difference = (torch.tensor(found) - other).abs().max()
            assert difference < 0.01 * other.std(), key
