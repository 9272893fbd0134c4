"""Loss and accuracy: of whole splits at the ends of a run, of the probe sets in between."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping

from bnstudy import measure
from bnstudy.runs.record import Record
from bnstudy.study.load.study_runs import StudyRuns
from bnstudy.trained.finished_run import rebuild
from bnstudy.training.build import load_weights
from tests.conftest import SMALL, CommandLine, description, only_cell, read_rows

RUN = (*SMALL, "trainer.limit_val_batches=1.0", "trainer.max_epochs=3")
RUN = (*RUN, "data=planted", "data.samples_per_group={train:30,test:20}")
METRICS = "metrics.names=[unit_sparsity]"
SPLITS = ("train", "test")


def performance(cell: Path) -> dict[tuple[int, str, str], float]:
    rows = read_rows(cell)
    values = {
        (row["epoch"], row["split"], row["metric"]): row["value"]
        for row in rows
        if row["layer"] == "model"
    }
    assert len(values) == sum(row["layer"] == "model" for row in rows)
    return values


def epochs_of(values: dict[tuple[int, str, str], float], metric: str) -> list[int]:
    return sorted(epoch for epoch, split, name in values if (split, name) == ("test", metric))


def expected(cell: Path, epoch: int) -> dict[str, float]:
    """Compute loss and accuracy from an epoch's weights, in one batch, by torch alone."""
    record = Record.read(cell)
    data, classifier = rebuild(record, {})
    load_weights(classifier, record.checkpoints()[epoch], data)
    classifier.eval()
    values = {}
    for split in SPLITS:
        for kind, which in (("", slice(None)), ("probe_", data.probe_indices[split])):
            images, labels = data.data.images[split][which], data.data.labels[split][which]
            with torch.no_grad():
                logits = classifier(data.normalize(images)).double()
            values[f"{split}/{kind}loss"] = torch.nn.functional.cross_entropy(logits, labels).item()
            right = (logits.argmax(1) == labels).double()
            values[f"{split}/{kind}accuracy"] = right.mean().item()
    return values


@pytest.mark.slow
def test_whole_splits_at_the_ends_and_the_probe_sets_at_every_measured_epoch(
    command_line: CommandLine, tmp_path: Path
) -> None:
    result = command_line(*RUN, METRICS, "checkpoint_epochs=all")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(" · loss ") == 2
    assert result.stdout.count(" · probe loss ") == 2
    cell = only_cell(tmp_path / "multirun")
    values = performance(cell)
    for metric in ("loss", "accuracy"):
        assert epochs_of(values, metric) == [0, 3]
        assert epochs_of(values, f"probe_{metric}") == [0, 1, 2, 3]
    for epoch in range(4):
        for name, value in expected(cell, epoch).items():
            if (number := (epoch, *name.split("/"))) in values:
                assert values[number] == pytest.approx(value, rel=1e-5), number
    final = description(cell)["final"]
    assert final == {"epoch": 3} | {
        f"{split}_{metric}": values[3, split, metric]
        for split in SPLITS
        for metric in ("loss", "accuracy")
    }


def test_without_metrics_there_are_loss_and_accuracy(
    command_line: CommandLine, tmp_path: Path
) -> None:
    assert command_line(*RUN, "metrics=none", "metrics.every_n_epochs=2").returncode == 0
    cell = only_cell(tmp_path / "multirun")
    values = performance(cell)
    assert epochs_of(values, "probe_loss") == [0, 2, 3]
    assert epochs_of(values, "loss") == [0, 3]
    assert {row["layer"] for row in read_rows(cell)} == {"model"}


@pytest.mark.slow
def test_an_epoch_that_is_measured_later_gets_them_too(
    command_line: CommandLine, tmp_path: Path
) -> None:
    every = ("checkpoint_epochs=all", "metrics.every_n_epochs=3")
    assert command_line(*RUN, METRICS, *every).returncode == 0
    cell = only_cell(tmp_path / "multirun")
    assert epochs_of(performance(cell), "probe_loss") == [0, 3]
    result = command_line(str(cell), METRICS, "--epochs", "1,3", main=measure.main)
    assert result.returncode == 0, result.stderr
    assert "unit_sparsity of epoch 1" in result.stdout
    values = performance(cell)
    assert epochs_of(values, "probe_loss") == [0, 1, 3]
    assert values[1, "test", "probe_loss"] == pytest.approx(
        expected(cell, 1)["test/probe_loss"], rel=1e-5
    )
    again = command_line(str(cell), METRICS, "--epochs", "1,3", main=measure.main)
    assert "all requested metrics are already recorded" in again.stdout


class Stopped(L.Trainer):
    """A user's trainer that stops after the first epoch, once it was recorded."""

    def __init__(self, callbacks: list[L.Callback], **options: Any) -> None:
        stop = EarlyStopping("test/probe_loss", stopping_threshold=1e9)
        super().__init__(callbacks=[*callbacks, stop], **options)


class StoppedWithin(L.Trainer):
    """A user's trainer that stops within the second epoch."""

    def __init__(self, callbacks: list[L.Callback], **options: Any) -> None:
        class Stop(L.Callback):
            def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
                trainer.should_stop |= trainer.global_step == 10

        super().__init__(callbacks=[*callbacks, Stop()], **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "last", "every"),
    [("Stopped", 1, 1), ("StoppedWithin", 2, 1), ("StoppedWithin", 2, 3)],
)
def test_a_run_that_stops_early_ends_with_the_whole_splits(
    command_line: CommandLine, tmp_path: Path, trainer: str, last: int, every: int
) -> None:
    own = (f"trainer._target_=tests.training.test_evaluation.{trainer}", "logger=csv")
    result = command_line(*RUN, METRICS, f"metrics.every_n_epochs={every}", *own)
    assert result.returncode == 0, result.stderr
    cell = only_cell(tmp_path / "multirun")
    values = performance(cell)
    assert epochs_of(values, "loss") == [0, last]
    assert epochs_of(values, "probe_loss") == ([0, last] if every == 3 else [*range(last + 1)])
    for name, value in expected(cell, last).items():
        assert values[last, *name.split("/")] == pytest.approx(value, rel=1e-5), name
    assert {row["epoch"] for row in read_rows(cell) if row["metric"] == "unit_sparsity"} >= {
        0,
        last,
    }
    run = description(cell)
    assert (run["status"], run["final"]["epoch"]) == ("completed", last)
    assert run["final"]["test_loss"] == values[last, "test", "loss"]
    logged = next(cell.glob("csv/*/metrics.csv")).read_text()
    assert str(values[last, "train", "loss"]) in logged
    study = StudyRuns.read(cell.parent)
    assert study.query("select count(*) from final where metric = 'loss'").iloc[0, 0] == 2
