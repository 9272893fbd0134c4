"""Tests of the recorded loss and accuracy."""

import math

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from bnstudy.models.classifier import is_correct
from tests.callbacks.training import Noise, small_network, train

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("logits", "right"),
    [
        ([2.0, 1.0, 0.0], True),
        ([1.0, 2.0, 0.0], False),
        ([NAN, NAN, NAN], False),
        ([2.0, NAN, 0.0], False),
        ([INF, 1.0, 0.0], False),
        ([2.0, 1.0, -INF], False),
    ],
)
def test_predictions_from_logits_that_are_not_finite_are_wrong(
    logits: list[float], right: bool
) -> None:
    assert is_correct(torch.tensor([logits]), torch.tensor([0])).tolist() == [right]


class Undefined(nn.Module):
    """A network whose logits are NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * torch.full((len(images), 3), NAN)


def test_a_network_of_nans_is_never_right() -> None:
    module = train(Undefined(), epochs=1)
    for split in ("train", "test"):
        assert module.performance[split, "accuracy"] == 0  # a third of each split has class 0
        assert math.isnan(module.performance[split, "loss"])
    assert module.diverged


@pytest.mark.parametrize("batch", [7, 250])
def test_accuracy_is_the_quotient_of_two_counts(
    monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr("bnstudy.data.module.EVALUATION_BATCH", batch)
    seen: list[dict[tuple[str, str], float]] = []

    class Watch(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append(dict(pl_module.performance))

    data = Noise()
    module = train(small_network(), Watch(), data=data)
    assert len(seen) == 2
    assert seen[-1] == module.performance
    module.eval()
    for split in ("train", "test"):
        images, labels = data.data.images[split], data.data.labels[split]
        with torch.no_grad():
            logits = module(data.normalize(images)).double()
        right = int((logits.argmax(1) == labels).sum())
        assert 0 < right < len(labels)
        assert module.performance[split, "accuracy"] == right / len(labels)
        loss = nn.functional.cross_entropy(logits, labels).item()
        assert module.performance[split, "loss"] == pytest.approx(loss, rel=1e-6)
