"""Declared properties of the metrics: bounds, invariances and needs."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bnstudy.errors import UserError
from bnstudy.metrics import METRICS, chosen, evaluate
from bnstudy.representations import Layer, capture
from bnstudy.representations.layer import Layer as LayerClass
from bnstudy.representations.sums import Products, Sums
from tests.metrics.samples import (
    ALONE,
    NETWORK,
    generator,
    partly_dead,
    read_from_a_network,
    rotate,
    sample,
    scale,
    streamed,
    translate,
)

# Absolute tolerances: rounding can move a sample that is equally near to two clusters.
LOOSE = {
    "kmeans_purity": 0.02,
    "kmeans_nmi": 0.02,
    "kmeans_ari": 0.02,
    "knn_purity": 0.005,
    "linear_probe": 0.01,
    "best_k": 1,
    "best_k_silhouette": 0.01,
    "intraclass_silhouette": 0.01,
}
SEEDS = st.integers(0, 2**31)


def values_of(layer: Layer) -> dict[str, float]:
    """Compute the metrics that need no network."""
    return {name: one.number for name, one in evaluate(chosen(ALONE), layer).items()}


def different(
    ours: dict[str, float], expected: dict[str, float], rel: float, loose: float = 1
) -> list[str]:
    """List the metrics that differ; `loose` multiplies the absolute tolerances."""
    return [
        name
        for name, value in ours.items()
        if value
        != pytest.approx(expected[name], rel=rel, abs=loose * LOOSE.get(name, 1e-5), nan_ok=True)
    ]


CHANGES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "rotation": rotate,
    "scale": scale,
    "translation": translate,
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
@settings(max_examples=4, deadline=None)
@given(seed=SEEDS)
def test_exactly_the_declared_invariances_hold(change: str, seed: int) -> None:
    activations, labels = partly_dead(seed)
    before = values_of(Layer(activations, labels))
    after = values_of(Layer(CHANGES[change](activations, seed), labels))
    changed = set(different(after, before, rel=1e-3))
    assert changed == {name for name in ALONE if change not in METRICS[name].invariant_to}


def with_units_permuted(x: Tensor, seed: int) -> Tensor:
    return x.flatten(1)[:, torch.randperm(x[0].numel(), generator=generator(seed))].view_as(x)


@pytest.mark.parametrize("change", [*CHANGES, "order of the units"])
@settings(max_examples=4, deadline=None)
@given(seed=SEEDS)
def test_the_last_layers_metrics_change_as_declared(change: str, seed: int) -> None:
    activations, labels = sample(5, 0.3, count=100, seed=seed % 1000, shape=(8,))
    moved = CHANGES.get(change, with_units_permuted)(activations, seed)
    for name in ("nc3", "ncc_agreement"):
        before, after = (
            METRICS[name](last_layer(values, labels, of=activations))
            for values in (activations, moved)
        )
        assert not math.isnan(before)
        kind = "rotation" if change == "order of the units" else change
        if kind in METRICS[name].invariant_to:
            assert after == pytest.approx(before, rel=1e-3)
        else:
            assert after != pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("name", ["nc3", "ncc_agreement"])
def test_the_last_layers_metrics_change_if_one_unit_is_stretched(name: str) -> None:
    activations, labels = sample(5, 1.0, count=100, shape=(8,))
    stretched = activations * torch.tensor([100.0, *[1.0] * 7])
    before, after = (
        METRICS[name](last_layer(values, labels, of=activations))
        for values in (activations, stretched)
    )
    assert after != pytest.approx(before, abs=0.01)


def last_layer(values: Tensor, labels: Tensor, of: Tensor) -> Layer:
    """Read given features in a network whose logits come from other features."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.classifier = nn.Linear(8, 5)

        def forward(self, both: Tensor) -> Tensor:
            features, others = both.unbind(1)
            self.classifier(features)
            return nn.functional.linear(others, self.classifier.weight)

    (layer,) = capture(Network(), [(torch.stack([values, of], 1), labels)], sites=["features"])
    return layer


@settings(max_examples=15, deadline=None)
@given(
    seed=SEEDS,
    count=st.integers(1, 60),
    num_classes=st.integers(1, 8),
    spread=st.sampled_from([0.0, 0.1, 3.0]),
    shape=st.sampled_from([(1,), (4,), (80,), (3, 2, 2)]),
)
def test_values_keep_their_bounds(
    seed: int, count: int, num_classes: int, spread: float, shape: tuple[int, ...]
) -> None:
    activations, labels = sample(num_classes, spread, count=count, seed=seed, shape=shape)
    layer = read_from_a_network(activations, labels, num_classes=8)
    for name, (value, reason, _) in evaluate(METRICS.values(), layer).items():
        if reason is None:
            low, high = METRICS[name].bounds
            assert low - 1e-5 <= value <= high * (1 + 1e-5) + 1e-5, name
        else:
            assert math.isnan(value)


