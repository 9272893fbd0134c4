"""Training and measuring on a device without float64 give what they give on a CPU."""

import math
from typing import Any

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

from bnstudy.callbacks import (
    ActivationDrift,
    BatchStatistics,
    GradientNorms,
    LossLandscape,
    RepresentationMetrics,
)
from bnstudy.metrics import METRICS
from bnstudy.models import Classifier
from bnstudy.representations import Layer
from bnstudy.runs.long_table import Row
from bnstudy.terms import SPLITS
from tests.callbacks.training import noise, small_network, train
from tests.float32_device import float32_device


class Accelerator(CPUAccelerator):
    """Accelerator of any device."""

    def setup_device(self, device: torch.device) -> None:
        pass


def measure(device: str | torch.device, **options: Any) -> tuple[Classifier, list[Row]]:
    data = noise()
    sites = ("conv", "norm", "act", "features")
    probes = {split: data.probe(split) for split in SPLITS}
    callbacks = [
        RepresentationMetrics(probes, list(METRICS), sites, calibration=data.calibration()),
        ActivationDrift(1),
        BatchStatistics(),
        GradientNorms(1),
        LossLandscape(1, [0.1, 1.0]),
    ]
    network = small_network()
    network[3] = nn.Identity()  # dropout draws other numbers where the memory format is another
    module = train(network.to(device), *callbacks, epochs=1, data=data, **options)
    return module, [row for callback in callbacks for row in callback.rows]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::Warning")  # Lightning's and torch's, of an unknown device
def test_all_numbers_are_those_of_a_cpu() -> None:
    expected, reference = measure("cpu")
    with float32_device() as device:
        strategy = SingleDeviceStrategy(device=device, accelerator=Accelerator())
        module, rows = measure(device, accelerator="auto", strategy=strategy)
    assert module.performance == pytest.approx(expected.performance)
    assert len(rows) == len(reference) > 600
    for row, of_cpu in zip(rows, reference, strict=True):
        assert row[:-2] == of_cpu[:-2]
        same = math.isclose(row.value, of_cpu.value, rel_tol=1e-3, abs_tol=1e-5)
        assert same or (math.isnan(row.value) and math.isnan(of_cpu.value)), row


def test_a_layer_of_such_a_device_is_read() -> None:
    activations, labels = torch.randn(8, 3), torch.arange(8) % 2
    expected = METRICS["silhouette"](Layer(activations, labels))
    with float32_device() as device, pytest.raises(TypeError, match="does not support float64"):
        torch.zeros(1, device=device).double()
    with float32_device() as device:
        assert METRICS["silhouette"](Layer(activations.to(device), labels)) == expected
