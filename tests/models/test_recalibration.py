"""Running statistics against those computed by hand, layer by layer."""

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from bnstudy.models.batchnorm_parts import CenteringBatchNorm, FrozenBatchNorm
from bnstudy.models.recalibration import recalibrate, with_running_statistics


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
    model(batches()[0][0])  # begins with other statistics, which do not count
    recalibrate(model, batches())

    averages: list[list[Tensor]] = [[], [], [], []]
    for images, _ in batches():
        x = model[0](images).detach()
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        averages[0].append(mean)
        averages[1].append(x.var((0, 2, 3), correction=1))
        shape = (1, 3, 1, 1)
        x = (x - mean.view(shape)) / (variance.view(shape) + 1e-5).sqrt()
        x = model[4](x.relu()).detach()  # without the dropout
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
    # In eval mode what comes before is normalized by n - 1 instead of n: nearly the same.
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
