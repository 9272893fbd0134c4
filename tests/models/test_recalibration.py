"""Tests of running statistics against those computed by hand, layer by layer."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from bnstudy.errors import UserError
from bnstudy.models import calibrate, calibrated, recalibrate
from bnstudy.models.batchnorm_parts import CenteringBatchNorm, FrozenBatchNorm
from bnstudy.representations import capture
from bnstudy.representations.running_statistics import (
    initial_share,
    uncalibrated,
    with_running_statistics,
)
from tests.models.conftest import normalization
from tests.representations.networks import ChangesItsInput
from tests.representations.networks import batches as samples


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = 3 * torch.randn(count, 10, 2, 6, 6, generator=generator) + 1
    return [(batch, torch.zeros(10)) for batch in images]


def network(norm: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(), nn.Conv2d(3, 5, 3), norm
    )


def test_statistics_are_the_batches_averages_layer_by_layer() -> None:
    model = network(nn.BatchNorm2d(5, eps=1e-3))
    model(batches()[0][0])  # statistics that must have no effect
    recalibrate(model, batches())

    averages: list[list[Tensor]] = [[], [], [], []]
    for images, _ in batches():
        x = model[0](images).detach()
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        averages[0].append(mean)
        averages[1].append(x.var((0, 2, 3), correction=1))
        shape = (1, 3, 1, 1)
        x = (x - mean.view(shape)) / (variance.view(shape) + 1e-5).sqrt()
        x = model[4](x.relu()).detach()  # skips the dropout, model[3]
        averages[2].append(x.mean((0, 2, 3)))
        averages[3].append(x.var((0, 2, 3), correction=1))
    ours = [
        model[1].running_mean,
        model[1].running_var,
        model[5].running_mean,
        model[5].running_var,
    ]
    for value, average in zip(ours, averages, strict=True):
        torch.testing.assert_close(value, torch.stack(average).mean(0))


def test_one_batch_of_everything_gives_the_statistics_of_the_whole_data() -> None:
    whole = torch.cat([images for images, _ in batches()])
    model = network(CenteringBatchNorm(5, synchronized=False))
    recalibrate(model, [(whole, torch.zeros(40))])
    # In eval mode the first norm divides by n - 1 instead of n, which is nearly the same.
    activations = model[:5].eval()(whole)
    torch.testing.assert_close(
        model[5].running_mean, activations.mean((0, 2, 3)), rtol=0, atol=1e-3
    )


def test_it_agrees_with_torch_where_torch_knows_the_layers() -> None:
    ours, theirs = network(nn.BatchNorm2d(5)), network(nn.BatchNorm2d(5))
    theirs[3].p = 0.0
    recalibrate(ours, batches())
    update_bn(batches(), theirs)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name])


@pytest.mark.parametrize("training", [True, False])
def test_nothing_but_the_statistics_changes(training: bool) -> None:
    model = network(FrozenBatchNorm(5)).train(training)
    model[2].train(not training)

    def rest() -> tuple[object, ...]:
        modes = [module.training for module in model.modules()]
        weights = [parameter.tolist() for parameter in model.parameters()]
        return modes, weights, model[1].momentum, model[5].momentum, torch.get_rng_state().tolist()

    before = rest()
    statistics = model[5].running_mean.clone()
    recalibrate(model, batches())
    assert rest() == before
    assert not torch.equal(model[5].running_mean, statistics)


def test_layers_without_running_statistics_are_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4))
    assert with_running_statistics(model) == {}
    recalibrate(model, batches())
    model.append(nn.BatchNorm2d(4))
    assert list(with_running_statistics(model)) == ["3"]


def test_instance_norm_averages_its_statistics_too() -> None:
    model = nn.Sequential(nn.InstanceNorm2d(2, track_running_stats=True))
    recalibrate(model, batches())
    inputs = torch.cat([images for images, _ in batches()])
    torch.testing.assert_close(model[0].running_mean, inputs.mean((0, 2, 3)))
    torch.testing.assert_close(model[0].running_var, inputs.var((2, 3)).mean(0))


class WithAuxiliaryBranch(nn.Module):
    """A network with a branch that is called in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.branch, self.act = nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(x))
        return x + self.branch(x) if self.training else x


