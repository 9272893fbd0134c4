"""Metrics that need the network, compared with naive forward and backward passes."""

import copy
import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnstudy.metrics import METRICS, chosen, evaluate
from bnstudy.models import CNN, Normalization
from bnstudy.representations import Layer, capture
from tests.metrics.samples import classes, generator

Batches = list[tuple[Tensor, Tensor]]


def images(count: int, num_classes: int, size: int) -> Batches:
    labels = classes(count, num_classes)
    centres = torch.randn(num_classes, 1, 8, 8, generator=generator(0))
    noise = torch.randn(count, 1, 8, 8, generator=generator(1))
    return list(zip((centres[labels] + noise).split(size), labels.split(size), strict=True))


@cache
def _trained(num_classes: int, norm: str) -> CNN:
    torch.manual_seed(0)
    shape = (1, 8, 8)
    model = CNN(2, 4, input_shape=shape, num_classes=num_classes, norm=Normalization(norm))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for inputs, labels in 6 * images(200, num_classes, 50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    model.zero_grad()
    return model


def trained(num_classes: int, norm: str = "batchnorm") -> CNN:
    """Train a network a little, so that some of its predictions are right and some are wrong."""
    return copy.deepcopy(_trained(num_classes, norm))


def stages(model: CNN) -> list[tuple[str, nn.Module]]:
    """Return the modules in order of computation."""
    flat = []
    for name, module in model.eval().named_children():
        parts = list(module.named_children())
        flat += [(f"{name}.{part}", child) for part, child in parts] or [(name, module)]
    return flat


def after(model: CNN, place: str) -> tuple[nn.Sequential, nn.Sequential]:
    """Split a network after a module."""
    names = [name for name, _ in stages(model)]
    modules = [module for _, module in stages(model)]
    cut = names.index(place) + 1
    return nn.Sequential(*modules[:cut]), nn.Sequential(*modules[cut:])


def layers_of(model: nn.Module, batches: Batches) -> dict[str, Layer]:
    sites = ["conv", "norm", "act"]
    found = {f"{one.name}.{one.tap.site}": one for one in capture(model, batches, sites=sites)}
    (last,) = capture(model, batches, sites=["features"])
    return found | {"flatten": last}


def naive_margins(model: CNN, place: str, batches: Batches) -> list[float]:
    before, behind = after(model, place)
    margins = []
    for inputs, labels in batches:
        for image, label in zip(inputs, labels, strict=True):
            with torch.no_grad():
                hidden = before(image[None])
            hidden.requires_grad_()
            (logits,) = behind(hidden)
            others = [number for number in range(len(logits)) if number != label]
            gap = logits[label] - max(logits[other] for other in others)
            (slope,) = torch.autograd.grad(gap, hidden)
            if slope.norm() > 0:
                margins.append((gap / slope.norm()).item())
    return margins


def naive_mixup(model: CNN, place: str, batches: Batches) -> float:
    before, behind = after(model, place)
    correct: list[bool] = []
    waiting: dict[int, Tensor] = {}
    for inputs, labels in batches:
        for image, label in zip(inputs, labels.tolist(), strict=True):
            if label not in waiting:
                waiting[label] = image
                continue
            with torch.no_grad():
                one, other = (before(each[None]) for each in (waiting.pop(label), image))
                correct.append(behind((one + other) / 2).argmax().item() == label)
    return float(np.mean(correct))


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batchnorm", "none"])
@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_margins_are_those_of_single_samples(num_classes: int, norm: str) -> None:
    model, batches = trained(num_classes, norm), images(40, num_classes, 16)
    for place, layer in layers_of(model, batches).items():
        margins = naive_margins(model, place, batches)
        assert METRICS["margin_mean"](layer) == pytest.approx(np.mean(margins), rel=1e-3)
        values = layer.activations.flatten(1).double()
        variation = (values - values.mean(0)).square().sum(1).mean().sqrt().item()
        assert METRICS["margin_normalized"](layer) == pytest.approx(
            np.mean(margins) / variation, rel=1e-3
        )


@pytest.mark.parametrize("num_classes", [2, 10, 100])
@pytest.mark.parametrize("size", [1, 7, 60, 200], ids=lambda size: f"batches of {size}")
def test_mixup_accuracy_is_that_of_a_naive_forward_pass(size: int, num_classes: int) -> None:
    model = trained(num_classes)
    batches = images(120 if num_classes == 100 else 40, num_classes, size)
    layers = layers_of(model, batches)
    for place in ("block01.conv", "flatten"):
        ours = METRICS["mixup_accuracy"](layers[place])
        assert ours == pytest.approx(naive_mixup(model, place, batches), abs=1e-6)


class Shortcut(nn.Module):
    """Network with residual connections around its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(6, 6), nn.Linear(6, 6)
        self.classifier = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.one(x)
        return self.classifier(x + self.other(x))


class Parallel(nn.Module):
    """Network with two layers that have the same input."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(6, 3), nn.Linear(6, 3)
        self.classifier = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.cat([self.one(x), self.other(x)], 1))


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 6)
        self.classifier = nn.Linear(6, 4)


