"""Sparsity as its BatchNorm twin has it."""

from pathlib import Path

import pytest

from tests.conftest import SMALL, CommandLine, description, edit_description, read_rows

TARGET = ("norm=none", "regularizer=target_sparsity")
METRICS = "metrics.names=[unit_sparsity]"


def cell(root: Path, beginning: str) -> Path:
    (found,) = root.glob(f"multirun/*/{beginning}-depth*")
    return found


@pytest.mark.slow
def test_the_targets_are_the_twins(command_line: CommandLine, tmp_path: Path) -> None:
    rates = "optim.lr={batchnorm:0.05,none:0.01}"  # what may be each norm's own
    assert command_line(*SMALL, METRICS, rates, "norm=batchnorm").returncode == 0
    assert command_line(*SMALL, METRICS, rates, "norm=batchnorm", "seed=1").returncode == 0
    result = command_line(*SMALL, METRICS, rates, *TARGET)
    assert result.returncode == 0, result.stderr
    (twin,) = tmp_path.glob("multirun/*/batchnorm-*-seed0-*")
    last = {
        row["layer"]: row["value"]
        for row in read_rows(twin)
        if (row["epoch"], row["split"], row["metric"]) == (2, "train", "unit_sparsity")
    }
    run = description(cell(tmp_path, "none-target_sparsity"))
    assert run["target_sparsity"] == last
    assert last.keys() == {"block01", "block02"}
    assert "none + target_sparsity" in command_line(*SMALL, METRICS, rates, *TARGET, "-m").stdout


@pytest.mark.slow
def test_a_twin_that_is_not_there_or_was_not_measured_is_told(
    command_line: CommandLine, tmp_path: Path
) -> None:
    result = command_line(*SMALL, METRICS, *TARGET)
    assert result.returncode == 1
    told, todo = result.stderr.splitlines()
    assert "needs one run of norm=batchnorm regularizer=none" in told
    assert "Train it first" in todo
    assert not list(tmp_path.glob("multirun/*"))

    assert command_line(*SMALL, "metrics=none", "norm=batchnorm").returncode == 0
    result = command_line(*SMALL, METRICS, *TARGET)
    assert result.returncode == 1
    told, todo = result.stderr.splitlines()
    assert "unit_sparsity was not measured" in told
    assert todo.startswith("python -m bnstudy.measure multirun/mnist5k_cnn/batchnorm-")


@pytest.mark.parametrize(
    "other",
    [
        "model.width=8",
        pytest.param("seed=1", marks=pytest.mark.long),
        pytest.param("data.batch_size=32", marks=pytest.mark.long),
    ],
)
def test_a_twin_may_differ_only_in_the_norm(command_line: CommandLine, other: str) -> None:
    assert command_line(*SMALL, METRICS, "norm=batchnorm").returncode == 0
    assert command_line(*SMALL, METRICS, *TARGET, other).returncode == 1


@pytest.mark.slow
def test_a_twin_of_other_images_or_another_version_is_none(
    command_line: CommandLine, tmp_path: Path
) -> None:
    assert command_line(*SMALL, METRICS, "norm=batchnorm").returncode == 0
    twin = cell(tmp_path, "batchnorm")
    run = description(twin)
    data = run["data"] | {"sha256": "0" * 64}
    attempts = [run["attempts"][0] | {"version": "0.1.0"}]
    for other in ({"data": data}, {"attempts": attempts}):
        edit_description(twin, **run | other)
        result = command_line(*SMALL, METRICS, *TARGET)
        assert result.returncode == 1
        assert "of the same images and bnstudy" in result.stderr
    edit_description(twin, **run)
    assert command_line(*SMALL, METRICS, *TARGET).returncode == 0


@pytest.mark.long
def test_the_targets_stay_when_a_run_is_measured_again(
    command_line: CommandLine, tmp_path: Path
) -> None:
    assert command_line(*SMALL, METRICS, "norm=batchnorm").returncode == 0
    assert command_line(*SMALL, METRICS, *TARGET).returncode == 0
    twin = cell(tmp_path, "batchnorm")
    twin.rename(tmp_path / "elsewhere")
    result = command_line(*SMALL, "metrics.names=[unit_sparsity,hoyer]", *TARGET)
    assert result.returncode == 0, result.stderr
    assert "measured from checkpoints: hoyer of epoch 2" in result.stdout
