"""`python -m bnstudy.measure`: more metrics of trained runs, without training."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bnstudy import measure
from bnstudy.metrics import METRICS
from bnstudy.runs.lease import hold_lease
from tests.conftest import (
    SMALL,
    CommandLine,
    description,
    edit_description,
    flip_bit,
    only_cell,
    read_rows,
)

STUDY = "multirun/mnist5k_cnn"
NOT_APPLICABLE = "does not apply: it is not what the last linear layer reads"


def key(row: dict[str, object]) -> tuple[object, ...]:
    return tuple(row[name] for name in ("epoch", "split", "layer", "site", "metric"))


@pytest.mark.slow
def test_a_study_is_measured_with_the_full_set(command_line: CommandLine, tmp_path: Path) -> None:
    short = ("trainer.max_epochs=1", "checkpoint_epochs=all")
    arguments = (*SMALL, *short, "norm=batchnorm,none", "-m")
    assert command_line(*arguments).returncode == 0
    cells = sorted((tmp_path / STUDY).glob("*-*/"))
    before = {cell: read_rows(cell) for cell in cells}

    result = command_line(STUDY, "metrics=full", main=measure.main)
    assert result.returncode == 0, result.stderr
    for cell in cells:
        rows = read_rows(cell)
        by_key = {key(row): row for row in rows}
        assert len(by_key) == len(rows)  # nothing twice
        assert all(by_key[key(row)] == row for row in before[cell])  # nothing lost or changed
        layers = [("block01", "act"), ("block02", "act"), ("classifier", "features")]
        assert by_key.keys() == {key(row) for row in before[cell]} | {
            (epoch, split, layer, site, name)
            for epoch in (0, 1)
            for split in ("train", "test")
            for layer, site in layers
            for name in METRICS
        }
        assert [row["epoch"] for row in rows] == sorted(row["epoch"] for row in rows)
        undefined = {row["reason"] for row in rows if row["site"] == "features"} - {None}
        assert not undefined
        assert {row["metric"] for row in rows if row["reason"] == NOT_APPLICABLE} == {"nc3"}
        run = description(cell)
        assert run["metrics"].keys() == METRICS.keys()
        assert len(run["attempts"]) == 1
        (later,) = run["measured_later"]
        assert later["epochs"] == [0, 1]
        assert later["environment"]["packages"]["torch"]

    tables = [(cell / "metrics.parquet").read_bytes() for cell in cells]
    again = command_line(STUDY, "metrics=full", main=measure.main)
    assert again.stdout.count("all requested metrics are already recorded") == 2
    assert [(cell / "metrics.parquet").read_bytes() for cell in cells] == tables


@pytest.mark.slow
def test_a_damaged_table_is_made_again_from_the_checkpoints(
    command_line: CommandLine, tmp_path: Path
) -> None:
    names = "metrics.names=[hoyer,dead_units]"
    assert command_line(*SMALL, "checkpoint_epochs=[1]", names).returncode == 0
    cell = only_cell(tmp_path / "multirun")
    before = {key(row): row for row in read_rows(cell)}
    damaged = flip_bit(cell / "metrics.parquet", 1 / 3)

    result = command_line(str(cell), "metrics.names=[hoyer]", main=measure.main)
    assert result.returncode == 0, result.stderr
    assert "metrics.parquet is damaged (wrong checksum); set aside" in result.stdout
    assert (cell / "metrics.parquet.damaged").read_bytes() == damaged
    rows = {key(row): row for row in read_rows(cell)}
    assert all(before[name] == row for name, row in rows.items())
    assert rows.keys() == {name for name in before if name[0] > 0}

    (cell / "metrics.parquet").write_bytes(b"PAR1")
    (cell / "checkpoints" / "last.ckpt").write_bytes(b"")
    result = command_line(str(cell), main=measure.main)
    assert result.returncode == 1
    assert "last.ckpt is damaged" in result.stdout
    assert (cell / "metrics.parquet").read_bytes() == b"PAR1"


@pytest.mark.slow
def test_only_the_split_and_the_epochs_that_are_asked_for_are_measured(
    command_line: CommandLine, tmp_path: Path
) -> None:
    assert command_line(*SMALL, "checkpoint_epochs=[1]", "metrics=none").returncode == 0
    cell = only_cell(tmp_path / "multirun")
    names = "metrics.names=[dunn,hoyer]"
    options = ("--split", "test", "--epochs", "0,1")
    result = command_line(str(cell), *options, names, main=measure.main)
    assert "measured from checkpoints: dunn, hoyer of epoch 1\n" in result.stdout
    assert "not measured, because there is no checkpoint: dunn, hoyer of epoch 0 (" in result.stdout
    layers = [row for row in read_rows(cell) if row["layer_index"] != -1]
    assert {(row["epoch"], row["split"], row["metric"]) for row in layers} == {
        (1, "test", "dunn"),
        (1, "test", "hoyer"),
    }
    result = command_line(str(cell), names, "metrics.every_n_epochs=2", main=measure.main)
    assert "dunn, hoyer of epoch 2\n" in result.stdout
    assert len([row for row in read_rows(cell) if row["layer_index"] != -1]) == len(layers) * 3


@pytest.mark.long
def test_a_killed_measurement_goes_on(command_line: CommandLine, tmp_path: Path) -> None:
    arguments = ("trainer.max_epochs=4", "checkpoint_epochs=all", "metrics=none")
    arguments = (*arguments, "probe.train=200", "probe.test=100")
    names = "metrics.names=[best_k,dunn,margin_mean]"
    assert command_line(*SMALL, *arguments).returncode == 0
    cell = only_cell(tmp_path / "multirun")
    command = [sys.executable, "-m", "bnstudy.measure", str(cell), names]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not any(row["site"] for row in read_rows(cell)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    some = {row["epoch"] for row in read_rows(cell) if row["site"]}
    assert 0 < len(some) < 5

    assert command_line(str(cell), names, main=measure.main).returncode == 0
    assert len(description(cell)["measured_later"]) == 2
    killed = read_rows(cell)
    assert command_line(*SMALL, *arguments, "study=whole").returncode == 0
    (whole,) = (tmp_path / "multirun" / "whole").glob("*-*/")
    assert command_line(str(whole), names, main=measure.main).returncode == 0
    assert str(killed) == str(read_rows(whole))  # as text, so that NaN equals NaN


@pytest.mark.long
def test_a_memory_budget_changes_no_number(command_line: CommandLine, tmp_path: Path) -> None:
    assert command_line(*SMALL, "model.width=32", "metrics=none").returncode == 0
    cell = only_cell(tmp_path / "multirun")
    names = "metrics.names=[unit_sparsity,silhouette,nc1,hoyer,kurtosis,linear_probe]"
    assert command_line(str(cell), names, "--epochs", "2", main=measure.main).returncode == 0
    at_once = [row for row in read_rows(cell) if row["site"]]
    assert command_line(*SMALL, "model.width=32", "metrics=none", "study=small").returncode == 0
    (other,) = (tmp_path / "multirun" / "small").glob("*-*/")
    budget = "metrics.memory_budget=0.14"  # of which 0.125 are taken by what is worked in
    result = command_line(str(other), names, budget, "--epochs", "2", main=measure.main)
    assert result.returncode == 0, result.stderr
    in_blocks = [row for row in read_rows(other) if row["site"]]
    for one, block in zip(at_once, in_blocks, strict=True):
        assert key(one) == key(block)
        assert block["value"] == pytest.approx(one["value"], rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], ["nowhere: no run.json", "a run or of a study"]),
        ([STUDY, "metrics=most"], ["metrics=most", "default, fast, full"]),
        ([STUDY, "metrics.names=[silhuette]"], ["silhuette; did you mean silhouette"]),
        ([STUDY, "metrics.sites=[output]"], ["metrics.sites", "conv, norm, act, features"]),
        ([STUDY, "metrics.memory_budget=0"], ["metrics.memory_budget=0", "above 0"]),
        ([STUDY, "seed=1"], ["seed=1", "only metrics=..."]),
        ([STUDY, "--epochs", "last"], ["last: expected epochs such as 0,5"]),
        (["metrics=full"], ["the folder of a run or of a study"]),
    ],
)
def test_a_mistake_is_told(
    command_line: CommandLine, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    (tmp_path / STUDY / "cell").mkdir(parents=True)
    (tmp_path / STUDY / "cell" / "run.json").write_text("{}")
    result = command_line(*arguments, main=measure.main)
    assert result.returncode != 0
    assert all(word in result.stderr for word in words), result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_run_that_cannot_be_measured_does_not_stop_the_others(
    command_line: CommandLine, tmp_path: Path
) -> None:
    sweep = ("metrics=none", "seed=0,1,2", "-m")
    assert command_line(*SMALL, *sweep).returncode == 0
    used, unfinished, fine = sorted((tmp_path / STUDY).glob("*-*/"))
    edit_description(unfinished, status="interrupted")
    with hold_lease(used):
        result = command_line(STUDY, "metrics.names=[hoyer]", main=measure.main)
    assert result.returncode == 1
    assert "is working in this cell" in result.stdout
    assert "train it to its end first" in result.stdout
    assert "2 of 3 runs were not measured" in result.stderr
    assert {row["metric"] for row in read_rows(fine) if row["site"]} == {"hoyer"}


@pytest.mark.slow
def test_what_is_measured_only_during_training_is_told(command_line: CommandLine) -> None:
    assert command_line(*SMALL, "metrics.names=[hoyer]").returncode == 0
    for option in ("folds=4", "at_steps=[3]"):
        arguments = (STUDY, "metrics.names=[hoyer]", f"metrics.{option}")
        result = command_line(*arguments, main=measure.main)
        assert result.returncode == 0, result.stderr
        key, _, value = option.partition("=")
        assert f"trained with metrics.{key}=" in result.stdout
        assert f"instead of {value}; these measure only during training" in result.stdout
        assert "all requested metrics are already recorded" not in result.stdout
    without = command_line(STUDY, "metrics.names=[hoyer]", main=measure.main).stdout
    assert "all requested metrics are already recorded" in without
    assert "only during training" not in without


def test_trained_networks_on_own_data_have_a_study_of_their_own() -> None:
    assert measure.compose_study([])["study"] == "mnist5k_networks"
    assert measure.compose_study(["data=image_folder", "data.root=A"])["study"] == (
        "image_folder_networks"
    )
    own = ["data._target_=mine.Data", "data.batch_size=16"]
    assert measure.compose_study(own)["study"] == "own_networks"


def test_trained_networks_have_no_folds(command_line: CommandLine) -> None:
    arguments = ("network", "torchvision:vgg16", "metrics.folds=4")
    result = command_line(*arguments, main=measure.main)
    assert result.returncode == 1
    assert result.stderr.splitlines()[1] == "Remove metrics.folds"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_trained_on_a_cpu_has_all_metrics_measured_on_a_gpu(
    command_line: CommandLine, tmp_path: Path
) -> None:
    assert command_line(*SMALL, "metrics=none", "trainer.accelerator=cpu").returncode == 0
    result = command_line(STUDY, "metrics=full", main=measure.main)
    assert result.returncode == 0, result.stderr
    rows = [row for row in read_rows(only_cell(tmp_path / "multirun")) if row["site"] == "act"]
    assert {row["metric"] for row in rows if row["reason"]} == {"nc3"}  # needs the last features