class OwnBatchSize(OneLayer):
    """Network that fails if the batch size changes on the way."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        assert len(y) == len(x)
        return self.classifier(y)


class AcrossSamples(OneLayer):
    """Network in which the samples of a batch are not independent."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return self.classifier(y - 3 * y.amax(0))


@pytest.mark.parametrize("network", [Shortcut, Parallel, OwnBatchSize, AcrossSamples])
def test_mixup_accuracy_is_right_where_it_takes_a_pass_for_each_layer(
    network: type[nn.Module],
) -> None:
    torch.manual_seed(3)
    model = network().eval()
    inputs, labels = torch.randn(80, 6), torch.arange(4).repeat_interleave(20)  # pairs in order
    names = [name for name, _ in model.named_children() if name != "classifier"]
    for layer in capture(model, [(inputs, labels)], names):

        def mix(module: nn.Module, _: object, output: Tensor) -> Tensor:
            return output.unflatten(0, (-1, 2)).mean(1).repeat_interleave(2, 0)

        handle = model.get_submodule(layer.name).register_forward_hook(mix)
        with torch.no_grad():
            expected = (model(inputs).argmax(1) == labels).double().mean().item()
        handle.remove()
        assert METRICS["mixup_accuracy"](layer) == pytest.approx(expected)


@pytest.mark.parametrize("norm", ["batchnorm", "none"])
def test_all_layers_of_a_network_without_shortcuts_are_mixed_in_one_pass(norm: str) -> None:
    model, batches = trained(10, norm), images(150, 10, 50)
    passes: list[int] = []
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    layers = layers_of(model, batches)
    assert len(layers) == 7
    for place, layer in layers.items():
        if place != "flatten":
            expected = naive_mixup(model, place, batches)
            assert METRICS["mixup_accuracy"](layer) == pytest.approx(expected, abs=1e-6)
    handle.remove()
    # Passes for the shapes, for reading, for the trial with all layers and each alone, for mixing.
    assert sum(passes) <= 2 * (1 + 3) + (1 + 6) + 3


def test_a_class_that_is_alone_in_its_batches_is_mixed_as_well() -> None:
    inputs = torch.eye(3).repeat(2, 1)
    labels = torch.arange(3).repeat(2)
    network = nn.Sequential(nn.Identity(), nn.Linear(3, 3, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.eye(3))
    for size in (1, 2, 3, 4, 6):
        batches = list(zip(inputs.split(size), labels.split(size), strict=True))
        (layer,) = capture(network, batches, ["0"])
        assert METRICS["mixup_accuracy"](layer) == 1


def test_where_no_class_has_two_samples_there_is_no_mixup() -> None:
    (layer,) = capture(
        nn.Sequential(nn.Identity(), nn.Linear(4, 4)), [(torch.eye(4), torch.arange(4))], ["0"]
    )
    ((value, reason, _),) = evaluate(chosen(["mixup_accuracy"]), layer).values()
    assert math.isnan(value)
    assert reason == "no class has two samples"


def test_mixing_is_linear_up_to_the_last_layer() -> None:
    # The last layer is linear: averaging its inputs averages its outputs.
    model, batches = trained(10), images(60, 10, 25)
    (features,) = capture(model, batches, sites=["features"])
    (logits,) = capture(model, batches, ["classifier"])
    accuracies = [METRICS["mixup_accuracy"](layer) for layer in (features, logits)]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.04)  # one pair, by rounding


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_neural_collapse_of_the_last_layer(num_classes: int) -> None:
    model, batches = trained(num_classes), images(250, num_classes, 60)
    (layer,) = capture(model, batches, sites=["features"])
    inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        features = after(model, "flatten")[0](inputs).double().numpy()
        predicted = model(inputs).argmax(1).numpy()
    truth = labels.numpy()
    means = np.stack([features[truth == c].mean(0) for c in range(num_classes)])
    centred = means - features.mean(0)
    weights = model.classifier.weight.detach().double().numpy()
    duality = weights / np.linalg.norm(weights) - centred / np.linalg.norm(centred)
    assert METRICS["nc3"](layer) == pytest.approx(np.linalg.norm(duality), rel=1e-4)
    nearest = np.linalg.norm(features[:, None] - means, axis=2).argmin(1)
    assert METRICS["ncc_agreement"](layer) == pytest.approx((nearest == predicted).mean())


