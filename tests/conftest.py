"""Fixtures and helpers of all tests: commands as users run them, small enough for a test."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from PIL import Image

from bnstudy.config import CONFIG_FOLDER
from bnstudy.config.identity import register_resolvers
from bnstudy.files import OTHER_FOLDER, CannotWrite
from bnstudy.study.present import report_files
from bnstudy.sweeps.progress import SweepProgress
from bnstudy.train import main
from tests.study.studies import Studies

REPOSITORY = Path(__file__).parents[1]
KEPT = REPOSITORY / "tests" / "records" / "kept"  # runs of version 0.1
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
# A run without measurements, for tests of what happens around the training.
QUICK = (*SMALL, "model.depth=1", "metrics=none")

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


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what the first test of a module trains and all its tests copy."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def studies(composed: Compose, tmp_path: Path) -> Studies:
    """Writes runs into tmp_path / "study"."""
    return Studies(composed, tmp_path / "study")


def train_on_two_processes(folder: Path, *arguments: str, returncode: int = 0) -> None:
    """Run `python -m bnstudy.train trainer=ddp` in a folder, and check its exit status."""
    command = [sys.executable, "-m", "bnstudy.train", "trainer=ddp", "trainer.accelerator=cpu"]
    result = subprocess.run([*command, *arguments], cwd=folder, check=False, timeout=200)
    assert result.returncode == returncode


def train_until(
    folder: Path, *arguments: str, epoch: int, sent: signal.Signals = signal.SIGKILL
) -> int:
    """Run `python -m bnstudy.train` in a folder, and send a signal once an epoch is recorded.

    Returns the exit status.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "bnstudy.train", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob(f"multirun/*/*/metrics/epoch={epoch:04d}.parquet")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(sent)
    return process.wait(timeout=60)


def assert_trains_without_torch(folder: Path, *arguments: str) -> None:
    """Run `python -m bnstudy.train` in a folder, which succeeds and does not import torch."""
    program = (
        "import runpy, sys; sys.argv[0] = 'bnstudy.train'; "
        "runpy.run_module('bnstudy.train', run_name='__main__'); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, *arguments], cwd=folder, check=True, timeout=200)


def only_cell(root: Path) -> Path:
    """The folder of the only cell below an output root."""
    (record,) = root.glob("*/*/run.json")
    return record.parent


def description(cell: Path) -> dict[str, Any]:
    """A cell's run.json."""
    content: dict[str, Any] = json.loads((cell / "run.json").read_text())
    return content


def edit_description(cell: Path, /, **facts: Any) -> None:
    """Change a cell's run.json."""
    (cell / "run.json").write_text(json.dumps(description(cell) | facts))


def read_rows(cell: Path) -> list[dict[str, Any]]:
    """A cell's metrics.parquet, which another process may replace at the same time."""
    content = io.BytesIO((cell / "metrics.parquet").read_bytes())
    rows: list[dict[str, Any]] = pq.read_table(content).to_pylist()
    return rows


def read_rows_by_cell(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of all complete cells below a folder, by the cell's name."""
    return {path.parent.name: read_rows(path.parent) for path in folder.rglob("metrics.parquet")}


def flip_bit(path: Path, share: float) -> bytes:
    """Flip a bit of a file, after a share of its bytes; return its content."""
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 1
    path.write_bytes(content)
    return bytes(content)


def write_images(root: Path, seed: int) -> None:
    """Write 6 images of noise in each of 2 classes and both splits."""
    generator = np.random.default_rng(seed)
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(6):
                pixels = generator.integers(256, size=(8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.bmp")
