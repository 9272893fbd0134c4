"""Runs that `bnstudy.Run` records from any training loop."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bnstudy
from bnstudy import measure, report
from bnstudy.errors import UserError
from bnstudy.sweeps.status import StudyStatus
from tests.conftest import CommandLine, description, read_rows

NAMES = ["unit_sparsity", "silhouette"]
X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(60) % 3


def network(norm: str = "batchnorm") -> nn.Sequential:
    torch.manual_seed(0)
    layer = nn.BatchNorm1d(8) if norm == "batchnorm" else nn.Identity()
    return nn.Sequential(nn.Linear(6, 8), layer, nn.ReLU(), nn.Linear(8, 3))


def test_any_loop_makes_a_run(tmp_path: Path, command_line: CommandLine) -> None:
    probe = [(X[:40], Y[:40].tolist())]
    for norm in ("none", "batchnorm"):
        model = network(norm)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with bnstudy.Run("mine", norm=norm, seed=1, axes={"depth": 2}, output_root=tmp_path) as run:
            values = run.measure(model, probe, epoch=0, metrics=NAMES)
            run.log(epoch=1, train_loss=torch.tensor(0.5), test_accuracy=0.25)
            run.measure(model, probe, epoch=1, metrics=NAMES, split="test", sites=["act"])
            (shown,) = StudyStatus(tmp_path / "mine").select_cells("running")
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
    found = {
        (row["epoch"], row["split"], row["layer"], row["metric"]) for row in read_rows(run.folder)
    }
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
    with (
        pytest.raises(UserError, match=r"already finished \(diverged\)\nPass overwrite=True"),
        run(),
    ):
        pass
    before = (cell / "run.json").read_text(), read_rows(cell)
    for error in (ZeroDivisionError(), KeyboardInterrupt(), None):
        again = run(overwrite=True)
        again.open()
        with suppress(UserError):  # nothing was measured
            again.close(error)
        assert ((cell / "run.json").read_text(), str(read_rows(cell))) == (
            before[0],
            str(before[1]),
        )
    with run(overwrite=True) as again:
        again.log(epoch=2, train_loss=0.1)
        assert not (cell / "metrics.parquet").exists()
    assert [row["epoch"] for row in read_rows(again.folder)] == [2]
    assert len(description(cell)["attempts"]) == 4


@pytest.mark.slow
def test_the_report_of_runs_that_were_measured_in_part(
    tmp_path: Path, command_line: CommandLine
) -> None:
    for norm in ("none", "batchnorm"):
        with bnstudy.Run("mine", norm=norm, seed=0, output_root=tmp_path) as run:
            model = network(norm).train()
            model(X)  # as in training, which sets running statistics
            run.measure(model, [(X, Y)], epoch=1, metrics=NAMES, split="test")
    result = command_line(str(tmp_path / "mine"), main=report.main)
    assert result.returncode == 0, result.stderr
    assert "Test accuracy on the probe set is" in result.stdout
    assert (tmp_path / "mine" / "report" / "index.html").exists()


def test_mistakes_are_told(tmp_path: Path) -> None:
    for options, words in (
        ({"norm": "a/b"}, "cell=a/b-seed0"),
        ({"seed": -1}, "seed=-1"),
        ({"axes": {"opt.lr": 1}}, "'opt.lr': 1"),
        ({"axes": {"block": [1]}}, "'block'"),
        ({"axes": {"norm.name": "y"}}, "'norm.name': 'y'.*\nPass norm=NAME"),
        ({"axes": {"seed": 1}}, "'seed': 1.*\nPass norm=NAME"),
    ):
        with pytest.raises(UserError, match=words):
            bnstudy.Run("mine", **{"norm": "x", "seed": 0, "output_root": tmp_path} | options)
    with bnstudy.Run("mine", norm="x", seed=0, output_root=tmp_path) as run:
        run.measure(network(), [(X, Y)], epoch=1, metrics=["unit_sparsity"])
        with pytest.raises(UserError, match="are not those measured before"):
            run.measure(network(), [(X.flip(0), Y)], epoch=2, metrics=["unit_sparsity"])
        with pytest.raises(UserError, match=r"log\(loss=...\)"):
            run.log(epoch=1, loss=0.1)
        with pytest.raises(UserError, match="expected an accuracy from 0 to 1"):
            run.log(epoch=1, test_accuracy=93.0)
        for epoch in (-1, 1.5, torch.tensor(2.0), 10**8):
            with pytest.raises(UserError, match=r"epoch=.* is not allowed; expected an integer"):
                run.log(epoch=epoch, test_loss=1.0)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="expected a single number"):
            run.log(epoch=1, test_loss=X)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="a batch is a dict of x, y"):
            run.measure(network(), [{"x": X, "y": Y}], epoch=1)  # type: ignore[list-item]
        with pytest.raises(UserError, match="unit_sparsty"):
            run.measure(network(), [(X, Y)], epoch=1, metrics=["unit_sparsty"])


@pytest.mark.parametrize("value", [torch.arange(60), np.arange(100), "x\ny" * 99])
def test_a_wrong_value_of_many_lines_is_shown_in_one(tmp_path: Path, value: Any) -> None:
    def run(**axes: Any) -> bnstudy.Run:
        return bnstudy.Run("mine", norm="x", seed=0, axes=axes, output_root=tmp_path)

    with run() as opened:
        opened.log(epoch=0, test_loss=1.0)
        with pytest.raises(UserError, match=r"^epoch=.{,50} is not allowed; expected.*$"):
            opened.measure(network(), [(X, Y)], value)
        with pytest.raises(UserError, match=r"^log\(test_loss=.{,50}\): expected.*$"):
            opened.log(epoch=0, test_loss=value)
    for key in ("seed", "opt.lr"):
        with pytest.raises(UserError, match=rf"^axes={{'{key}': .{{,50}}}}: "):
            run(**{key: value})


def test_the_training_samples_give_running_statistics(tmp_path: Path) -> None:
    with bnstudy.Run("mine", norm="batchnorm", seed=0, output_root=tmp_path) as run:
        with pytest.raises(UserError, match="have not seen a batch yet\nMeasure split='train'"):
            run.measure(network("batchnorm"), [(X, Y)], epoch=0, metrics=NAMES, split="test")
        small = list(zip(X.split(7), Y.split(7), strict=True))
        in_small = run.measure(network("batchnorm"), small, epoch=0, metrics=NAMES)
        in_one = run.measure(network("batchnorm"), [(X, Y)], epoch=0, metrics=NAMES)
    assert in_small["2"] == pytest.approx(in_one["2"])  # small batches are merged


def test_a_probe_loss_that_is_not_finite_is_a_divergence(tmp_path: Path) -> None:
    model = network("none")
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with (
        bnstudy.Run("mine", norm="none", seed=0, output_root=tmp_path) as run,
        pytest.warns(UserWarning, match="NaN"),
    ):
        run.measure(model, [(X, Y)], epoch=1, metrics=NAMES)
    assert description(run.folder)["status"] == "diverged"


def test_numbers_may_be_of_numpy_and_torch(tmp_path: Path) -> None:
    axes = {"depth": np.int64(2), "optim.momentum": torch.tensor(0.5)}
    seed: Any = np.int64(1)
    with bnstudy.Run("mine", norm="x", seed=seed, axes=axes, output_root=tmp_path) as run:
        for epoch in (np.int64(3), torch.tensor(4)):
            run.log(epoch, step=epoch, test_loss=np.float32(0.5))  # type: ignore[arg-type]
            run.measure(network(), [(X, Y - 1)], epoch, metrics=NAMES)  # type: ignore[arg-type]
    plain: Any = {"depth": 2, "optim.momentum": 0.5}
    assert (
        run.folder == bnstudy.Run("mine", norm="x", seed=1, axes=plain, output_root=tmp_path).folder
    )
    assert {(row["epoch"], row["step"]) for row in read_rows(run.folder)} == {
        (3, 3),
        (3, 0),
        (4, 4),
        (4, 0),
    }
