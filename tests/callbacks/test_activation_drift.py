"""Tests of drift against NumPy, on activations computed module by module."""

import numpy as np
import pytest
import torch
from torch import nn

from bnstudy.callbacks import ActivationDrift
from bnstudy.callbacks.activation_drift import _Channels, _drift
from tests.callbacks.training import Watch, noise, small_network, train


def channels(network: nn.Sequential) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Compute each channel's mean and standard deviation on the training split in eval mode."""
    data = noise()
    x = data.normalize(data.data.images["train"])
    read = {}
    network.eval()
    with torch.no_grad():
        for name, module in network.named_children():
            x = module(x)
            if isinstance(module, nn.Conv2d | nn.ReLU):
                values = x.double().numpy()
                site = "conv" if isinstance(module, nn.Conv2d) else "act"
                read[f"{name}.{site}"] = values.mean((0, 2, 3)), values.std((0, 2, 3))
    return read


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_drift_is_that_of_each_epoch_against_the_one_before() -> None:
    network = small_network()
    with torch.no_grad():  # two channels that are never active after the ReLU
        network[1].weight[:2] = 0
        network[1].bias[:2] = -100
    callback = ActivationDrift(memory_budget=1)
    watch = Watch(callback)
    train(network, callback, watch)
    mean_drift, std_drift = {}, {}
    for epoch in (1, 2):
        before, now = channels(watch.epochs[epoch - 1]), channels(watch.epochs[epoch])
        for place in now:
            (mean, std), (mean_before, std_before) = now[place], before[place]
            kept = std_before > 0
            key = (epoch, "train", place)
            mean_drift[key] = (np.abs(mean - mean_before) / std_before)[kept].mean()
            std_drift[key] = np.abs(np.log(std / std_before))[kept].mean()
    assert watch.values("mean_drift") == pytest.approx(mean_drift, rel=1e-4)
    assert watch.values("std_drift") == pytest.approx(std_drift, rel=1e-4)
    assert len(mean_drift) == 2 * 4
    assert np.isfinite(list(mean_drift.values())).all()


def test_a_layer_that_is_constant_has_none_and_says_why() -> None:
    network = small_network(nn.Identity())
    with torch.no_grad():
        network[0].bias -= 1e4
    callback = ActivationDrift(memory_budget=1)
    train(network, callback, epochs=1, lr=1e-6)
    dead = [row for row in callback.rows if row.layer == "2"]
    assert [(row.metric, row.reason) for row in dead] == [
        ("mean_drift", "no channel varies"),
        ("std_drift", "no channel varies"),
    ]


def test_activations_that_are_not_finite_are_told() -> None:
    callback = ActivationDrift(memory_budget=1)
    train(small_network(nn.Identity()), callback, epochs=1, lr=1e38, weight_decay=1e6)
    assert {row.reason for row in callback.rows} == {"an activation is not finite"}


@pytest.mark.parametrize("damaged", ["before", "now"])
def test_a_channel_that_is_not_finite_is_not_left_out(damaged: str) -> None:
    sound = _Channels(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]))
    other = _Channels(torch.tensor([torch.nan, 2.0]), torch.tensor([torch.nan, 1.0]))
    values, reason = _drift(*((other, sound) if damaged == "before" else (sound, other)))
    assert np.isnan(list(values.values())).all()
    assert reason == "an activation is not finite"
