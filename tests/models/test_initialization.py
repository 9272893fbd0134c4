"""Tests of initial weights: distribution, pairing across norms, effect on a deep network."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bnstudy.config.schema import INITIALIZATIONS
from bnstudy.metrics import METRICS
from bnstudy.models import calibrated, initialize, torchvision_network
from bnstudy.models.initialization import SCHEMES, seeded
from bnstudy.models.norm_layers import WeightStandardizedConv2d
from bnstudy.representations import capture
from bnstudy.runs.record import Record
from bnstudy.training.build import build_classifier, load_data
from tests.conftest import KEPT
from tests.models.conftest import COLOUR, NORMS, network, normalization, weighted


def layers() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "conv": nn.Conv2d(16, 600, 3),
            "grouped": nn.Conv2d(64, 600, 3, groups=4),
            "standardized": WeightStandardizedConv2d(16, 600, 3),
            "linear": nn.Linear(200, 600),
        }
    )


def moments(values: Tensor) -> tuple[float, float, float]:
    """Return mean and standard deviation relative to the largest value, and that value."""
    bound = values.abs().max().item()
    return values.mean().item() / bound, values.std().item() / bound, bound


def test_every_choice_of_the_configuration_is_known() -> None:
    assert {*SCHEMES, "own"} == set(INITIALIZATIONS)


def test_torch_is_the_distribution_that_torch_draws_from() -> None:
    torch.manual_seed(0)
    ours, theirs = layers(), layers()
    initialize(ours, 0, "torch")
    for name, layer in weighted(ours).items():
        reference = theirs[name]
        bound = 1 / math.sqrt(layer.weight[0].numel())
        for one, other in ((layer.weight, reference.weight), (layer.bias, reference.bias)):
            assert isinstance(one, Tensor)
            assert isinstance(other, Tensor)
            assert not torch.equal(one, other)
            assert moments(one) == pytest.approx(moments(other), rel=0.05, abs=0.1)
            assert 0.98 * bound < one.abs().max() <= bound
            assert one.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize(
    ("scheme", "conv", "linear"),
    [
        ("he", 2 / 144, 1 / 200),
        ("xavier", 2 / (144 + 5400), 2 / (200 + 600)),
        ("orthogonal", 2 / 600, 1 / 600),  # orthonormal columns: fewer inputs than outputs
    ],
)
def test_weights_have_the_published_variances(scheme: str, conv: float, linear: float) -> None:
    ours = layers()
    initialize(ours, 0, scheme)
    for name, variance in (("conv", conv), ("standardized", conv), ("linear", linear)):
        layer = weighted(ours)[name]
        assert layer.weight.var().item() == pytest.approx(variance, rel=0.05)
        assert layer.bias is not None
        assert not layer.bias.any()


def test_orthogonal_keeps_lengths() -> None:
    ours = layers()
    initialize(ours, 0, "orthogonal")
    x = torch.randn(5, 200, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours["linear"](x).norm(dim=1), x.norm(dim=1))


@pytest.mark.parametrize("scheme", INITIALIZATIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_weights_do_not_depend_on_the_norm(scheme: str, norm: str) -> None:
    ours, reference, other = (
        weighted(network("cnn", one, seed, scheme))
        for one, seed in ((norm, 0), ("none", 0), ("none", 1))
    )
    for name, layer in ours.items():
        assert torch.equal(layer.weight, reference[name].weight)
        assert layer.bias is not None
        assert torch.equal(layer.bias, reference[name].bias)
        assert not torch.equal(layer.weight, other[name].weight)


@pytest.mark.slow
def test_torchvisions_own_initialization_is_kept_and_repeats() -> None:
    def made(norm: str, seed: int = 0) -> dict[str, nn.Conv2d | nn.Linear]:
        with seeded(seed):
            model = torchvision_network("mobilenet_v2", norm=normalization(norm), **COLOUR)
        initialize(model, seed, "own")
        return weighted(model)

    state = torch.get_rng_state()
    ours, paired = made("batchnorm"), made("weightstandardization")
    assert torch.equal(torch.get_rng_state(), state)
    for name, layer in ours.items():
        assert torch.equal(layer.weight, paired[name].weight)
    weight = ours["features.18.0"].weight  # 320 to 1,280 channels
    assert weight.var().item() == pytest.approx(2 / 1280, rel=0.01)  # torchvision uses 2 / fan-out
    assert not torch.equal(weight, made("batchnorm", seed=1)["features.18.0"].weight)


@pytest.mark.parametrize(
    "checkpoint",
    sorted(KEPT.glob("*/checkpoints/epoch=0000.ckpt")),
    ids=lambda checkpoint: checkpoint.parents[1].name,
)
def test_a_run_of_version_0_1_begins_with_the_weights_that_it_had(checkpoint: Path) -> None:
    config = Record.read(checkpoint.parents[1]).description.config
    assert "initialization" not in config["model"]
    classifier = build_classifier(config, load_data(config))
    kept = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, value in classifier.state_dict().items():
        torch.testing.assert_close(value, kept[name])


@pytest.mark.parametrize("start", ["zero", "fixup"])
def test_branches_that_start_at_zero_are_zero_with_biases_too(start: str) -> None:
    model = network("resnet", initialization="torch", residual_init=start)
    for name, layer in weighted(model).items():
        is_zero = name.endswith("second.conv") or (start == "fixup" and name == "classifier")
        assert layer.bias is not None
        assert bool(layer.weight.any()) == bool(layer.bias.any()) == (not is_zero)


def test_with_torchs_initialization_the_logits_are_small() -> None:
    x = torch.randn(200, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) % 10
    losses = {}
    for scheme in ("torch", "he"):
        model = network("cnn", initialization=scheme, depth=4, width=16)
        losses[scheme] = functional.cross_entropy(model(x), labels).item()
    assert losses["torch"] == pytest.approx(math.log(10), abs=0.02)
    assert losses["he"] > 2.5


@pytest.mark.parametrize("scheme", ["he", "torch"])
def test_batchnorm_keeps_the_rank_that_deep_plain_networks_lose(scheme: str) -> None:
    """Reproduce Daneshmand et al. 2020, arXiv 2003.01652: rank collapse at initialization."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(64, 1, 16, 16, generator=generator), torch.arange(64) % 10
    ranks: dict[str, list[float]] = {}
    for norm in ("none", "batchnorm"):
        model = network("plain", norm, 0, scheme, depth=32, width=1, input_shape=(1, 16, 16))
        with calibrated(model, [(images, labels)]):
            ranks[norm] = [
                METRICS["soft_rank"](layer) for layer in capture(model, [(images, labels)])
            ]
    assert len(ranks["none"]) == 31
    assert ranks["none"][0] > 5
    assert all(rank < 1.5 for rank in ranks["none"][-8:])
    assert all(rank > 4 for rank in ranks["batchnorm"])
