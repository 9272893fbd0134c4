"""Degenerate layers: each metric returns a number or the reason why it is undefined."""

import math

import pytest
import torch
from torch import Tensor

from bnstudy.metrics import METRICS, chosen, evaluate
from bnstudy.representations import Layer
from tests.metrics.samples import ALONE, NETWORK, generator, read_from_a_network, streamed


def classes(count: int, num_classes: int) -> Tensor:
    return torch.arange(count) % num_classes


def rand(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator(0))


def with_one(value: float) -> Tensor:
    return rand(50, 20).index_fill(0, torch.tensor([3]), value)


DEGENERATE = {
    "huge": (3e19 * rand(50, 20), classes(50, 5)),
    "nearly too large": (3e11 * rand(50, 4, 3, 3), classes(50, 5)),
    "nearly too small": (3e-12 * rand(50, 4, 3, 3), classes(50, 5)),
    "tiny": (1e-25 * rand(50, 20), classes(50, 5)),
    "the tiniest": (1e-45 * torch.ones(50, 20).tril(), classes(50, 5)),
    "one large unit": (rand(50, 20).index_fill(1, torch.tensor([3]), 1e11), classes(50, 5)),
    "a dead layer": (torch.zeros(50, 4, 3, 3), classes(50, 5)),
    "a constant layer": (torch.full((50, 20), 0.1), classes(50, 5)),
    "a constant channel": (
        rand(50, 4, 3).index_fill(1, torch.tensor([1]), 7),
        classes(50, 5),
    ),
    "nearly constant": (1 + 1e-7 * rand(50, 20).round(), classes(50, 5)),
    "no sample": (torch.ones(0, 4, 3, 3), classes(0, 1)),
    "one sample": (torch.ones(1, 4, 3, 3), classes(1, 1)),
    "two samples": (rand(2, 20), classes(2, 2)),
    "two samples of a class": (rand(2, 20), classes(2, 1)),
    "two samples that are the same": (torch.ones(2, 20), classes(2, 2)),
    "three samples": (rand(3, 20), classes(3, 2)),
    "four samples": (rand(4, 20), classes(4, 2)),
    "three samples of whole numbers": (
        torch.tensor([[0.0, 1, 1, 1], [1, 1, 0, -1], [-1, 0, -1, 1]]),
        classes(3, 2),
    ),
    "a unit of whole numbers": (torch.tensor([[0.0], [2], [-1], [-2], [0]]), classes(5, 3)),
    "one class": (rand(50, 20), classes(50, 1)),
    "a class a sample": (rand(50, 20), classes(50, 50)),
    "a class a sample but for one": (rand(50, 20), classes(50, 49)),
    "one unit": (rand(50, 1), classes(50, 5)),
    "one unit that is mostly silent": (torch.eye(50, 1), classes(50, 5)),
    "more units than samples": (rand(10, 90), classes(10, 5)),
    "as many units as samples": (rand(20, 20), classes(20, 5)),
    "NaN": (with_one(math.nan), classes(50, 5)),
    "infinity": (with_one(math.inf), classes(50, 5)),
    "minus infinity": (with_one(-math.inf), classes(50, 5)),
    "every sample twice": (rand(25, 20).repeat(2, 1), classes(50, 5)),
    "all samples but one the same": (torch.eye(50, 20)[:, :1].repeat(1, 9), classes(50, 5)),
    "classes that are points": (torch.eye(5, 20).repeat(10, 1), classes(50, 5)),
    "classes whose means are the same": (torch.eye(2, 20).repeat_interleave(25, 0), classes(50, 5)),
    "opposite samples": (torch.tensor([[1.0], [-1.0]]).repeat(25, 9), classes(50, 5)),
    "integers in bfloat16": (torch.arange(1000.0).view(50, 20).bfloat16(), classes(50, 5)),
    "differences too small for float32": (1 + 1e-12 * rand(50, 20).double(), classes(50, 5)),
    "more than float32 holds": (1e40 * rand(50, 20).double(), classes(50, 5)),
    "units that are all but 0": (
        torch.cat([rand(50, 10), 1e-24 * rand(50, 5), 1e-40 * rand(50, 5)], 1),
        classes(50, 5),
    ),
    "half precision": (rand(50, 20).half(), classes(50, 5)),
}


def read(case: str, how: str) -> Layer:
    is_streamed = how == "streamed" and case != "no sample"
    return (streamed if is_streamed else Layer)(*DEGENERATE[case])


