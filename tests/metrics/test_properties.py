"""What each metric declares of itself, and what it does where it is undefined."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bnstudy.errors import UserError
from bnstudy.metrics import METRICS, check_names, evaluate
from bnstudy.representations import Layer
from tests.metrics.test_against_references import sample

# Where a sample is as near to two clusters, rounding may send it to either.
LOOSE = {"kmeans_purity": 0.02, "kmeans_nmi": 0.02, "kmeans_ari": 0.02, "knn_purity": 0.005}


def partly_dead(seed: int) -> tuple[Tensor, Tensor]:
    """A channel is silent on every sample, and another on one class."""
    activations, labels = sample(4, 0.3, count=150, seed=seed % 1000)
    activations[:, 5] = 0
    activations[labels == 0, 4] = 0
    return activations, labels


def rotate(x: Tensor, seed: int) -> Tensor:
    flat = x.flatten(1).double()
    square = torch.randn(flat.shape[1], flat.shape[1], generator=generator(seed)).double()
    return (flat @ torch.linalg.qr(square).Q).float().view_as(x)


def scale(x: Tensor, seed: int) -> Tensor:
    return x * 10 ** (20 * torch.rand((), generator=generator(seed)) - 10)


def translate(x: Tensor, seed: int) -> Tensor:
    return x + torch.randn(x.shape[1:], generator=generator(seed))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


CHANGES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "rotation": rotate,
    "scale": scale,
    "translation": translate,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_invariances_are_as_declared(name: str, change: str, seed: int) -> None:
    activations, labels = partly_dead(seed)
    metric = METRICS[name]
    before = metric(Layer(activations, labels))
    after = metric(Layer(CHANGES[change](activations, seed), labels))
    if change in metric.invariant_to:
        assert after == pytest.approx(before, rel=1e-3, abs=LOOSE.get(name, 1e-5))
    else:  # what is not declared does change it
        assert after != pytest.approx(before, rel=1e-3)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(2, 60),
    num_classes=st.integers(1, 8),
    spread=st.sampled_from([0.0, 0.1, 3.0]),
)
def test_values_keep_their_bounds(seed: int, count: int, num_classes: int, spread: float) -> None:
    activations, labels = sample(num_classes, spread, count=count, seed=seed)
    layer = Layer(activations, labels)
    for metric in METRICS.values():
        value, reason = evaluate(metric, layer)
        if reason is None:
            low, high = metric.bounds
            assert low - 1e-6 <= value <= high + 1e-6, metric.name
        else:
            assert math.isnan(value)


@pytest.mark.parametrize("name", METRICS)
def test_the_order_of_the_samples_does_not_matter(name: str) -> None:
    activations, labels = partly_dead(0)
    order = torch.randperm(150, generator=generator(0))
    value = METRICS[name](Layer(activations[order], labels[order]))
    expected = METRICS[name](Layer(activations, labels))
    assert value == pytest.approx(expected, rel=1e-5, abs=LOOSE.get(name, 0))


def test_separated_classes_reach_the_bounds() -> None:
    activations, labels = sample(4, 1e-4, count=200)
    layer = Layer(activations, labels)
    for name in ("silhouette", "knn_purity", "kmeans_purity", "kmeans_nmi", "kmeans_ari"):
        assert METRICS[name](layer) == pytest.approx(METRICS[name].bounds[1], abs=1e-3)
    for name in ("davies_bouldin", "within_between_ratio"):
        assert METRICS[name](layer) == pytest.approx(0, abs=1e-3)
    assert METRICS["calinski_harabasz"](layer) > 1e6


def test_planted_sparsity_is_found() -> None:
    activations = torch.ones(100, 8, 4, 4)
    activations[:, :2] = 0
    activations[:, 2:, :2] = 0
    layer = Layer(activations, torch.arange(100) % 2)
    assert METRICS["dead_channels"](layer) == METRICS["channel_sparsity"](layer) == 0.25
    assert METRICS["unit_sparsity"](layer) == 0.25 + 0.75 * 0.5


def labels_of(count: int, num_classes: int) -> Tensor:
    return torch.arange(count) % num_classes


DEGENERATE = {
    "huge": (3e19 * torch.rand(50, 20), labels_of(50, 5)),
    "tiny": (1e-25 * torch.rand(50, 20), labels_of(50, 5)),
    "a dead layer": (torch.zeros(50, 4, 3, 3), labels_of(50, 5)),
    "a constant layer": (torch.full((50, 20), 0.1), labels_of(50, 5)),
    "one sample": (torch.ones(1, 4, 3, 3), labels_of(1, 1)),
    "no sample": (torch.ones(0, 4, 3, 3), labels_of(0, 1)),
    "one class": (torch.rand(50, 20), labels_of(50, 1)),
    "a class a sample": (torch.rand(50, 20), labels_of(50, 50)),
    "NaN": (torch.rand(50, 20).index_fill(0, torch.tensor([3]), math.nan), labels_of(50, 5)),
    "infinity": (torch.rand(50, 20).index_fill(0, torch.tensor([3]), math.inf), labels_of(50, 5)),
    "every sample twice": (torch.rand(25, 20).repeat(2, 1), labels_of(50, 5)),
    "classes that are points": (torch.eye(5, 20).repeat(10, 1), labels_of(50, 5)),
    "classes that are one point": (torch.eye(2, 20).repeat_interleave(25, 0), labels_of(50, 5)),
}


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("name", METRICS)
def test_degenerate_layers_give_a_number_or_a_reason(name: str, case: str) -> None:
    value, reason = evaluate(METRICS[name], Layer(*DEGENERATE[case]))
    assert math.isfinite(value) if reason is None else math.isnan(value)


@pytest.mark.parametrize(
    ("case", "name", "words"),
    [
        ("a dead layer", "silhouette", "the same representation"),
        ("a constant layer", "kmeans_nmi", "the same representation"),
        ("no sample", "unit_sparsity", "no samples"),
        ("one class", "davies_bouldin", "only one class"),
        ("a class a sample", "silhouette", "a class of its own"),
        ("NaN", "unit_sparsity", "not finite"),
        ("huge", "knn_purity", "exceed float32"),
        ("tiny", "silhouette", "exceed float32"),
        ("classes that are points", "calinski_harabasz", "no class has any spread"),
    ],
)
def test_the_reason_is_told(case: str, name: str, words: str) -> None:
    value, reason = evaluate(METRICS[name], Layer(*DEGENERATE[case]))
    assert math.isnan(value)
    assert words in str(reason)


def test_an_unknown_name_lists_the_near_ones() -> None:
    with pytest.raises(UserError, match=r"davis_bouldin; near: .*davies_bouldin"):
        check_names(["silhouette", "davis_bouldin"])


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_says_where_it_is_from(name: str) -> None:
    assert METRICS[name].source
    assert METRICS[name].function.__doc__
