"""Measurements before training, which do not change the training."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from bnstudy.config.composition import resolve
from bnstudy.data import MNIST5k
from bnstudy.models import Classifier, recalibrate
from bnstudy.models.classifier import is_correct
from bnstudy.terms import Split
from bnstudy.training.build import (
    build_classifier,
    build_trainer,
    evaluate_before_training,
    load_data,
    load_weights,
)
from bnstudy.training.fit import quieten_lightning
from tests.conftest import SMALL, Compose

DATA = ("data=planted", "data.samples_per_group={train:30,test:30}", "probe.test=50")


def config_of(composed: Compose, *overrides: str) -> dict[str, Any]:
    arguments = (*SMALL, *DATA, "probe.train=50", "trainer.limit_val_batches=1.0")
    return resolve(composed(*arguments, *overrides))


def trained(
    composed: Compose, norm: str, evaluated: bool
) -> tuple[Classifier, dict[str, torch.Tensor]]:
    """A network after training, and its state before."""
    quieten_lightning()
    config = config_of(composed, f"norm={norm}")
    data = load_data(config)
    classifier = build_classifier(config, data)
    trainer = build_trainer(config, [])
    if evaluated:
        evaluate_before_training(trainer, classifier, data)
    before = deepcopy(classifier.state_dict())
    trainer.fit(classifier, datamodule=data)
    return classifier, before


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batchnorm", "batchnorm_centering", "ghostbatchnorm"])
def test_training_does_not_notice_that_it_was_evaluated_before(
    composed: Compose, norm: str
) -> None:
    ours, before = trained(composed, norm, evaluated=True)
    theirs, reference = trained(composed, norm, evaluated=False)
    torch.testing.assert_close(before, reference, rtol=0, atol=0)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("norm", ["batchnorm", "batchnorm_scaling", "batchnorm_frozen", "none"])
def test_before_training_running_statistics_are_those_of_the_training_data(
    composed: Compose, tmp_path: Path, norm: str
) -> None:
    quieten_lightning()
    config = config_of(composed, f"norm={norm}")
    data = load_data(config)
    classifier = build_classifier(config, data)
    reference = deepcopy(classifier.network).eval()
    evaluate_before_training(build_trainer(config, []), classifier, data)
    recalibrate(reference, data.calibration())
    images, labels = data.data.images["test"], data.data.labels["test"]
    with torch.no_grad():
        right = is_correct(reference(data.normalize(images)), labels)
    # A sample on the border between two classes may go either way.
    accuracy = classifier.performance["test", "accuracy"]
    assert accuracy == pytest.approx(right.double().mean().item(), abs=1.5 / len(labels))

    path = tmp_path / "epoch=0.ckpt"
    content = {"epoch": 0, "global_step": 0, "state_dict": classifier.state_dict()}
    torch.save(content, path)
    loaded = build_classifier(config, load_data(config))
    assert load_weights(loaded, path, data) == 0
    loaded.cpu()
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(loaded.network.state_dict()[name], value)


@pytest.mark.slow
@pytest.mark.parametrize("probe", [None, 10])
def test_statistics_before_training_come_from_a_fixed_part_of_the_training_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probe: int | None
) -> None:
    samples: dict[Split, int | None] = {"train": probe, "test": probe}
    data = MNIST5k(str(tmp_path), batch_size=64, seed=0, probe=samples, validation=0.2)
    data.setup()
    monkeypatch.setattr("bnstudy.data.module.MAX_CALIBRATION_SAMPLES", 5000)
    images, labels = (torch.cat(parts) for parts in zip(*data.calibration(), strict=True))
    assert torch.bincount(labels).tolist() == [320] * 10
    monkeypatch.setattr("bnstudy.data.module.MAX_CALIBRATION_SAMPLES", 1000)
    batches = list(data.calibration())
    assert [len(labels) for _, labels in batches] == [250] * 4
    assert torch.bincount(torch.cat([labels for _, labels in batches])).tolist() == [100] * 10
    sums = images.double().sum((1, 2, 3))
    assert all(torch.isin(some.double().sum((1, 2, 3)), sums).all() for some, _ in batches)
    assert torch.equal(next(iter(data.calibration()))[0], batches[0][0])


def test_deterministic_runs_do_not_choose_algorithms_by_speed(composed: Compose) -> None:
    config = config_of(composed, "trainer.deterministic=true", "+trainer.benchmark=true")
    try:
        build_trainer(config, [])
        assert not torch.backends.cudnn.benchmark
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
