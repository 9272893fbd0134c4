"""Inputs that are not finite: no metric returns an ordinary value."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bnstudy.metrics import METRICS, SIMILARITIES, chosen, evaluate
from bnstudy.representations import Layer, capture
from tests.metrics.samples import ALONE, NETWORK, classes, generator, streamed

NAN, INFINITY = math.nan, math.inf


def images() -> Tensor:
    return torch.rand(40, 4, 3, 3, generator=generator(0))


def at(index: tuple[int | slice, ...], value: float) -> Callable[[], Tensor]:
    def changed() -> Tensor:
        x = images()
        x[index] = value
        return x

    return changed


EVERYWHERE = slice(None)
CASES = {
    "one NaN": at((3, 1, 2, 0), NAN),
    "a sample of NaNs": at((3,), NAN),
    "a channel of NaNs": at((EVERYWHERE, 1), NAN),
    "NaNs": at((EVERYWHERE,), NAN),
    "one infinity": at((3, 1, 2, 0), INFINITY),
    "one minus infinity": at((3, 1, 2, 0), -INFINITY),
    "a last sample of NaNs": at((-1,), NAN),
}
KINDS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("read", [Layer, streamed], ids=["held", "streamed"])
@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_no_metric_of_a_layer_that_is_not_finite_is_a_number(
    case: str, dtype: torch.dtype, read: Callable[[Tensor, Tensor], Layer]
) -> None:
    layer = read(CASES[case]().to(dtype), classes(40, 4))
    for name, value in evaluate(chosen(ALONE), layer).items():
        assert math.isnan(value.number), name
        assert value.reason == "an activation is not finite"


@pytest.mark.parametrize("case", CASES)
def test_no_metric_in_a_network_that_is_not_finite_is_a_number(case: str) -> None:
    network = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(36, 4))
    batches = list(zip(CASES[case]().split(15), classes(40, 4).split(15), strict=True))
    (layer,) = capture(network, batches, ["0"])
    for name, value in evaluate(METRICS.values(), layer).items():
        assert math.isnan(value.number), name
        assert value.reason == "an activation is not finite"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", SIMILARITIES)
def test_no_similarity_to_a_layer_that_is_not_finite_is_a_number(name: str, case: str) -> None:
    labels = classes(40, 4)
    ordinary, other = Layer(images(), labels), Layer(CASES[case](), labels)
    assert math.isnan(SIMILARITIES[name](ordinary, other))
    assert math.isnan(SIMILARITIES[name](other, ordinary))
    assert math.isnan(SIMILARITIES[name](other, other))
    other.release_activations()
    assert math.isnan(SIMILARITIES[name](ordinary, other))


class Poisoned(nn.Module):
    """Network with a finite hidden layer and some logits that are not finite."""

    def __init__(self, rows: slice, columns: slice, value: float) -> None:
        super().__init__()
        self.hidden, self.classifier = nn.Identity(), nn.Linear(8, 4)
        self.rows, self.columns, self.value = rows, columns, value

    def forward(self, x: Tensor) -> Tensor:
        samples, number = x[:, :8], x[:, 8]
        logits = self.classifier(self.hidden(samples))
        mask = torch.zeros_like(logits, dtype=torch.bool)
        mask[:, self.columns] = True
        chosen_rows = torch.isin(number[: len(samples)].round(), torch.arange(40)[self.rows])
        # Mixing appends averaged pairs to the batch, which is then larger.
        mask = (
            mask & torch.nn.functional.pad(chosen_rows, (0, len(mask) - len(chosen_rows)))[:, None]
        )
        return logits.masked_fill(mask, self.value)


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize("columns", [slice(None), slice(0, 1), slice(3, 4)], ids=str)
@pytest.mark.parametrize("rows", [slice(None), slice(3, 4), slice(39, 40)], ids=str)
def test_logits_that_are_not_finite_give_no_margin_and_no_agreement(
    rows: slice, columns: slice, value: float
) -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.randn(40, 8), torch.arange(40.0)[:, None]], 1)
    labels = classes(40, 4)
    batches = list(zip(x.split(15), labels.split(15), strict=True))
    (layer,) = capture(Poisoned(rows, columns, value), batches, ["hidden"])
    for name, found in evaluate(chosen(sorted(NETWORK)), layer).items():
        if name == "mixup_accuracy":  # counts predictions that are not finite as wrong
            assert found.number <= (0 if rows == slice(None) else 1)
        else:
            assert math.isnan(found.number), name
            assert "finite" in str(found.reason) or not found.is_applicable
    for name, found in evaluate(chosen(ALONE), layer).items():
        assert found.reason is None, name  # these do not depend on the logits


@pytest.mark.parametrize("value", [NAN, INFINITY])
def test_predictions_from_logits_that_are_not_finite_are_wrong(value: float) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.hidden(x) * 0 + torch.tensor([value, 0, 0])

    # Class 0, the argmax of NaN logits, is the class of most samples.
    labels = torch.tensor([0] * 16 + [1] * 4 + [2] * 4)
    (layer,) = capture(Constant(), [(torch.rand(24, 3), labels)], ["hidden"])
    assert METRICS["mixup_accuracy"](layer) == 0


def test_gradients_that_are_not_finite_give_no_margin() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.classifier = nn.Identity(), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(self.hidden(x).sqrt())  # its slope at 0 is infinite

    x = torch.rand(30, 4, generator=generator(0))
    x[5, 2] = 0
    (layer,) = capture(Root(), [(x, torch.arange(30) % 3)], ["hidden"])
    for name in ("margin_mean", "margin_normalized"):
        (value,) = evaluate(chosen([name]), layer).values()
        assert value.reason == "a logit or its gradient is not finite"