def without_classes(values: Tensor) -> Layer:
    return Layer(values, torch.zeros(len(values)))


def points(num_classes: int) -> Layer:
    """Create small classes that are far from one another."""
    labels = torch.arange(20 * num_classes) % num_classes
    noise = 1e-4 * torch.randn(len(labels), num_classes, generator=generator(0))
    return Layer(torch.eye(num_classes)[labels] + noise, labels)


def halves(*values: float) -> Layer:
    """Create one sample of one unit per value, with alternating classes."""
    return Layer(torch.tensor(values)[:, None], torch.arange(len(values)) % 2)


ONES = without_classes(torch.ones(30, 4, 2, 2))
DEAD = without_classes(torch.zeros(30, 4, 2, 2))
HALF_DEAD = without_classes(torch.ones(30, 4, 2, 2) * torch.tensor([1, 0, 1, 0])[:, None, None])
ONE_HOT = without_classes(torch.eye(20))
LINE = without_classes(torch.arange(1.0, 21)[:, None] * torch.tensor([0.0, 2.0, 1.0]))
REACHED = {
    "unit_sparsity": [(ONES, 0), (DEAD, 1)],
    "channel_sparsity": [(ONES, 0), (DEAD, 1)],
    "dead_channels": [(ONES, 0), (DEAD, 1)],
    "dead_units": [(ONES, 0), (DEAD, 1)],
    "unit_sparsity_channel_std": [(ONES, 0), (HALF_DEAD, 0.5)],
    "saturation": [(ONES, 0), (DEAD, 1)],
    "hoyer": [(ONES, 0), (ONE_HOT, 1)],
    "population_sparseness": [(ONES, 0), (ONE_HOT, 1)],
    "lifetime_sparseness": [(ONES, 0), (ONE_HOT, 1)],
    "silhouette": [(points(4), 1)],
    "davies_bouldin": [(points(4), 0)],
    "calinski_harabasz": [(halves(0, 0, 1, 1), 0)],
    "dunn": [(halves(0, 0, 1, 1), 0)],
    "within_between_ratio": [(points(4), 0)],
    "knn_purity": [(points(4), 1), (Layer(torch.eye(11), torch.arange(11)), 0)],
    "kmeans_purity": [(points(10), 1)],
    "kmeans_nmi": [(points(10), 1), (halves(0, 0, 1, 1), 0)],
    "kmeans_ari": [(points(10), 1), (halves(0, 0, 1, 1), -0.5)],
    "best_k": [(points(2), 2), (points(30), 30)],
    "best_k_silhouette": [(points(4), 1)],
    "participation_ratio": [(LINE, 1)],
    "effective_rank": [(LINE, 1)],
    "stable_rank": [(LINE, 1)],
    "soft_rank": [(LINE, 1), (halves(-1, 2), 1)],
    "anisotropy": [(LINE, 1), (halves(-1, 2), -1)],
    "norm_mean": [(DEAD, 0)],
    "norm_cv": [(ONES, 0)],
    "nc1": [(points(4), 0)],
    "nc2_norm": [(points(4), 0)],
    "nc2_angle": [(points(4), 0)],
    "linear_probe": [(points(4), 1), (halves(*[0, 0, 1, 1] * 5), 0)],
    "variance": [(ONES, 0)],
    "kurtosis": [(halves(-1, 1), -2)],
}


@pytest.mark.parametrize("name", REACHED)
def test_bounds_are_reached(name: str) -> None:
    for layer, bound in REACHED[name]:
        assert bound in METRICS[name].bounds
        assert METRICS[name](layer) == pytest.approx(bound, abs=2e-3)


def test_tighter_classes_change_a_metric_in_its_direction() -> None:
    wide, tight = (
        Layer(*sample(5, spread, seed=1, count=200, shape=(8,))) for spread in (1.0, 0.2)
    )
    for name in ALONE:
        direction = METRICS[name].direction
        if direction is not None and name not in ("nc2_norm", "nc2_angle", "intraclass_silhouette"):
            gain = METRICS[name](tight) - METRICS[name](wide)
            assert (gain > 0) == (direction == "higher"), name


def test_the_order_of_the_samples_does_not_matter() -> None:
    activations, labels = partly_dead(0)
    order = torch.randperm(90, generator=generator(0))
    shuffled = values_of(Layer(activations[order], labels[order]))
    expected = values_of(Layer(activations, labels))
    assert different(shuffled, expected, rel=1e-4) == []


def test_the_names_of_the_classes_do_not_matter() -> None:
    activations, labels = partly_dead(0)
    renamed = torch.tensor([70, -3, 1000, 4])[labels]
    expected = values_of(Layer(activations, labels))
    assert different(values_of(Layer(activations, renamed)), expected, rel=1e-4) == []