@pytest.mark.parametrize("how", ["held", "streamed"])
@pytest.mark.parametrize("case", DEGENERATE)
def test_a_degenerate_layer_gives_numbers_or_reasons(case: str, how: str) -> None:
    values = evaluate(METRICS.values(), read(case, how))
    assert list(values) == list(METRICS)
    for name, (number, reason, is_applicable) in values.items():
        assert math.isfinite(number) if reason is None else math.isnan(number), name
        assert is_applicable or name in NETWORK, name


@pytest.mark.parametrize("case", [case for case in DEGENERATE if case != "no sample"])
def test_a_degenerate_layer_of_a_network_gives_numbers_or_reasons(case: str) -> None:
    activations, labels = DEGENERATE[case]
    layer = read_from_a_network(activations.float(), labels, num_classes=50)
    for name, (number, reason, _) in evaluate(chosen(sorted(NETWORK)), layer).items():
        assert math.isfinite(number) if reason is None else math.isnan(number), name


@pytest.mark.parametrize(
    "case", ["nearly too large", "one unit", "three samples", "classes that are points"]
)
def test_held_or_streamed_is_the_same(case: str) -> None:
    held, blocks = (evaluate(chosen(ALONE), read(case, how)) for how in ("held", "streamed"))
    for name, (number, reason, _) in held.items():
        assert blocks[name].number == pytest.approx(number, rel=1e-3, abs=1e-5, nan_ok=True)
        assert blocks[name].reason == reason


REASONS = [
    ("a dead layer", "silhouette", "the same representation"),
    ("a dead layer", "hoyer", "activations are 0"),
    ("a dead layer", "anisotropy", "the same representation"),
    ("a dead layer", "soft_rank", "activations are 0"),
    ("a dead layer", "lifetime_sparseness", "activations are 0"),
    ("a dead layer", "norm_cv", "activations are 0"),
    ("a dead layer", "skewness", "no channel varies"),
    ("a constant layer", "kmeans_nmi", "the same representation"),
    ("a constant layer", "linear_probe", "the same representation"),
    ("a constant layer", "kurtosis", "no channel varies"),
    ("no sample", "unit_sparsity", "no samples"),
    ("one sample", "lifetime_sparseness", "only one sample"),
    ("one sample", "intrinsic_dimension", "the same representation"),
    ("two samples", "knn_purity", "fewer than 11 samples"),
    ("two samples", "best_k", "fewer than 3 samples"),
    ("two samples", "intrinsic_dimension", "fewer than 3 samples"),
    ("one class", "davies_bouldin", "only one class"),
    ("one unit", "hoyer", "only one unit"),
    ("a class a sample", "silhouette", "only one sample"),
    ("a class a sample", "kmeans_ari", "only one sample"),
    ("a class a sample", "dunn", "no class has any spread"),
    ("a class a sample", "intraclass_silhouette", "no class has 3 samples"),
    ("NaN", "unit_sparsity", "not finite"),
    ("infinity", "mean", "not finite"),
    ("huge", "soft_rank", "outside of float32's range"),
    ("huge", "knn_purity", "outside of float32's range"),
    ("tiny", "silhouette", "outside of float32's range"),
    ("every sample twice", "intrinsic_dimension", "too few samples have neighbours"),
    ("classes that are points", "calinski_harabasz", "no class has any spread"),
    ("classes whose means are the same", "nc1", "all class means are the same"),
    ("classes whose means are the same", "davies_bouldin", "the means of two classes are the same"),
]


@pytest.mark.parametrize("how", ["held", "streamed"])
@pytest.mark.parametrize(("case", "name", "words"), REASONS)
def test_the_reason_is_told(case: str, name: str, words: str, how: str) -> None:
    ((number, reason, is_applicable),) = evaluate(chosen([name]), read(case, how)).values()
    assert math.isnan(number)
    assert words in str(reason)
    assert is_applicable


@pytest.mark.parametrize("how", ["held", "streamed"])
@pytest.mark.parametrize("case", ["a constant layer", "one sample"])
def test_samples_that_are_all_the_same_have_one_direction(case: str, how: str) -> None:
    assert METRICS["soft_rank"](read(case, how)) == pytest.approx(1, rel=1e-6)


def test_what_is_known_of_a_dead_layer_is_told() -> None:
    values = evaluate(chosen(ALONE), Layer(*DEGENERATE["a dead layer"]))
    known = {name: value.number for name, value in values.items() if value.reason is None}
    silent = ["unit_sparsity", "channel_sparsity", "dead_channels", "dead_units", "saturation"]
    empty = ["unit_sparsity_channel_std", "norm_mean", "mean", "variance"]
    assert known == dict.fromkeys(silent, 1) | dict.fromkeys(empty, 0)
