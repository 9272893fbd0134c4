"""Tests of the samples that `data.validation` holds out of the training split."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from bnstudy import measure
from bnstudy.data.batches import Normalize, choose_balanced, choose_stratified
from bnstudy.data.images import Images
from bnstudy.errors import UserError
from bnstudy.models import Classifier
from bnstudy.terms import SPLITS
from tests.callbacks.training import Noise, noise, small_network, train
from tests.conftest import SMALL, CommandLine, description, only_cell, read_rows
from tests.data.test_module import mnist5k

QUICK = (*SMALL, "metrics.names=[unit_sparsity]")


def test_a_share_of_each_class_is_chosen_and_always_the_same() -> None:
    labels = torch.tensor([2] * 20 + [0] * 700 + [1] * 201)
    chosen = choose_stratified(labels, 0.1)
    assert torch.bincount(labels[chosen]).tolist() == [70, 20, 2]
    assert torch.equal(chosen, choose_stratified(labels, 0.1))
    more = choose_stratified(labels, 0.3)
    assert more[chosen].all()
    assert more.sum() == 210 + 60 + 6


@pytest.mark.slow
def test_the_same_digits_are_held_out_whatever_the_seed(tmp_path: Path) -> None:
    whole = mnist5k(tmp_path)
    whole.setup()
    data = mnist5k(tmp_path, validation=0.2)
    data.setup()
    other = mnist5k(tmp_path, validation=0.2, seed=1, shift=2, batch_size=8)
    other.setup()
    trained_on, held_out = (data.indices[split] for split in ("train", "validation"))
    assert torch.equal(held_out, other.indices["validation"])
    labels = data.data.labels["train"]
    assert torch.bincount(labels[held_out]).tolist() == [80] * 10
    assert torch.cat([trained_on, held_out]).sort().values.tolist() == list(range(4000))
    assert data.facts() == whole.facts() | {
        "train": 3200,
        "validation": 800,
        "probe": {"train": 3200, "test": 1000},
    }
    assert whole.facts()["validation"] == 0

    remaining = Normalize.from_images(data.data.images["train"][trained_on])
    assert torch.equal(data.normalize.mean, remaining.mean)
    assert torch.equal(data.normalize.std, remaining.std)
    some = mnist5k(tmp_path, validation=0.2, probe={"train": 500, "test": None})
    some.setup()
    probe = some.probe_indices["train"]
    assert torch.bincount(labels[probe]).tolist() == [50] * 10
    assert not torch.isin(probe, held_out).any()
    assert torch.equal(some.probe("train").images, some.data.images["train"][probe])


class Remaining(Noise):
    """The training samples of a data set with a validation split, as a data set of their own."""

    def load(self) -> Images:
        data = noise(validation=0.25)
        images, labels = (
            values | {"train": values["train"][data.indices["train"]]}
            for values in (data.data.images, data.data.labels)
        )
        return replace(data.data, images=images, labels=labels)


def test_held_out_samples_are_evaluated_and_change_nothing_else() -> None:
    data = noise(validation=0.25)
    ours = train(small_network(), data=data)
    theirs = train(small_network(), data=Remaining())
    weights, without = ours.state_dict(), theirs.state_dict()
    assert all(torch.equal(weights[name], without[name]) for name in weights)

    values = ours.trainer.callback_metrics
    for name, value in theirs.trainer.callback_metrics.items():
        assert torch.equal(values[name], value), name
    added = values.keys() - theirs.trainer.callback_metrics.keys()
    assert added == {"validation/loss", "validation/accuracy"}
    held_out = data.indices["validation"]
    images, labels = (values["train"][held_out] for values in (data.data.images, data.data.labels))
    ours.eval()
    with torch.no_grad():
        predicted = ours(data.normalize(images)).argmax(1)
    accuracy = (predicted == labels).float().mean()
    assert values["validation/accuracy"].item() == pytest.approx(accuracy.item())


def test_without_a_validation_split_the_data_are_not_copied() -> None:
    data = noise(probe={"train": 30, "test": None})
    train(small_network(), data=data)
    assert data.train_dataloader().images is data.data.images["train"]
    evaluated = data.val_dataloader()
    assert len(evaluated) == len(SPLITS)
    for split, batches in zip(SPLITS, evaluated, strict=True):
        assert batches.images is data.data.images[split]
        assert batches.labels is data.data.labels[split]
    assert torch.equal(data.probe_indices["train"], choose_balanced(data.data.labels["train"], 30))


class Spoil(L.Callback):
    """A callback that sets the images of the second evaluated split to NaN."""

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if dataloader_idx == 1:
            batch[0].fill_(torch.nan)


def test_a_validation_loss_that_is_not_finite_is_a_divergence() -> None:
    def trained(*callbacks: L.Callback) -> Classifier:
        return train(small_network(), *callbacks, data=noise(validation=0.25))

    assert not trained().diverged
    spoiled = trained(Spoil())
    assert spoiled.trainer.callback_metrics["validation/loss"].isnan()
    assert spoiled.diverged


@pytest.mark.slow
def test_a_run_with_a_validation_split_records_its_loss_and_accuracy(
    command_line: CommandLine, tmp_path: Path
) -> None:
    result = command_line(*QUICK, "data.validation=0.2", "logger=csv")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(" validation ") == 2  # before training and after the last epoch
    cell = only_cell(tmp_path / "multirun")
    run = description(cell)
    assert (run["data"]["train"], run["data"]["validation"]) == (3200, 800)
    assert run["final"].keys() == {"epoch"} | {
        f"{split}_{metric}"
        for split in ("train", "validation", "test")
        for metric in ("loss", "accuracy")
    }
    rows = read_rows(cell)
    held_out = [row for row in rows if row["split"] == "validation"]
    assert [(row["epoch"], row["metric"]) for row in held_out] == [
        (epoch, metric) for epoch in (0, 2) for metric in ("loss", "accuracy")
    ]
    assert {(row["layer_index"], row["layer"], row["site"]) for row in held_out} == {
        (-1, "model", None)
    }
    assert run["final"]["validation_accuracy"] == held_out[-1]["value"]
    (file,) = cell.glob("csv/*/metrics.csv")
    with file.open() as lines:
        logged = [row["validation/loss"] for row in csv.DictReader(lines)]
    assert [float(value) for value in logged if value] == pytest.approx(
        [row["value"] for row in held_out if row["metric"] == "loss"]
    )

    later = command_line(str(cell), "metrics.names=[hoyer]", main=measure.main)
    assert later.returncode == 0, later.stderr
    added = read_rows(cell)[len(rows) :]
    assert {(row["epoch"], row["split"], row["metric"]) for row in added} == {
        (2, split, "hoyer") for split in SPLITS
    }


@pytest.mark.slow
def test_a_run_without_a_validation_split_does_not_mention_one(
    command_line: CommandLine, tmp_path: Path
) -> None:
    result = command_line(*QUICK, "logger=csv")
    assert result.returncode == 0, result.stderr
    assert "validation" not in result.stdout
    cell = only_cell(tmp_path / "multirun")
    assert description(cell)["final"].keys() == {
        "epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy"
    }  # fmt: skip
    assert {row["split"] for row in read_rows(cell)} == set(SPLITS)
    (file,) = cell.glob("csv/*/metrics.csv")
    assert "validation" not in file.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("share", "words"),
    [
        ("1", ["data.validation=1 is not allowed", "from 0 to below 1"]),
        ("-0.1", ["data.validation=-0.1 is not allowed"]),
        ("true", ["data.validation=True is not allowed"]),
        ("0.001", ["data.validation=0.001", "0 of the 400", "class 0", "from 0.0025 to 0.998"]),
        ("0.999", ["data.validation=0.999", "400 of the 400", "or 0 for none"]),
    ],
)
def test_a_share_that_cannot_be_is_told(
    command_line: CommandLine, tmp_path: Path, share: str, words: list[str]
) -> None:
    result = command_line(*QUICK, f"data.validation={share}")
    assert result.returncode == 1
    assert 1 <= len(result.stderr.splitlines()) <= 2
    for word in words:
        assert word in result.stderr
    assert not list(tmp_path.glob("multirun/*"))


class Rare(Noise):
    """A data set with a single training sample of the last class."""

    def load(self) -> Images:
        data = super().load()
        images, labels = (
            values | {"train": values["train"][:41]} for values in (data.images, data.labels)
        )
        return replace(data, images=images, labels=labels)


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_class_of_one_sample_cannot_be_divided(share: float) -> None:
    with pytest.raises(UserError, match=r"of the 1 training samples of class c(.|\n)* of 0, for"):
        Rare(validation=share).setup()
