"""Tests of BatchNorm in both modes against plain loops over copies of the network."""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from bnstudy.callbacks import BatchStatistics
from bnstudy.callbacks.batch_statistics import _errors
from bnstudy.terms import SPLITS, Split
from tests.callbacks.training import Watch, noise, small_network, train

LAYERS = {"1": "1.norm", "5": "5.norm"}


def population(network: nn.Module) -> nn.Module:
    """Recalibrate a copy with torch's `update_bn`, on all probe samples at once."""
    copy = deepcopy(network)
    copy[3].p = 0.0
    images, labels = next(iter(noise().probe("train")))
    update_bn([(images, labels)], copy)
    return copy.eval()


def own_statistics(network: nn.Module) -> nn.Module:
    copy = deepcopy(network).eval()
    copy[1].train()
    copy[5].train()
    return copy


def performance(network: nn.Module, split: Split) -> tuple[float, float]:
    losses, right = [], []
    for images, labels in noise().probe(split).shuffled(20):
        with torch.no_grad():
            logits = network(images)
        losses += functional.cross_entropy(logits, labels, reduction="none").tolist()
        right += (logits.argmax(1) == labels).tolist()
    return sum(losses) / len(losses), sum(right) / len(right)


def test_errors_and_performance_at_each_epoch_are_those_of_copies() -> None:
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
                (mean / reference.running_var.sqrt()).mean().item(), rel=1e-3, abs=1e-5
            )
            assert watch.values("running_variance_error")[key] == pytest.approx(
                variance.mean().item(), rel=1e-3, abs=1e-5
            )
        variants = {
            "recalibrated": true,
            "batch_statistics": own_statistics(network),
        }
        for split in SPLITS:
            for name, variant in variants.items():
                loss, accuracy = performance(variant, split)
                key = (epoch, split, "model")
                assert watch.values(f"{name}_loss")[key] == pytest.approx(loss, rel=1e-4)
                assert watch.values(f"{name}_accuracy")[key] == pytest.approx(accuracy)
    assert len(watch.rows) == 3 * (2 * 2 + 2 * 4)


def test_before_training_running_statistics_are_those_of_the_training_data() -> None:
    watch = Watch(BatchStatistics())
    train(small_network(), watch.watched, watch, epochs=1)
    # The probe set is the whole training split, in one batch.
    for metric in ("running_mean_error", "running_variance_error"):
        errors = watch.values(metric)
        assert [errors[0, "train", place] for place in LAYERS.values()] == pytest.approx([0, 0])
        assert all(errors[1, "train", place] > 0 for place in LAYERS.values())


@pytest.mark.parametrize("place", ["running", "population"])
def test_statistics_that_are_not_finite_have_no_error(place: str) -> None:
    running, population = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    damaged = running if place == "running" else population
    damaged.running_mean[0] = torch.nan  # the other channel is finite
    values, reason = _errors(running, population)
    assert all(map(math.isnan, values.values()))
    assert reason == "a statistic is not finite"


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
    probe = noise().probe("train")
    batches = list(probe.shuffled(7))
    assert [len(labels) for _, labels in batches] == [8] * 4 + [7] * 4
    assert all(len(labels.unique()) > 1 for _, labels in batches)
    images = torch.cat([images for images, _ in batches])
    whole = torch.cat([images for images, _ in probe])
    assert sorted(images.flatten(1).tolist()) == sorted(whole.flatten(1).tolist())
    again = torch.cat([labels for _, labels in probe.shuffled(7)])
    assert torch.equal(again, torch.cat([labels for _, labels in batches]))
