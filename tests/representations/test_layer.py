"""Properties of a layer, compared with naive formulas in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bnstudy.representations import Layer
from bnstudy.representations.sums import Classes, ClassSums
from tests.metrics.samples import sample, streamed

Read = Callable[[Tensor, Tensor], Layer]
READ = pytest.mark.parametrize("read", [Layer, streamed], ids=["held", "streamed"])


def flat(activations: Tensor) -> Tensor:
    return activations.flatten(1).double()


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def means(x: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([x[labels == label].mean(0) for label in labels.unique()])


@READ
@pytest.mark.parametrize(("count", "shape"), [(500, (6, 5, 5)), (150, (8, 5, 5)), (100, (100,))])
@pytest.mark.parametrize("num_classes", [1, 2, 10, 50])
def test_what_metrics_share_is_that_of_naive_formulas(
    num_classes: int, count: int, shape: tuple[int, ...], read: Read
) -> None:
    activations, labels = sample(num_classes, 0.5, count=count, shape=shape)
    layer, x = read(activations, labels), flat(activations)
    centred = x - x.mean(0)

    def close(ours: Tensor, expected: Tensor, atol: float = 1e-4) -> None:
        torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=atol)

    close(layer.gram, centred @ centred.T)
    close(layer.squared_distances, squared_distances(x, x))
    close(layer.class_sums.squared_distances_to_means, squared_distances(x, means(x, labels)))
    close(layer.class_sums.centred_means, means(x, labels) - x.mean(0), atol=1e-6)
    close(layer.class_sums.class_means_gram, *[(m := means(x, labels) - x.mean(0)) @ m.T])
    variation = centred.square().sum(1).mean().item()
    assert layer.total_variance == pytest.approx(variation, rel=1e-5)
    singular = torch.linalg.svdvals(centred)
    assert len(layer.spectrum) == min(count, x.shape[1])
    close(layer.spectrum, singular.square(), atol=1e-5 * singular[0].square().item())
    torch.testing.assert_close(layer.distances, layer.squared_distances.sqrt())
    for matrix in (layer.products.residuals_gram, layer.gram, layer.squared_distances):
        assert torch.equal(matrix, matrix.T)
    assert not layer.distances.diagonal().any()


@READ
def test_neighbours_are_the_nearest_others(read: Read) -> None:
    activations, labels = sample(5, 1.0, count=120)
    layer, squared = read(activations, labels), squared_distances(*2 * [flat(activations)])
    before = layer.squared_distances.clone()
    nearest = squared.fill_diagonal_(torch.inf).sort(1)
    assert torch.equal(layer.neighbours.indices, nearest.indices[:, :10])
    torch.testing.assert_close(
        layer.neighbours.squared_distances.double(), nearest.values[:, :10], rtol=1e-4, atol=0
    )
    assert torch.equal(layer.squared_distances, before)


@pytest.mark.parametrize("count", [1, 2, 7, 11])
def test_there_are_no_more_neighbours_than_other_samples(count: int) -> None:
    layer = Layer(torch.rand(count, 3), torch.zeros(count))
    assert layer.neighbours.indices.shape == (count, min(10, count - 1))


def test_a_sample_is_no_neighbour_of_itself_even_where_it_is_there_twice() -> None:
    layer = Layer(torch.rand(10, 4).repeat(2, 1), torch.zeros(20))
    twin = (torch.arange(20) + 10) % 20
    assert torch.equal(layer.neighbours.indices[:, 0], twin)


@READ
@pytest.mark.parametrize("units", [50, 400])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_distances_within_tight_classes_do_not_suffer_from_cancellation(
    units: int, offset: float, read: Read
) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    centres = 1000 * torch.randn(3, units, generator=generator) + offset
    activations = centres[labels] + torch.randn(300, units, generator=generator)
    layer, x = read(activations, labels), activations.double()
    squared = squared_distances(x, x)
    torch.testing.assert_close(layer.squared_distances.double(), squared, rtol=2e-4, atol=0)
    to_means = squared_distances(x, means(x, labels))
    torch.testing.assert_close(
        layer.class_sums.squared_distances_to_means, to_means, rtol=2e-3, atol=0
    )


def test_distances_of_a_cloud_far_from_zero_are_those_of_float64() -> None:
    activations = 1000 + torch.rand(200, 40, generator=torch.Generator().manual_seed(0))
    squared = Layer(activations, torch.zeros(200)).squared_distances
    x = activations.double()
    expected = squared_distances(x, x)
    torch.testing.assert_close(squared.double(), expected, rtol=1e-3, atol=0)


@READ
def test_distances_within_far_modes_are_right_where_class_means_nearly_agree(read: Read) -> None:
    generator = torch.Generator().manual_seed(0)
    mode = torch.arange(2).repeat(30)[:, None]
    activations = torch.randn(60, 100, generator=generator) + 1e6 * mode
    labels = torch.arange(3).repeat_interleave(20)  # equally many in each mode
    expected = squared_distances(activations.double(), activations.double())
    ours = read(activations, labels).squared_distances.double()
    torch.testing.assert_close(ours, expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize("num_classes", [1, 7])
def test_class_sums_alone_are_those_of_a_pass_with_products(num_classes: int) -> None:
    activations, labels = sample(num_classes, 0.5, count=90)
    alone, layer = Layer(activations, labels), Layer(activations, labels)
    assert layer.gram.shape == (90, 90)
    assert type(alone.class_sums) is ClassSums
    assert alone.total_variance == pytest.approx(layer.total_variance, rel=1e-6)
    torch.testing.assert_close(
        alone.class_sums.squared_distances_to_means,
        layer.class_sums.squared_distances_to_means,
        rtol=1e-5,
        atol=1e-5,
    )


def test_blocks_may_be_added_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    activations, labels = sample(5, 0.5, count=70)
    sums = ClassSums((70, 6, 25), Classes(labels))
    for channel in (4, 0, 5, 2, 1, 3):
        sums.add_all(activations[:, channel : channel + 1].flatten(2), channel)
    sums.finish()
    expected = Layer(activations, labels).class_sums
    torch.testing.assert_close(sums.centred_means, expected.centred_means)
    torch.testing.assert_close(
        sums.class_means_gram, expected.class_means_gram, rtol=1e-5, atol=1e-5
    )
    monkeypatch.setattr("bnstudy.representations.sums.BLOCK_NUMEL", 70 * 25 * 2)
    blocks = Layer(activations, labels)
    torch.testing.assert_close(blocks.gram, Layer(activations, labels).gram)
    torch.testing.assert_close(
        blocks.class_sums.residuals_dot_class_means,
        expected.residuals_dot_class_means,
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("count", [40, 41, 90, 120])
def test_the_gram_matrix_is_the_same_in_tiles(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr("bnstudy.representations.sums.DISTANCE_ROWS", 40)
    monkeypatch.setattr("bnstudy.representations.sums.MIRROR_ROWS", 15)
    monkeypatch.setattr("bnstudy.representations.sums.TILE_ROWS", 40)
    monkeypatch.setattr("bnstudy.representations.sums.STRIP_ROWS", 15)
    activations, labels = sample(5, 0.5, count=count)
    x = flat(activations)
    centred = x - x.mean(0)
    gram = Layer(activations, labels).gram.double()
    torch.testing.assert_close(gram, centred @ centred.T, rtol=1e-4, atol=1e-4)
    assert torch.equal(gram, gram.T)


def test_the_activations_are_read_only_and_not_copied() -> None:
    activations, labels = sample(5, 0.5, count=70)
    before = activations.clone()
    layer = Layer(activations, labels)
    assert layer.activations.data_ptr() == activations.data_ptr()
    assert layer.activations.shape == (70, 6, 25)
    for name in ("gram", "neighbours", "spectrum", "activity", "moments"):
        getattr(layer, name)
    assert torch.equal(activations, before)


def test_classes_are_numbered_without_gaps() -> None:
    layer = Layer(torch.rand(5, 3), torch.tensor([7, -2, 7, 100, 7]))
    assert layer.classes.tolist() == [1, 0, 1, 2, 1]
    assert layer.class_labels.tolist() == [-2, 7, 100]
    assert layer.class_sizes.tolist() == [1, 3, 1]
    assert layer.num_classes == 3
    assert layer.membership.sum(0).tolist() == [1, 3, 1]


def test_what_is_shared_is_computed_once() -> None:
    calls = []
    layer = Layer(torch.rand(5, 3), torch.zeros(5))

    def count(of: Layer) -> int:
        calls.append(of)
        return len(calls)

    assert layer.shared(count) == layer.shared(count) == 1
    assert calls == [layer]
    assert layer.name == ""


@pytest.mark.parametrize("shape", [(3, 4), (3,), (0, 4)])
def test_a_tensor_that_does_not_fit_its_labels_is_refused(shape: tuple[int, ...]) -> None:
    count = 3 if len(shape) == 1 else 2
    with pytest.raises(ValueError, match=r"do not match labels of shape \(\d,\)"):
        Layer(torch.zeros(shape), torch.zeros(count))
