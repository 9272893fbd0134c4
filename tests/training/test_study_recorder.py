"""Runs that `bnstudy.StudyRecorder` records from a Lightning training."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    get_worker_info,
)

import bnstudy
from bnstudy.errors import UserError
from bnstudy.training.study_recorder import _evaluate, _make_data
from tests.callbacks.training import QUIET
from tests.conftest import description, read_rows
from tests.training.test_own_run import NAMES, X, Y, network


class Module(L.LightningModule):
    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.network, self.fails = network(), fails

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        if self.fails and self.current_epoch == 1:
            raise RuntimeError("a bug of mine")
        return functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, index: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(
    root: Path, *, epochs: int = 2, resume: Path | None = None, fails: bool = False, **options: Any
) -> tuple[Module, Path]:
    recorder = bnstudy.StudyRecorder(
        "mine", "batchnorm", 0, {"depth": 2}, output_root=root, **{"metrics": NAMES} | options
    )
    trainer = L.Trainer(**QUIET, max_epochs=epochs, callbacks=[recorder])
    loaders = (
        DataLoader(TensorDataset(X[:45], Y[:45]), 15, shuffle=True),
        DataLoader(TensorDataset(X[45:], Y[45:]), 15),
    )
    module = Module(fails)
    with pytest.warns():  # Lightning's, of workers
        trainer.fit(module, *loaders, ckpt_path=resume)
    trainer.save_checkpoint(root / "mine.ckpt")
    return module, recorder.run.folder


def test_a_lightning_training_makes_a_run_and_goes_on(tmp_path: Path) -> None:
    module, cell = fit(tmp_path)
    record = description(cell)
    assert record["status"] == "completed"
    assert (record["data"]["train"], record["data"]["test"]) == (45, 15)
    module.eval()
    with torch.no_grad():
        loss = functional.cross_entropy(module(X[:45]), Y[:45]).item()
        accuracy = (module(X[45:]).argmax(1) == Y[45:]).float().mean().item()
    assert record["final"]["train_loss"] == pytest.approx(loss)
    assert record["final"]["test_accuracy"] == pytest.approx(accuracy)
    assert {row["epoch"] for row in read_rows(cell)} == {0, 1, 2}
    before = [row for row in read_rows(cell) if row["epoch"] < 2]

    with pytest.raises(UserError, match="overwrite=True"):
        fit(tmp_path)
    _, cell = fit(tmp_path, epochs=3, resume=tmp_path / "mine.ckpt", overwrite=True)
    assert {row["epoch"] for row in read_rows(cell)} == {0, 1, 2, 3}
    assert [row for row in read_rows(cell) if row["epoch"] < 2] == before
    assert description(cell)["attempts"][-1]["resumed_from_epoch"] == 2

    # What was interrupted does not go on with other measurements.
    with pytest.raises(RuntimeError, match="a bug of mine"):
        fit(tmp_path, fails=True, overwrite=True)
    batches = [(X[:45], Y[:45])]
    for options, words in (
        (
            {"metrics": ["hoyer"]},
            "metrics are \\['hoyer'\\], but were \\['silhouette', 'unit_sparsity'\\]",
        ),
        (
            {"probes": {"train": batches}},
            r"probes are 45 of train .*, but were 15 of test, 45 of train",
        ),
    ):
        with pytest.raises(UserError, match=words) as refused:
            fit(tmp_path, epochs=4, resume=tmp_path / "mine.ckpt", **options)
        assert len(str(refused.value).splitlines()) == 2
        assert len(list(cell.glob("metrics/*"))) == 2
    _, cell = fit(
        tmp_path, epochs=4, resume=tmp_path / "mine.ckpt", metrics=["hoyer"], overwrite=True
    )
    assert {(row["epoch"], row["metric"]) for row in read_rows(cell)} >= {(4, "hoyer")}
    assert {row["epoch"] for row in read_rows(cell)} == {4}


def test_a_recorder_of_two_trainings_measures_the_data_of_each(tmp_path: Path) -> None:
    recorder = bnstudy.StudyRecorder(
        "mine", "batchnorm", 0, output_root=tmp_path, metrics=NAMES, overwrite=True
    )
    for epochs, samples, resume in ((2, 45, None), (4, 45, tmp_path / "mine.ckpt"), (1, 30, None)):
        trainer = L.Trainer(**QUIET, max_epochs=epochs, callbacks=[recorder])
        data = TensorDataset(X[:samples], Y[:samples])
        with pytest.warns():  # Lightning's, of workers
            trainer.fit(Module(), DataLoader(data, 15), DataLoader(data, 15), ckpt_path=resume)
        trainer.save_checkpoint(tmp_path / "mine.ckpt")
        assert {row["epoch"] for row in read_rows(recorder.run.folder)} == {*range(epochs + 1)}
        assert description(recorder.run.folder)["data"]["train"] == samples


def test_two_recorders_of_one_run_in_a_trainer_are_refused(tmp_path: Path) -> None:
    recorders: list[L.Callback] = [
        bnstudy.StudyRecorder("mine", "batchnorm", 0, output_root=tmp_path, metrics=[])
        for _ in range(2)
    ]
    trainer = L.Trainer(**QUIET, max_epochs=1, callbacks=recorders)
    data = DataLoader(TensorDataset(X, Y), 60)
    with (
        pytest.warns(),  # Lightning's, of workers
        pytest.raises(
            UserError, match=r"this process itself .*\n.* another study, seed or axes"
        ) as error,
    ):
        trainer.fit(Module(), data, data)
    assert len(str(error.value).splitlines()) == 2


def test_the_interval_is_recorded_or_refused_at_once(tmp_path: Path) -> None:
    _, cell = fit(tmp_path, epochs=3, every_n_epochs=np.int64(2))
    assert {row["epoch"] for row in read_rows(cell)} == {0, 2, 3}
    assert description(cell)["config"]["metrics"]["every_n_epochs"] == 2
    with pytest.raises(UserError, match="every_n_epochs=0 is not allowed"):
        bnstudy.StudyRecorder("mine", "batchnorm", 0, every_n_epochs=0)


def test_a_lightning_training_that_fails_keeps_its_error_and_its_epochs(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug of mine"):
        fit(tmp_path, fails=True)
    (record,) = tmp_path.glob("mine/*/run.json")
    cell = record.parent
    assert description(cell)["attempts"][-1]["error"] == "RuntimeError: a bug of mine"
    assert len(list(cell.glob("metrics/*"))) == 2  # epochs 0 and 1


def test_a_loss_of_probabilities_is_warned_of() -> None:
    model = network()
    assert _evaluate(model, [(X, Y)])["accuracy"] >= 0  # without a warning
    with pytest.warns(match="Sequential: its outputs are probabilities, .*\nReturn logits"):
        _evaluate(nn.Sequential(model, nn.Softmax(1)), [(X, Y)])


class Noisy(TensorDataset):
    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return x + (torch.rand(()) > 0.5), y


class Opened(TensorDataset):
    """Samples that are read from what a worker process has opened."""

    is_open = True

    def __getitem__(self, index: int) -> Any:
        assert Opened.is_open or get_worker_info() is None
        return super().__getitem__(index)


def open_in_worker(number: int) -> None:
    Opened.is_open = True


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(zip(X, Y, strict=True))


def loaders(train: Any, **options: Any) -> Any:
    loader = train if isinstance(train, DataLoader) else DataLoader(train, **options)
    return SimpleNamespace(
        train_dataloader=loader, val_dataloaders=[DataLoader(TensorDataset(X, Y))]
    )


def test_the_data_of_any_trainer_are_read_or_refused() -> None:
    train = TensorDataset(X, Y)
    sampler = BatchSampler(RandomSampler(train), 7, drop_last=True)
    found = _make_data(loaders(train, batch_sampler=sampler, num_workers=1))
    assert (found.sources["train"].num_workers, len(found.labels["train"])) == (1, 60)
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match="train: samples are random .*\n.*pass probes={"):
        _make_data(loaders(Noisy(X, Y)))
    assert torch.equal(state, torch.get_rng_state())
    for wrong, words in (
        (Stream(), "train: a Stream, whose samples have no index"),
        (TensorDataset(X, Y - 1), "train: a label is -1"),
        (TensorDataset(X, Y.float()), "train: labels are torch.float32"),
        (DataLoader([{"x": X[0], "y": 1}]), "train: a batch is a dict, not a pair"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError, match=words) as error:
            _make_data(loaders(wrong))
        assert str(error.value).splitlines()[1].startswith("Pass probes={")
        assert len(str(error.value).splitlines()) == 2
    without = loaders(train)
    without.val_dataloaders = None
    with pytest.raises(UserError, match=r"test: no DataLoader; .*validation_step"):
        _make_data(without)


def test_workers_begin_as_those_of_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Opened, "is_open", False)
    found = _make_data(loaders(Opened(X, Y), num_workers=1, worker_init_fn=open_in_worker))
    assert len(found.labels["train"]) == 60


def test_probes_that_change_are_refused(tmp_path: Path) -> None:
    shuffled = DataLoader(TensorDataset(X, Y), 60, shuffle=True)
    with pytest.raises(UserError, match="are not those measured before"):
        fit(tmp_path, probes={"train": shuffled})
    with pytest.raises(UserError, match="split=val is not known"):
        bnstudy.StudyRecorder("mine", "x", 0, probes={"val": [(X, Y)]})
    _, cell = fit(tmp_path, epochs=1, probes={"train": iter([(X, Y)])})
    assert {row["epoch"] for row in read_rows(cell)} == {0, 1}