def test_agreement_at_any_layer_and_with_names_of_classes_that_have_gaps() -> None:
    model, batches = trained(10), images(120, 10, 50)
    batches = [(inputs[labels % 3 > 0], labels[labels % 3 > 0]) for inputs, labels in batches]
    (layer,) = capture(model, batches, ["block01.act"])
    inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        values = model.eval().block01(inputs).flatten(1).double()
        predicted = model(inputs).argmax(1)
    names = labels.unique()
    means = torch.stack([values[labels == name].mean(0) for name in names])
    nearest = names[torch.cdist(values, means).argmin(1)]
    expected = (nearest == predicted).double().mean().item()
    assert METRICS["ncc_agreement"](layer) == pytest.approx(expected)
    (features,) = capture(model, batches, sites=["features"])
    ((_, reason, is_applicable),) = evaluate(chosen(["nc3"]), features).values()
    assert reason == "not every class of the last layer has a sample"
    assert is_applicable


def test_where_a_metric_of_the_network_does_not_apply() -> None:
    batches = images(30, 3, 10)
    encoder = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    for model, names in [
        (encoder, ["nc3", "ncc_agreement", "mixup_accuracy", "margin_mean", "margin_normalized"]),
        (trained(3), ["nc3"]),
    ]:
        for layer in capture(model, batches):
            for value in evaluate(chosen(names), layer).values():
                assert math.isnan(value.number)
                assert not value.is_applicable


class Branch(nn.Module):
    """Network whose logits do not depend on one of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(5, 6), nn.Linear(5, 7)
        self.classifier = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        return self.classifier(self.used(x))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("layers", [["unused"], ["used", "unused"]])
def test_logits_that_do_not_depend_on_a_layer_have_no_margin_there(
    layers: list[str], frozen: bool
) -> None:
    torch.manual_seed(0)
    model = Branch().requires_grad_(not frozen)
    batches = [(torch.randn(20, 5), torch.arange(20) % 3)]
    values = {
        layer.name: evaluate(chosen(["margin_mean"]), layer)["margin_mean"]
        for layer in capture(model, batches, layers)
    }
    assert values["unused"].reason == "the logits do not depend on this layer"
    assert "used" not in values or values["used"].reason is None


def test_margins_of_a_network_whose_layers_write_in_place() -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(20, 5), torch.arange(20) % 3)]
    linear = nn.Linear(5, 6), nn.Linear(6, 3)
    values = []
    for in_place in (True, False):
        model = nn.Sequential(linear[0], nn.ReLU(in_place), linear[1]).requires_grad_(False)
        values.append(
            [METRICS["margin_mean"](layer) for layer in capture(model, batches, ["0", "1"])]
        )
    assert values[0] == pytest.approx(values[1])
    assert not np.isnan(values).any()


def test_margins_and_mixup_leave_the_network_as_it_was() -> None:
    model = trained(3).train()
    parameters = [parameter.clone() for parameter in model.parameters()]
    model.classifier.bias.requires_grad_(False)
    for layer in capture(model, images(30, 3, 10), sites=["act"]):
        assert METRICS["margin_mean"](layer) == METRICS["margin_mean"](layer)
        assert METRICS["mixup_accuracy"](layer) > 0
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(map(torch.equal, parameters, model.parameters()))
    assert not model.classifier.bias.requires_grad
    assert model.classifier.weight.requires_grad


def test_margins_are_computed_once_for_all_layers() -> None:
    model, batches = trained(3), images(30, 3, 10)
    passes = []
    model.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    names = ["margin_mean", "margin_normalized"]
    for layer in capture(model, batches, sites=["act", "conv"]):
        evaluate(chosen(names), layer)
    assert sum(passes) == len(batches)
