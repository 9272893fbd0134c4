"""Fixtures and helpers of all tests: commands as users run them, small enough for a test."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from bnstudy.config import CONFIG_FOLDER
from bnstudy.config.identity import register_resolvers
from bnstudy.files import OTHER_FOLDER, CannotWrite
from bnstudy.study.present import report_files
from bnstudy.sweeps.progress import SweepProgress
from bnstudy.train import main

REPOSITORY = Path(__file__).parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"  # real images, on machines that have them

# One thread, because several tests run at the same time. .ci/run repeats numerical tests with two.
THREADS = os.environ.get("OMP_NUM_THREADS", "1")
PRINT_PAGE = report_files.print_page

# A run of seconds: two small blocks, two epochs, probe sets of 400 and 200 digits.
SMALL = (
    "model.depth=2",
    "model.width=4",
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=8",
    "trainer.limit_val_batches=2",
    "trainer.log_every_n_steps=1",
    "probe.train=400",
    "probe.test=200",
    "logger=none",
)


# Training that is not finite from the second step on, whatever the network and the machine:
# weight decay multiplies every weight by -1e20, also those of a unit that no longer fires.
DIVERGING = ("optim.lr=1e20", "optim.weight_decay=1")


@dataclass(frozen=True)
class Result:
    """Exit status and output of a command."""

    returncode: int
    stdout: str
    stderr: str


CommandLine = Callable[..., Result]
Compose = Callable[..., DictConfig]


@pytest.fixture(autouse=True)
def _isolated_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the machine's W&B account, which also avoids prompts, and use `THREADS` threads."""
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", os.devnull)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("OMP_NUM_THREADS", THREADS)  # of the processes that a test starts
    torch.set_num_threads(int(THREADS))


@pytest.fixture(autouse=True)
def _small_calibration(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute the statistics before training from 500 samples; 5,000 take a second per run.

    Slow tests keep the 5,000: they compare runs of this process with runs of others.
    """
    if not any(request.node.get_closest_marker(name) for name in ("slow", "long")):
        monkeypatch.setattr("bnstudy.data.module.MAX_CALIBRATION_SAMPLES", 500)


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let multiruns of this process end without their page, which takes a second or two."""
    monkeypatch.setattr(report_files, "print_page", lambda study: None)


@pytest.fixture
def with_page(_no_page: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let multiruns of this process end with their page, as for users."""
    monkeypatch.setattr(report_files, "print_page", PRINT_PAGE)


@pytest.fixture
def command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    """Return a function that runs `python -m bnstudy.train` in this process, in an empty folder.

    With another module's function as `main`, it runs the command of that module.
    """
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, main: Callable[[], None] = main) -> Result:
        monkeypatch.setattr(sys, "argv", ["bnstudy", *arguments])
        monkeypatch.setattr(SweepProgress, "total", 0)
        monkeypatch.setattr(CannotWrite, "alternative", OTHER_FOLDER)  # commands set their own
        capsys.readouterr()
        code, message = 0, ""
        try:
            main()
        except SystemExit as stop:  # a string is printed by Python itself, with exit status 1
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            message = f"{stop.code}\n" if isinstance(stop.code, str) else ""
        printed = capsys.readouterr()
        return Result(code, printed.out, printed.err + message)

    return call


@pytest.fixture
def composed() -> Iterator[Compose]:
    """Return a function that composes the configuration of a Hydra job from overrides."""
    register_resolvers()

    def compose_job(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            cfg = compose("train", overrides=list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    yield compose_job
    HydraConfig.instance().cfg = None


def train_on_two_processes(folder: Path, *arguments: str, returncode: int = 0) -> None:
    """Run `python -m bnstudy.train trainer=ddp` in a folder, and check its exit status."""
    command = [sys.executable, "-m", "bnstudy.train", "trainer=ddp", "trainer.accelerator=cpu"]
    result = subprocess.run([*command, *arguments], cwd=folder, check=False, timeout=200)
    assert result.returncode == returncode


def only_cell(root: Path) -> Path:
    """The folder of the only cell below an output root."""
    (record,) = root.glob("*/*/run.json")
    return record.parent


def description(cell: Path) -> dict[str, Any]:
    """A cell's run.json."""
    content: dict[str, Any] = json.loads((cell / "run.json").read_text())
    return content
