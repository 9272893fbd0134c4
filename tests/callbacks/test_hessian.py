"""Tests of the curvature against the full Hessian of a small network."""

import math
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.nn import functional

from bnstudy.callbacks import Hessian, WeightNorms
from bnstudy.callbacks.hessian import desynchronize, find_stages
from bnstudy.data.batches import choose_balanced
from tests.callbacks.training import Noise, Watch, small_network, train

NUM_SAMPLES = 30


def full_hessian(network: nn.Module, names: list[str], data: Noise) -> Tensor:
    probe = data.probe("train")
    chosen = choose_balanced(probe.labels, NUM_SAMPLES)
    images, labels = data.normalize(probe.images[chosen]).double(), probe.labels[chosen]
    state = {name: one.detach().double() for name, one in network.named_parameters()}
    sizes = [state[name].numel() for name in names]

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split(sizes)
        some = {name: part.view_as(state[name]) for name, part in zip(names, parts, strict=True)}
        logits = functional_call(network.double(), state | some, (images,))
        return functional.cross_entropy(logits, labels)

    found: Tensor = hessian(loss, torch.cat([state[name].flatten() for name in names]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_eigenvalues_and_trace_are_those_of_the_full_hessian(mode: str) -> None:
    data = Noise()
    callback = Hessian(5, 3, 200, NUM_SAMPLES, mode)
    watch = Watch(callback)
    before = small_network().state_dict()
    module = train(small_network(), callback, watch, data=data, epochs=1)
    rows = {(row.layer, row.epoch, row.metric): row.value for row in watch.rows}
    last = deepcopy(watch.epochs[-1]).eval()
    if mode == "train":
        for layer in last.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.train()
                layer.track_running_stats = False
                layer.running_mean = layer.running_var = None
    whole = [name for name, _ in last.named_parameters()]
    for layer, names in (("model", whole), ("4", ["4.weight", "4.bias"])):
        expected = full_hessian(last, names, data)
        values = torch.linalg.eigvalsh(expected).flip(0)[:3].tolist()
        ours = [rows[layer, 1, f"hessian_eigenvalue_{number}"] for number in (1, 2, 3)]
        assert ours == pytest.approx(values, rel=0.01)
        trace, error = (rows[layer, 1, f"hessian_trace{end}"] for end in ("", "_error"))
        assert abs(trace - expected.trace().item()) < 4 * error
        off_diagonal = expected - expected.diag().diag()
        deviation = math.sqrt(2 * off_diagonal.square().sum().item() / 200)
        assert error == pytest.approx(deviation, rel=0.25)
    assert {layer for layer, *_ in rows} == {"model", "0", "1", "4", "5", "8"}
    assert {epoch for _, epoch, _ in rows} == {0, 1}
    plain = train(small_network(), data=data, epochs=1)  # measuring changes nothing
    torch.testing.assert_close(
        plain.network.state_dict(), module.network.state_dict(), rtol=0, atol=0
    )
    assert not all(
        torch.equal(value, before[name]) for name, value in plain.network.state_dict().items()
    )


class WithUnusedPart(nn.Module):
    """A network and a layer that no forward pass uses."""

    def __init__(self) -> None:
        super().__init__()
        self.used = small_network()
        self.unused = nn.Linear(4, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.used(images)
        return logits


@pytest.mark.slow
def test_the_eigenvalues_of_a_zero_hessian_are_zero() -> None:
    callback = Hessian(1, 2, 4, NUM_SAMPLES, "eval")
    watch = Watch(callback)
    train(WithUnusedPart(), callback, watch, epochs=1)
    values = {row.metric: row.value for row in watch.rows if row.layer == "unused"}
    assert values == {
        "hessian_eigenvalue_1": 0,
        "hessian_eigenvalue_2": 0,
        "hessian_trace": 0,
        "hessian_trace_error": 0,
    }


@pytest.mark.parametrize(
    ("norm", "shape"), [(nn.BatchNorm1d, (6, 3)), (nn.BatchNorm2d, (6, 3, 4, 4))]
)
def test_synchronized_norms_use_the_samples_of_their_process(
    norm: type[nn.BatchNorm1d | nn.BatchNorm2d], shape: tuple[int, ...]
) -> None:
    layer, inputs = norm(3).train(), torch.randn(shape)
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(deepcopy(layer))
    desynchronize(synchronized)
    torch.testing.assert_close(synchronized(inputs), layer(inputs), rtol=0, atol=0)


def test_stages_are_the_parts_inside_wrappers() -> None:
    inner = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Linear(1, 1))
    assert list(find_stages(nn.Sequential(nn.Identity(), inner))) == ["0", "2"]


@pytest.mark.parametrize(("optimizer", "power"), [("sgd", 2), ("adam", 1)])
def test_weight_norms_and_effective_learning_rates_are_their_formulas(
    optimizer: str, power: int
) -> None:
    callback = WeightNorms()
    watch = Watch(callback)
    train(small_network(), callback, watch, epochs=1, lr=0.05, name=optimizer)
    weights = [dict(network.named_parameters()) for network in watch.epochs]
    norms = watch.values("weight_norm")
    rates = watch.values("effective_lr")
    for epoch, layer, site in ((0, "0", "conv"), (1, "4", "conv"), (1, "8", "linear")):
        expected = weights[epoch][f"{layer}.weight"].square().sum().sqrt().item()
        assert norms[epoch, "train", f"{layer}.{site}"] == pytest.approx(expected)
        assert rates[epoch, "train", f"{layer}.{site}"] == pytest.approx(0.05 / expected**power)
    for metric, name in (("gamma_norm", "weight"), ("beta_norm", "bias")):
        expected = weights[1][f"1.{name}"].norm().item()
        assert watch.values(metric)[1, "train", "1.norm"] == pytest.approx(expected)
