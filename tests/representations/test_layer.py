"""The view of a layer against naive formulas in float64."""

import pytest
import torch

from bnstudy.representations import Layer
from tests.metrics.test_against_references import sample


@pytest.mark.parametrize("num_classes", [1, 10, 100])
def test_gram_matrix_and_distances(num_classes: int) -> None:
    activations, labels = sample(num_classes, 0.5, count=700)
    layer = Layer(activations, labels)
    x = activations.flatten(1).double()
    centred = x - x.mean(0)
    torch.testing.assert_close(layer.gram.double(), centred @ centred.T, rtol=1e-4, atol=1e-4)
    squared = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()
    torch.testing.assert_close(layer.squared_distances.double(), squared, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.distances, layer.distances.T, rtol=1e-5, atol=0)
    assert not layer.distances.diagonal().any()
    for number, label in enumerate(labels.unique()):
        mean = x[labels == label].mean(0)
        torch.testing.assert_close(layer.class_means[number].double(), mean, rtol=1e-5, atol=1e-6)


def test_distances_within_tight_classes_do_not_suffer_from_cancellation() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    centres = 1000 * torch.randn(3, 50, generator=generator)
    activations = centres[labels] + torch.randn(300, 50, generator=generator)
    squared = Layer(activations, labels).squared_distances
    x = activations.double()
    expected = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()
    torch.testing.assert_close(squared.double(), expected, rtol=1e-4, atol=0)


def test_a_tensor_that_does_not_fit_its_labels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 4\) activations and \(2,\) labels"):
        Layer(torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64))
