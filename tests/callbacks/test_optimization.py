"""Tests of the optimization callbacks from the command line."""

import csv
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from bnstudy.callbacks import ActivationDrift, BatchStatistics, GradientNorms, LossLandscape
from bnstudy.config.composition import resolve
from bnstudy.models import Classifier
from tests.callbacks.training import small_network, train
from tests.conftest import (
    SMALL,
    CommandLine,
    Compose,
    Result,
    description,
    only_cell,
    read_rows,
    train_on_two_processes,
)

RUN = (*SMALL, "metrics.names=[unit_sparsity,mean]", "metrics.sites=[conv,act]")
ALL = ("callbacks=all", "callbacks.loss_landscape.every_n_steps=3")
WHOLE_MODEL = ["loss_range", "first_order_error", "gradient_change", "beta_smoothness"]
BY_LAYER = {"gradient_norm", "mean_drift", "std_drift", "running_mean_error"}
BY_LAYER |= {"running_variance_error", "weight_norm", "effective_lr", "gamma_norm", "beta_norm"}
PERFORMANCE = {
    f"{name}_{metric}"
    for name in ("recalibrated", "batch_statistics")
    for metric in ("loss", "accuracy")
}


def weights(cell: Path) -> dict[str, torch.Tensor]:
    content = torch.load(cell / "checkpoints" / "last.ckpt", weights_only=True)
    state: dict[str, torch.Tensor] = content["state_dict"]
    return state


def is_optimization(row: dict[str, Any]) -> bool:
    return row["metric"] in {*WHOLE_MODEL, *BY_LAYER, *PERFORMANCE}


def cell_of(tmp_path: Path, study: str) -> Path:
    (cell,) = (tmp_path / "multirun" / study).glob("*-*/")
    return cell


