"""BatchNorm's two modes against plain loops over copies of the network."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from bnstudy.callbacks import BatchStatistics
from bnstudy.terms import SPLITS, Split
from tests.callbacks.training import Noise, Watch, small_network, train

LAYERS = {"1": "1.norm", "5": "5.norm"}


def data() -> Noise:
    module = Noise()
    module.setup()
    return module


def population(network: nn.Module) -> nn.Module:
    """The network with torch's own recalibration, on all probe samples at once."""
    copy = deepcopy(network)
    copy[3].p = 0.0
    images, labels = next(iter(data().probe("train")))
    update_bn([(images, labels)], copy)
    return copy.eval()


def own_statistics(network: nn.Module) -> nn.Module:
    copy = deepcopy(network).eval()
    copy[1].train()
    copy[5].train()
    return copy


def performance(network: nn.Module, split: Split) -> tuple[float, float]:
    losses, right = [], []
    for images, labels in data().probe(split).mixed(20):
        with torch.no_grad():
            logits = network(images)
        losses += functional.cross_entropy(logits, labels, reduction="none").tolist()
        right += (logits.argmax(1) == labels).tolist()
    return sum(losses) / len(losses), sum(right) / len(right)


def test_errors_and_performance_at_each_epoch() -> None:
    callback = BatchStatistics()
    watch = Watch(callback)
    train(small_network(), callback, watch)
    for epoch, network in enumerate(watch.epochs):
        true = population(network)
        for name, place in LAYERS.items():
            layer, reference = network.get_submodule(name), true.get_submodule(name)
            mean = (layer.running_mean - reference.running_mean).abs()
            variance = (layer.running_var.log() - reference.running_var.log()).abs()
            key = (epoch, "train", place)
            assert watch.values("running_mean_error")[key] == pytest.approx(
                (mean / reference.running_var.sqrt()).mean().item(), rel=1e-3
            )
            assert watch.values("running_variance_error")[key] == pytest.approx(
                variance.mean().item(), rel=1e-3
            )
        variants = {
            "probe": deepcopy(network).eval(),
            "recalibrated": true,
            "batch_statistics": own_statistics(network),
        }
        for split in SPLITS:
            for name, variant in variants.items():
                loss, accuracy = performance(variant, split)
                key = (epoch, split, "model")
                assert watch.values(f"{name}_loss")[key] == pytest.approx(loss, rel=1e-4)
                assert watch.values(f"{name}_accuracy")[key] == pytest.approx(accuracy)
    assert len(watch.rows) == 3 * (2 * 2 + 2 * 6)


def test_at_the_start_the_error_is_that_of_zero_and_one() -> None:
    callback = BatchStatistics()
    watch = Watch(callback)
    network = small_network()
    train(network, callback, watch, epochs=1)
    convolution = watch.epochs[0][0]
    x = convolution(next(iter(data().probe("train")))[0]).detach()
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
    values = watch.values("running_mean_error"), watch.values("running_variance_error")
    key = (0, "train", "1.norm")
    assert values[0][key] == pytest.approx((mean.abs() / variance.sqrt()).mean().item(), rel=1e-4)
    assert values[1][key] == pytest.approx(variance.log().abs().mean().item(), rel=1e-4)


def test_channels_that_are_constant_are_left_out() -> None:
    network = small_network()
    with torch.no_grad():
        network[0].weight.zero_()
    network[0].requires_grad_(False)
    callback = BatchStatistics()
    train(network, callback, epochs=1)
    reasons = {row.metric: row.reason for row in callback.rows if row.layer == "1"}
    assert reasons == {
        "running_mean_error": "no channel varies",
        "running_variance_error": "no channel varies",
    }


def test_a_network_without_running_statistics_has_none() -> None:
    callback = BatchStatistics()
    watch = Watch(callback)
    train(small_network(nn.GroupNorm(2, 4)), callback, watch)
    assert watch.rows == []


def test_mixed_batches_hold_every_sample_once_and_no_class_alone() -> None:
    probe = data().probe("train")
    batches = list(probe.mixed(7))
    assert [len(labels) for _, labels in batches] == [8] * 4 + [7] * 4
    assert all(len(labels.unique()) > 1 for _, labels in batches)
    images = torch.cat([images for images, _ in batches])
    whole = torch.cat([images for images, _ in probe])
    assert sorted(images.flatten(1).tolist()) == sorted(whole.flatten(1).tolist())
    again = torch.cat([labels for _, labels in probe.mixed(7)])
    assert torch.equal(again, torch.cat([labels for _, labels in batches]))
