"""Runs of the user's own training, in any loop and in Lightning."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import bnstudy
from bnstudy import measure, report
from bnstudy.errors import UserError
from bnstudy.sweeps.status import StudyStatus
from tests.conftest import CommandLine, description

NAMES = ["unit_sparsity", "silhouette"]
X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(60) % 3


def network(norm: str = "batchnorm") -> nn.Sequential:
    torch.manual_seed(0)
    layer = nn.BatchNorm1d(8) if norm == "batchnorm" else nn.Identity()
    return nn.Sequential(nn.Linear(6, 8), layer, nn.ReLU(), nn.Linear(8, 3))


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
        "mine", "batchnorm", 0, {"depth": 2}, metrics=NAMES, output_root=root, **options
    )
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[recorder],
    )  # fmt: skip
    loaders = (
        DataLoader(TensorDataset(X[:45], Y[:45]), 15, shuffle=True),
        DataLoader(TensorDataset(X[45:], Y[45:]), 15),
    )
    module = Module(fails)
    with pytest.warns():  # Lightning's, of workers and of log_every_n_steps
        trainer.fit(module, *loaders, ckpt_path=resume)
    trainer.save_checkpoint(root / "mine.ckpt")
    return module, recorder.run.folder


def rows(cell: Path) -> list[dict[str, Any]]:
    return pq.read_table(cell / "metrics.parquet").to_pylist()


def test_any_loop_makes_a_run(tmp_path: Path, command_line: CommandLine) -> None:
    probe = [(X[:40], Y[:40].tolist())]
    for norm in ("none", "batchnorm"):
        model = network(norm)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with bnstudy.Run("mine", norm=norm, seed=1, axes={"depth": 2}, output_root=tmp_path) as run:
            values = run.measure(model, probe, epoch=0, metrics=NAMES)
            run.log(epoch=1, train_loss=torch.tensor(0.5), test_accuracy=0.25)
            run.measure(model, probe, epoch=1, metrics=NAMES, split="test", sites=["act"])
            (shown,) = StudyStatus(tmp_path / "mine").of("running")
            assert (shown.epoch, shown.epochs) == (1, 0)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        with torch.no_grad():
            activations = model.train()(X[:40]) if norm == "none" else model[:3](X[:40])
        if norm == "batchnorm":  # the statistics are those of the probe set
            zeros = (activations == 0).float().mean().item()
            assert values["2"]["unit_sparsity"] == pytest.approx(zeros, abs=0.02)
    record = description(run.folder)
    assert record["status"] == "completed"
    assert record["final"] == {"epoch": 1, "train_loss": 0.5, "test_accuracy": 0.25}
    assert record["data"]["probe"] == {"train": 40, "test": 40}
    found = {(row["epoch"], row["split"], row["layer"], row["metric"]) for row in rows(run.folder)}
    assert {(0, "train", "2", "silhouette"), (1, "test", "2", "silhouette")} <= found

    study = bnstudy.load(tmp_path / "mine")
    assert study.runs["depth"].tolist() == [2, 2]
    assert study.effects(baseline="none")["n"].tolist() == [1] * len(study.effects())
    later = command_line(str(tmp_path / "mine"), "metrics.names=[hoyer]", main=measure.main)
    assert "because there is no checkpoint: hoyer" in later.stdout


def test_what_has_ended_is_replaced_only_if_asked(tmp_path: Path) -> None:
    def run(overwrite: bool = False) -> bnstudy.Run:
        return bnstudy.Run("mine", norm="x", seed=0, output_root=tmp_path, overwrite=overwrite)

    def log_and_raise(error: BaseException) -> None:
        with run() as own:
            assert not list(own.folder.glob("metrics/*"))  # it is begun anew
            own.log(epoch=3, test_loss=1.0)
            raise error

    cell = run().folder
    for error, status in ((ZeroDivisionError(), "failed"), (KeyboardInterrupt(), "interrupted")):
        with pytest.raises(type(error)):
            log_and_raise(error)
        assert description(cell)["status"] == status
    with pytest.raises(UserError, match="nothing was measured or logged"), run():
        pass
    with run() as diverging:
        diverging.log(epoch=1, train_loss=float("nan"))
    assert [one["status"] for one in description(diverging.folder)["attempts"]][-1] == "diverged"
    with pytest.raises(UserError, match=r"has ended: diverged\nPass overwrite=True"), run():
        pass
    with run(overwrite=True) as again:
        again.log(epoch=2, train_loss=0.1)
    assert [row["epoch"] for row in rows(again.folder)] == [2]


@pytest.mark.slow
def test_the_report_of_runs_that_were_measured_in_part(
    tmp_path: Path, command_line: CommandLine
) -> None:
    for norm in ("none", "batchnorm"):
        with bnstudy.Run("mine", norm=norm, seed=0, output_root=tmp_path) as run:
            run.measure(network(norm), [(X, Y)], epoch=1, metrics=NAMES, split="test")
    result = command_line(str(tmp_path / "mine"), main=report.main)
    assert result.returncode == 0, result.stderr
    assert "Test accuracy cannot be compared" in result.stdout
    assert (tmp_path / "mine" / "report" / "index.html").exists()


def test_mistakes_are_told(tmp_path: Path) -> None:
    for options, words in (
        ({"norm": "a/b"}, "cell=a/b-seed0"),
        ({"seed": -1}, "seed=-1"),
        ({"axes": {"opt.lr": 1}}, "'opt.lr': 1"),
        ({"axes": {"block": [1]}}, "'block'"),
    ):
        with pytest.raises(UserError, match=words):
            bnstudy.Run("mine", **{"norm": "x", "seed": 0, "output_root": tmp_path} | options)
    with bnstudy.Run("mine", norm="x", seed=0, output_root=tmp_path) as run:
        run.measure(network(), [(X, Y)], epoch=1, metrics=["unit_sparsity"])
        with pytest.raises(UserError, match="is not the one before"):
            run.measure(network(), [(X.flip(0), Y)], epoch=2, metrics=["unit_sparsity"])
        with pytest.raises(UserError, match=r"log\(loss=...\)"):
            run.log(epoch=1, loss=0.1)
        with pytest.raises(UserError, match="a share from 0 to 1"):
            run.log(epoch=1, test_accuracy=93.0)
        with pytest.raises(UserError, match="unit_sparsty"):
            run.measure(network(), [(X, Y)], epoch=1, metrics=["unit_sparsty"])


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
    assert {row["epoch"] for row in rows(cell)} == {0, 1, 2}
    before = [row for row in rows(cell) if row["epoch"] < 2]

    with pytest.raises(UserError, match="overwrite=True"):
        fit(tmp_path)
    _, cell = fit(tmp_path, epochs=3, resume=tmp_path / "mine.ckpt", overwrite=True)
    assert {row["epoch"] for row in rows(cell)} == {0, 1, 2, 3}
    assert [row for row in rows(cell) if row["epoch"] < 2] == before
    assert description(cell)["attempts"][-1]["resumed_from_epoch"] == 2


def test_a_lightning_training_that_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug of mine"):
        fit(tmp_path, fails=True)
    (record,) = tmp_path.glob("mine/*/run.json")
    assert json.loads(record.read_text())["attempts"][-1]["error"] == "RuntimeError: a bug of mine"
    assert len(list(record.parent.glob("metrics/*"))) == 2  # epochs 0 and 1
