"""A record from anyone: nothing is run but what bnstudy or the command line names."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import bnstudy
from bnstudy import __version__, measure
from bnstudy.config.identity import compute_identity
from bnstudy.errors import UserError
from bnstudy.trained.finished_run import FinishedRun
from tests.conftest import KEPT, SMALL, CommandLine, description, edit_description, only_cell

CALLS: list[str] = []

NETWORK = """
from torch import nn

def network(name, input_shape, num_classes, norm):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, num_classes)
    )
"""


def call() -> None:
    CALLS.append("called")


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    """A copy of a kept run."""
    (kept,) = KEPT.glob("batchnorm-depth1-width2-seed1-*")
    return Path(shutil.copytree(kept, tmp_path / "study" / kept.name))


def edit(cell: Path, group: str, options: dict[str, Any], **changes: Any) -> None:
    """Change a group of a run's configuration, and its identity with it."""
    config = description(cell)["config"]
    config[group] |= options
    edit_description(cell, config=config, identity=compute_identity(config), **changes)


@pytest.mark.parametrize("command", ["map", "similarity"])
@pytest.mark.parametrize(
    ("group", "options"),
    [
        ("data", {"root": {"_target_": f"{__name__}.call"}}),
        ("model", {"_target_": f"{__name__}.call"}),
        ("norm", {"eps": [{"_target_": f"{__name__}.call"}]}),
    ],
    ids=["data", "model", "norm"],
)
def test_code_that_only_the_record_names_is_not_run(
    cell: Path, command_line: CommandLine, group: str, options: dict[str, Any], command: str
) -> None:
    edit(cell, group, options)
    result = command_line(command, str(cell), "--samples", "50", main=measure.main)
    assert result.returncode == 1
    assert f"add --trust {__name__}.call" in result.stdout + result.stderr
    assert not CALLS


def test_values_that_are_not_allowed_are_refused(cell: Path, command_line: CommandLine) -> None:
    edit(cell, "model", {"depth": "deep"})
    result = command_line("similarity", str(cell), "--samples", "50", main=measure.main)
    assert result.returncode == 1
    assert "model.depth=deep is not allowed" in result.stderr


def test_options_that_were_edited_are_not_built(cell: Path, command_line: CommandLine) -> None:
    packages = {"packages": {"bnstudy": __version__}}
    edit(cell, "model", {}, environment=packages)
    content = description(cell)
    content["attempts"][0]["version"] = __version__
    content["config"]["seed"] = 5
    edit_description(cell, **content)
    result = command_line("similarity", str(cell), "--samples", "50", main=measure.main)
    assert result.returncode == 1
    assert "its options do not match its identity" in result.stderr


def test_weights_of_another_network_are_refused(cell: Path, command_line: CommandLine) -> None:
    (other,) = KEPT.glob("batchnorm-depth2-width2-seed0-*/checkpoints/last.ckpt")
    shutil.copy(other, cell / "checkpoints" / "last.ckpt")
    result = command_line("similarity", str(cell), "--samples", "50", main=measure.main)
    assert result.returncode == 1
    assert "last.ckpt: not the weights of this run's network" in result.stderr


@pytest.mark.slow
def test_a_network_of_the_users_is_measured_where_the_command_names_it(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("bnstudy.config.targets._trusted", set())
    (tmp_path / "own_network.py").write_text(NETWORK)
    own = ("+model.name=own", "model._target_=own_network.network")
    options = [word for word in SMALL if not word.startswith("model.")]
    run = (*options, *own, "metrics.names=[hoyer]", "norm=none")
    assert command_line(*run).returncode == 0
    # The same command with more metrics names the network itself.
    assert command_line(*run[:-2], "norm=none", "metrics.names=[dunn]").returncode == 0
    cell = str(only_cell(tmp_path / "multirun"))
    monkeypatch.setattr("bnstudy.config.targets._trusted", set())
    refused = command_line(cell, "metrics.names=[nc1]", main=measure.main)
    assert refused.returncode == 1
    assert "add --trust own_network.network" in refused.stdout
    trusting = (cell, "metrics.names=[nc1]", "--trust", "own_network.network")
    result = command_line(*trusting, main=measure.main)
    assert result.returncode == 0, result.stderr
    assert "measured from checkpoints: nc1" in result.stdout


def test_a_run_of_ones_own_loop_has_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with bnstudy.Run("mine", norm="none", seed=0) as run:
        run.log(epoch=1, train_loss=0.5)
    with pytest.raises(UserError, match="it has no weights"):
        FinishedRun.open(only_cell(tmp_path / "multirun"), None)
