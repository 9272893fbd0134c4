"""Training and measuring on a CUDA device, against the CPU; `pytest -m gpu`.

`BNSTUDY_TEST_DEVICE=cpu` tries the tests themselves where there is no such device.
"""

import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from bnstudy import measure
from bnstudy.config import CONFIG_FOLDER
from bnstudy.metrics import METRICS, evaluate
from bnstudy.models import Classifier, recalibrate
from bnstudy.representations import capture
from bnstudy.training.checkpoints import load_checkpoint
from tests.conftest import SMALL, CommandLine, description, only_cell, read_rows

DEVICE = os.environ.get("BNSTUDY_TEST_DEVICE", "cuda")
NORMS = sorted(path.stem for path in (CONFIG_FOLDER / "norm").glob("*.yaml"))
ON_DEVICE = (f"trainer.accelerator={DEVICE}", *SMALL)
COUNT = 1000  # samples
BUDGET = 0.25  # GiB; too little for all layers together

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU"),
]


def network() -> nn.Module:
    """Create a network with BatchNorm, with the same weights at each call."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 48, 3, stride=2, padding=1),
        nn.BatchNorm2d(48),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48 * 16 * 16, 10),
    )


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(COUNT) % 10
    centres = torch.randn(10, 3, 32, 32, generator=generator)
    images = centres[labels] + torch.randn(COUNT, 3, 32, 32, generator=generator)
    return list(zip(images.split(250), labels.split(250), strict=True))


def test_all_metrics_are_those_of_the_cpu() -> None:
    values: dict[str, dict[tuple[str, str], float]] = {}
    model, data = network(), batches()
    recalibrate(model, data)
    for device, precision in (("cpu", "float32"), (DEVICE, "auto")):
        on_device = [(images.to(device), labels.to(device)) for images, labels in data]
        values[device + precision] = {
            (layer.name, name): value.number
            for layer in capture(
                model.to(device), on_device, sites=["act", "features"], precision=precision
            )
            for name, value in evaluate(METRICS.values(), layer).items()
        }
    expected, found = values.values()
    assert found.keys() == expected.keys()
    assert len(found) == 3 * len(METRICS)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-3, abs=1e-5, nan_ok=True), key


@pytest.mark.skipif(DEVICE != "cuda", reason="torch counts the memory of GPUs alone")
def test_a_memory_budget_is_kept_on_the_device() -> None:
    model = network().to(DEVICE)
    data = [(images.to(DEVICE), labels.to(DEVICE)) for images, labels in batches()]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for layer in capture(model, data, sites=["conv", "act"], memory_budget=BUDGET):
        evaluate(METRICS.values(), layer)
        del layer
    assert torch.cuda.max_memory_allocated() - before < 1.25 * BUDGET * 2**30


@pytest.mark.parametrize("norm", NORMS)
def test_each_norm_is_trained_and_measured(
    norm: str, command_line: CommandLine, tmp_path: Path
) -> None:
    result = command_line(*ON_DEVICE, f"norm={norm}", "trainer.precision=bf16-mixed")
    assert result.returncode == 0, result.stderr
    rows = read_rows(only_cell(tmp_path / "multirun"))
    assert {row["epoch"] for row in rows} == {0, 1, 2}
    assert not [row for row in rows if row["reason"] and row["metric"] == "silhouette"]


def test_an_interrupted_run_goes_on_and_more_is_measured(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = Classifier.training_step, 0

    def interrupted(self: Classifier, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 12:  # in the second epoch of 8 steps
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Classifier, "training_step", interrupted)
        assert command_line(*ON_DEVICE).returncode != 0
    cell = only_cell(tmp_path / "multirun")
    assert description(cell)["status"] == "interrupted"
    assert command_line(*ON_DEVICE).returncode == 0
    assert description(cell)["attempts"][-1]["resumed_from_epoch"] == 1
    result = command_line(str(cell), "metrics.names=[hoyer]", main=measure.main)
    assert result.returncode == 0, result.stderr
    assert "hoyer" in {row["metric"] for row in read_rows(cell) if row["epoch"] == 2}


def test_deterministic_runs_repeat_bit_for_bit(command_line: CommandLine, tmp_path: Path) -> None:
    weights, tables = [], []
    for root in ("first", "second"):
        options = ("trainer.deterministic=true", f"output_root={root}")
        assert command_line(*ON_DEVICE, *options).returncode == 0
        cell = only_cell(tmp_path / root)
        weights.append(load_checkpoint(cell / "checkpoints" / "last.ckpt")["state_dict"])
        tables.append(pq.read_table(cell / "metrics.parquet"))
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    assert tables[0].equals(tables[1])