@contextmanager
def crash_before_step(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let training fail before a step, of 8 in each epoch."""
    training_step = Classifier.training_step

    def crash(self: Classifier, *arguments: Any) -> torch.Tensor:
        if self.global_step == step:
            raise RuntimeError("the power went out")
        return training_step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", crash)
        with pytest.raises(RuntimeError, match="the power went out"):
            yield


@pytest.mark.slow
def test_nothing_that_is_measured_changes_the_training(
    command_line: CommandLine, tmp_path: Path
) -> None:
    probe = ("probe.train=60", "probe.test=60")
    everything = ("callbacks=all", "metrics=full", "checkpoint_epochs=all", "logger=csv")
    for study, more in (("without", ("metrics=none",)), ("with", everything)):
        result = command_line(*SMALL, *probe, *more, f"study={study}")
        assert result.returncode == 0, result.stderr
    ours, theirs = (weights(cell_of(tmp_path, study)) for study in ("with", "without"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.slow
def test_a_run_with_all_callbacks_is_the_same_run_and_has_their_rows(
    command_line: CommandLine, tmp_path: Path
) -> None:
    for study, callbacks in (("without", ()), ("with", ALL)):
        result = command_line(*RUN, *callbacks, f"study={study}", "logger=csv")
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
    without, having = cell_of(tmp_path, "without"), cell_of(tmp_path, "with")
    assert without.name == having.name  # callbacks do not change the identity
    assert description(without)["callbacks"] == []
    assert description(having)["callbacks"] == [
        *("loss_landscape", "gradient_norms", "activation_drift", "batch_statistics"),
        "weight_norms",
    ]
    torch.testing.assert_close(weights(having), weights(without), rtol=0, atol=0)
    rows = read_rows(having)
    shared = [row for row in read_rows(without) if not is_optimization(row)]
    assert [row for row in rows if not is_optimization(row)] == shared

    added = [row for row in rows if is_optimization(row)]
    assert all(row["reason"] is None and math.isfinite(row["value"]) for row in added)
    for name in WHOLE_MODEL:
        found = [row for row in added if row["metric"] == name]
        assert [(row["epoch"], row["layer"], row["layer_index"]) for row in found] == [
            (epoch, "model", -1) for epoch in (1, 2)
        ]
    for name in PERFORMANCE:
        found = [row for row in added if row["metric"] == name]
        assert {(row["epoch"], row["split"]) for row in found} == {
            (epoch, split) for epoch in (0, 1, 2) for split in ("train", "test")
        }
    # Layers and sites are those of the representation metrics.
    places = {(row["layer_index"], row["layer"], row["site"]) for row in read_rows(without)}
    sites = {
        "gradient_norm": {"conv", "linear"},
        "mean_drift": {"conv", "act"},
        "running_variance_error": {"norm"},
    }
    for name, expected in sites.items():
        found = [row for row in added if row["metric"] == name]
        assert {row["site"] for row in found} == expected
        assert {row["layer"] for row in found} - {"classifier"} == {"block01", "block02"}
        for row in found:
            if row["site"] in ("conv", "act"):
                assert (row["layer_index"], row["layer"], row["site"]) in places

    (file,) = having.glob("csv/*/metrics.csv")
    with file.open() as lines:
        logged = list(csv.DictReader(lines))
    for name, epochs in {
        "opt/beta_smoothness": ["1", "2"],
        "opt/block01.conv/gradient_norm": ["1", "2"],
        "opt/block02/mean_drift": ["1", "2"],
        "opt/test/recalibrated_accuracy": ["0", "1", "2"],
    }.items():
        assert [row["epoch"] for row in logged if row[name]] == epochs
    probes = [int(row["step"]) for row in logged if row["opt_step/beta_smoothness"]]
    assert probes == [0, 3, 6, 9, 12, 15]


@pytest.mark.long
def test_an_interrupted_run_goes_on_and_ends_with_the_same_rows(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*RUN, *ALL, "trainer.max_epochs=3")
    with crash_before_step(20, monkeypatch):
        command_line(*arguments, "study=interrupted")
    assert command_line(*arguments, "study=interrupted").returncode == 0
    assert command_line(*arguments, "study=whole").returncode == 0
    interrupted, whole = cell_of(tmp_path, "interrupted"), cell_of(tmp_path, "whole")
    assert description(interrupted)["attempts"][1]["resumed_from_epoch"] == 2
    assert read_rows(interrupted) == read_rows(whole)
    assert len(description(interrupted)["callbacks"]) == 5
    torch.testing.assert_close(weights(interrupted), weights(whole), rtol=0, atol=0)


@pytest.mark.slow
def test_what_a_complete_cell_was_trained_without_is_told(command_line: CommandLine) -> None:
    def told(result: Result) -> list[str]:
        assert result.returncode == 0, result.stderr
        return [line for line in result.stdout.splitlines() if "trained without" in line]

    arguments = (*SMALL, "metrics=none")
    assert told(command_line(*arguments, "callbacks=gradient_norms")) == []
    assert told(command_line(*arguments, "callbacks=gradient_norms")) == []
    assert told(command_line(*arguments)) == []
    (line,) = told(command_line(*arguments, "callbacks=[gradient_norms,activation_drift]"))
    assert "without callbacks=activation_drift;" in line


@pytest.mark.slow
def test_callbacks_added_to_a_run_that_goes_on_are_not_recorded_as_its_own(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*SMALL, "metrics=none")
    with crash_before_step(8, monkeypatch):
        command_line(*arguments, "callbacks=gradient_norms")
    result = command_line(*arguments, "callbacks=[activation_drift,gradient_norms]")
    assert "without callbacks=activation_drift;" in result.stdout
    cell = only_cell(tmp_path / "multirun")
    assert description(cell)["callbacks"] == ["gradient_norms"]
    drift = [row["epoch"] for row in read_rows(cell) if row["metric"] == "mean_drift"]
    assert set(drift) == {2}


@pytest.mark.slow
def test_a_run_goes_on_with_the_options_that_it_began_with(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*SMALL, "metrics.names=[unit_sparsity]", "callbacks=loss_landscape")
    option = "callbacks.loss_landscape.step_sizes"
    with crash_before_step(8, monkeypatch):
        command_line(*arguments, f"{option}=[0.1]")
    other = f"trained with {option}=[0.1] instead of [0.5]"
    told = {
        0: f"{other}; these measure only during training",  # goes on
        3: f"{other}, metrics.folds=0 instead of 3; these measure",  # complete
    }
    for folds in (0, 3):
        result = command_line(*arguments, f"{option}=[0.5]", f"metrics.folds={folds}")
        assert result.returncode == 0, result.stderr
        assert told[folds] in result.stdout
    options = description(only_cell(tmp_path / "multirun"))["config"]["callbacks"]
    assert options["loss_landscape"]["step_sizes"] == [0.1]
    assert "instead of" not in command_line(*arguments, f"{option}=[0.1]").stdout
    sweep = command_line(*arguments, f"{option}=[0.5]", "-m").stdout
    assert f"1 complete cell was {other}; these measure only during training" in sweep


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("callbacks=[]", []),
        ("callbacks=gradient_norms", ["gradient_norms"]),
        ("callbacks=[loss_landscape,gradient_norms]", ["loss_landscape", "gradient_norms"]),
    ],
)
def test_one_callback_several_or_none_can_be_chosen(
    composed: Compose, choice: str, names: list[str]
) -> None:
    assert list(resolve(composed(choice))["callbacks"]) == names


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "allowed"),
    [
        ("callbacks.loss_landscape.every_n_steps=0", "at least 1"),
        ("callbacks.loss_landscape.step_sizes=0.1", "above 0"),
        ("callbacks.gradient_norms.every_n_steps=1.5", "an integer"),
    ],
)
def test_a_mistake_in_an_option_is_told(
    command_line: CommandLine, argument: str, allowed: str
) -> None:
    result = command_line(*SMALL, "callbacks=all", argument)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert argument in line
    assert allowed in line


def test_random_numbers_gradients_and_statistics_stay_as_they_were() -> None:
    """Measure a network with dropout, which uses torch's global random numbers."""
    callbacks = [
        LossLandscape(1, [0.1, 1.0]),
        GradientNorms(1),
        ActivationDrift(1),
        BatchStatistics(),
    ]
    plain = train(small_network(), epochs=3)
    state = torch.get_rng_state()
    watched = train(small_network(), *callbacks, epochs=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(watched.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert [module.training for module in watched.modules()] == [
        module.training for module in plain.modules()
    ]


@pytest.mark.long
@pytest.mark.parametrize("norm", ["batchnorm_scaling", "none"])
def test_two_processes_find_the_same_as_one(
    command_line: CommandLine, tmp_path: Path, norm: str
) -> None:
    """Train with synchronized statistics, with a layer that supports it on CPUs."""
    arguments = (*RUN, *ALL, "trainer.max_epochs=1", f"norm={norm}")
    assert command_line(*arguments, "study=default").returncode == 0
    train_on_two_processes(tmp_path, *arguments, "study=ddp", "trainer.sync_batchnorm=true")
    values: dict[tuple[Any, ...], dict[str, float]] = {}
    for trainer in ("default", "ddp"):
        for row in filter(is_optimization, read_rows(cell_of(tmp_path, trainer))):
            key = tuple(row[name] for name in ("epoch", "split", "layer", "site", "metric"))
            values.setdefault(key, {})[trainer] = row["value"]
    assert values
    for key, value in values.items():
        assert value["ddp"] == pytest.approx(value["default"], rel=1e-2, abs=1e-4), key


def test_any_callback_of_lightning_can_be_added(command_line: CommandLine, tmp_path: Path) -> None:
    target = "lightning.pytorch.callbacks.Timer"
    result = command_line(
        *SMALL, "metrics=none", f"+callbacks.timer._target_={target}", "callbacks=[weight_norms]"
    )
    assert result.returncode == 0, result.stderr
    recorded = description(only_cell(tmp_path / "multirun"))
    assert set(recorded["config"]["callbacks"]) == {"timer", "weight_norms"}