@pytest.mark.parametrize("count", [60, 160], ids=["wide", "long"])
def test_the_memory_format_and_the_type_do_not_matter(count: int) -> None:
    activations, labels = sample(5, 0.3, count=count)
    expected = values_of(Layer(activations, labels))
    last = activations.to(memory_format=torch.channels_last)
    assert different(values_of(Layer(last, labels)), expected, rel=1e-6) == []
    assert different(values_of(Layer(activations.double(), labels)), expected, rel=1e-6) == []
    assert different(values_of(Layer(activations[..., ::2, 1:], labels)), expected, 1e-6) != []
    part = activations[..., ::2, 1:]
    contiguous = values_of(Layer(part.clone(), labels))
    assert different(values_of(Layer(part, labels)), contiguous, rel=1e-6) == []


def test_half_precision_matters_little() -> None:
    activations, labels = sample(5, 0.3, count=200)
    rounded = activations.bfloat16()
    as_it_is = values_of(Layer(rounded, labels))
    assert different(as_it_is, values_of(Layer(rounded.float(), labels)), rel=1e-5) == []
    assert different(values_of(streamed(rounded, labels)), as_it_is, rel=1e-3) == []
    assert different(as_it_is, values_of(Layer(activations, labels)), rel=0.05, loose=3) == []


def record_computations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that will name each pass over the data by its sums, and each derived matrix."""
    computed: list[str] = []
    add_all = Sums.add_all

    def record(self: Sums, *arguments: object) -> None:
        computed.append(type(self).__name__)
        add_all(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Sums, "add_all", record)
    for name in ("gram", "squared_distances", "distances", "neighbours", "spectrum"):
        shared = LayerClass.__dict__[name]
        compute = shared.func

        def derive(
            self: Layer, compute: Callable[[Layer], object] = compute, name: str = name
        ) -> object:
            computed.append(name)
            return compute(self)

        monkeypatch.setattr(shared, "func", derive)
    return computed


def test_nothing_is_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    units_in_products: list[int] = []
    add_products = Products._add_products

    def record(self: Products, block: Tensor) -> None:
        units_in_products.append(block.shape[1])
        add_products(self, block)

    monkeypatch.setattr(Products, "_add_products", record)
    computed = record_computations(monkeypatch)
    layer = Layer(*sample(10, 1.0, count=200))
    values = values_of(layer)
    assert not any(map(math.isnan, values.values()))
    assert sum(units_in_products) == layer.num_units
    assert sorted(computed) == sorted(
        [
            *("Activity", "Moments", "Products"),
            *("gram", "squared_distances", "distances", "neighbours", "spectrum"),
        ]
    )
    values_of(layer)
    assert len(computed) == 8


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_the_metrics_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, order: int
) -> None:
    computed = record_computations(monkeypatch)
    names = ALONE[::order]
    values = evaluate(chosen(names), Layer(*sample(10, 1.0, count=100)))
    assert list(values) == names
    assert computed.count("Products") == 1
    assert "ClassSums" not in computed


def test_only_what_is_needed_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = record_computations(monkeypatch)
    layer = Layer(*sample(10, 1.0, count=100))
    evaluate(chosen(["unit_sparsity"]), layer)
    assert computed == ["Activity"]
    evaluate(chosen(["davies_bouldin", "nc1", "nc2_angle"]), layer)
    assert computed == ["Activity", "ClassSums"]
    evaluate(chosen(["skewness", "variance"]), layer)
    assert computed == ["Activity", "ClassSums", "Moments"]


def test_a_metric_of_a_network_does_not_apply_to_a_layer_alone() -> None:
    for name, value in evaluate(chosen(NETWORK), Layer(*sample(5, 1.0, count=50))).items():
        assert math.isnan(value.number), name
        assert not value.is_applicable
        assert "network that contains the layer" in str(value.reason)


def test_an_unknown_name_lists_the_near_ones() -> None:
    with pytest.raises(UserError, match=r"davis_bouldin; did you mean .*davies_bouldin"):
        chosen(["silhouette", "davis_bouldin"])


def test_a_name_is_chosen_once_and_in_order() -> None:
    names = ["silhouette", "mean", "silhouette"]
    assert [metric.name for metric in chosen(names)] == ["silhouette", "mean"]


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_has_a_source_a_description_and_bounds(name: str) -> None:
    metric = METRICS[name]
    assert metric.source
    assert metric.description.endswith((".", ":"))
    assert metric.bounds[0] < metric.bounds[1]


def test_autocast_and_the_precision_of_matmul_do_not_matter() -> None:
    activations, labels = sample(5, 0.3, count=300, shape=(300,))
    expected = evaluate(METRICS.values(), Layer(activations, labels))
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu"):
            values = evaluate(METRICS.values(), Layer(activations.requires_grad_(), labels))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert str(values) == str(expected)