def test_layers_that_are_not_called_keep_their_statistics() -> None:
    model = WithAuxiliaryBranch()
    model(batches()[0][0])
    before = deepcopy(model.branch.state_dict())
    recalibrate(model, batches())
    torch.testing.assert_close(model.branch.state_dict(), before, rtol=0, atol=0)


@pytest.mark.filterwarnings("error")
def test_a_layer_that_is_not_called_is_not_warned_of() -> None:
    model = WithAuxiliaryBranch()
    recalibrate(model, batches())
    assert list(uncalibrated(model)) == ["branch"]
    assert [layer.name for layer in capture(model, batches(), memory_budget=1)] == ["act"]


def test_without_batches_statistics_are_kept() -> None:
    model = network(nn.BatchNorm2d(5)).train()
    model(batches()[0][0])
    before = deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="batches"):
        recalibrate(model, iter([]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("wrong", [torch.zeros(2, 1, 16, 16), {"x": torch.zeros(2)}, (1, 2)])
def test_batches_that_are_no_pairs_are_refused(wrong: object) -> None:
    with pytest.raises(UserError, match=r"^batches: a batch is a .*, expected \(inputs,"):
        recalibrate(ChangesItsInput(), [wrong])  # type: ignore[list-item]


def test_a_network_that_changes_its_input_leaves_the_batches_as_they_were() -> None:
    model, data = ChangesItsInput(), samples()
    means = []
    for _ in range(2):
        recalibrate(model, data)
        means.append(model.norm.running_mean.clone())
    assert torch.equal(*means)
    for (images, _), (before, _) in zip(data, samples(), strict=True):
        assert torch.equal(images, before)


def test_inputs_that_are_integers_stay_integers() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.BatchNorm1d(12))
    tokens = torch.randint(10, (20, 3), generator=torch.Generator().manual_seed(0))
    recalibrate(model, [(tokens, torch.zeros(20))])
    torch.testing.assert_close(model[2].running_mean, model[:2](tokens).mean(0))


def test_only_statistics_that_no_batch_has_updated_are_calibrated() -> None:
    model = network(nn.BatchNorm2d(5))
    model[1](model[0](batches()[0][0]))  # gives model[1] statistics
    model[5].num_batches_tracked += 7  # a count without statistics
    before = model[1].running_mean.clone()
    assert list(uncalibrated(model)) == ["5"]
    calibrate(model, batches())
    assert uncalibrated(model) == {}
    assert torch.equal(model[1].running_mean, before)
    inputs = torch.cat([images for images, _ in batches()])
    expected = model[:5].eval()(inputs).mean((0, 2, 3))  # the first norm is in eval mode too
    torch.testing.assert_close(model[5].running_mean, expected)

    trained = deepcopy(model.state_dict())
    calibrate(model, [(3 * inputs, torch.zeros(40))])
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("norm", ["batchnorm", "ghostbatchnorm", "batchnorm_centering"])
def test_a_network_is_calibrated_for_a_while(norm: str) -> None:
    model = network(normalization(norm).layer(5)).train()
    before, state = deepcopy(model.state_dict()), torch.get_rng_state()
    reference = deepcopy(model)
    recalibrate(reference, batches())
    with calibrated(model, batches()):
        assert model.training
        for name, value in model.state_dict().items():
            assert torch.equal(value, reference.state_dict()[name]), name
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("batches", "epochs"), [(4, 1), (40, 10), (200, 4)])
def test_the_initial_values_leave_running_statistics_slowly(batches: int, epochs: int) -> None:
    layer = nn.BatchNorm1d(2, momentum=0.2)
    for _ in range(batches):
        layer(torch.full((5, 2), 3.0))
    share = 0.8 ** (batches / epochs)
    assert initial_share(nn.Sequential(layer, FrozenBatchNorm(2)), epochs) == pytest.approx(share)
    if epochs == 1:
        torch.testing.assert_close(layer.running_mean, torch.full((2,), 3 * (1 - share)))
