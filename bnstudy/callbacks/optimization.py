"""Base class and helper functions of the callbacks that measure the optimization."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from math import isfinite, nan

import lightning as L
import torch
from torch import Tensor, nn

from bnstudy.callbacks.names import logged_name
from bnstudy.data.module import DataModule, SampleBatches
from bnstudy.models import Classifier, calibrated
from bnstudy.representations import Tap
from bnstudy.representations.precision import on_float64_device
from bnstudy.representations.taps import Call, Taps
from bnstudy.runs.long_table import WHOLE_MODEL, Row
from bnstudy.terms import Split

# Largest variance of a constant channel, relative to its squared mean. It is not 0, because float32
# rounds.
CONSTANT_TOLERANCE = 1e-8

# Sites of the layers with weights, by type.
WEIGHT_SITES: dict[type[nn.Module], str] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), "conv"),
    nn.Linear: "linear",
}


class OptimizationMetrics(L.Callback):
    """Base of callbacks that measure a `Classifier` while it is trained on a `DataModule`.

    Measuring does not change weights, gradients, running statistics or torch's random numbers, so
    that a run ends with the same weights as without it. The trainer's loggers get the values as
    `opt/<metric>` and `opt/<layer>/<metric>`, for sites other than act as
    `opt/<layer>.<site>/<metric>`, and for the test split as `opt/test/<metric>`.

    Attributes:
        rows: Rows of the latest measurement.
        seconds: Total time of all measurements, in seconds, without the calibration before the
            first one.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.seconds = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time spent inside the context to `seconds`."""
        started = time.monotonic()
        yield
        self.seconds += time.monotonic() - started

    def publish(self, trainer: L.Trainer, epoch: int, rows: list[Row]) -> None:
        """Set `rows` for the record, and pass the values to the loggers."""
        self.rows = rows
        if rows and trainer.is_global_zero:
            values = {logged_name(row): row.value for row in rows} | {"epoch": epoch}
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)


def make_rows(
    values: Mapping[str, float],
    tap: Tap | None,
    epoch: int,
    step: int,
    split: str = "train",
    reason: str | None = None,
) -> list[Row]:
    """Create rows of the long table; values that are not finite become NaN.

    Args:
        values: Values by metric.
        tap: Layer and site; None for values of the whole model.
        epoch: Number of epochs trained before the measurement.
        step: Number of steps trained before the measurement.
        split: Split of the data.
        reason: Explanation of values that are not finite; None for a general one.
    """
    index, layer, site = (tap.layer_index, tap.layer, tap.site) if tap else (-1, WHOLE_MODEL, None)
    rows = []
    for metric, value in values.items():
        why = None if isfinite(value) else reason or f"{metric} is not finite"
        number = nan if why else value
        rows.append(Row(epoch, step, split, index, layer, site, metric, number, why))
    return rows


def is_varying(mean: Tensor, variance: Tensor) -> Tensor:
    """Mark the channels that are not constant, from their means and variances."""
    return variance > CONSTANT_TOLERANCE * mean.square()


def compute_norm(values: Tensor) -> Tensor:
    """Compute the L2 norm over all numbers of a tensor, in float64."""
    norm: Tensor = torch.linalg.vector_norm(on_float64_device(values), dtype=torch.float64)
    return norm


def get_network(module: L.LightningModule) -> nn.Module:
    """Return the network of a `Classifier`."""
    assert isinstance(module, Classifier)
    return module.network


def calibrated_network(
    trainer: L.Trainer, module: L.LightningModule
) -> AbstractContextManager[None]:
    """Enter a context in which running statistics that no batch has updated are calibrated."""
    return calibrated(get_network(module), _get_data(trainer).calibration())


def get_probe(trainer: L.Trainer, split: Split) -> SampleBatches:
    """Return the probe set of a split."""
    return _get_data(trainer).probe(split)


def _get_data(trainer: L.Trainer) -> DataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, DataModule)
    return data


def find_weight_sites(network: nn.Module) -> dict[str, str]:
    """Return the site, conv or linear, of each convolution and linear layer, by module name.

    Layers whose weights are computed, by a parametrization such as weight_norm, are left out.
    """
    return {
        name: site
        for name, module in network.named_modules()
        for kind, site in WEIGHT_SITES.items()
        if isinstance(module, kind) and "weight" in dict(module.named_parameters(recurse=False))
    }


def find_taps_at(
    trainer: L.Trainer, network: nn.Module, sites: Mapping[str, str]
) -> dict[str, Tap]:
    """Find the taps of modules as `find_taps` does, with the sites given by module name."""
    taps = find_taps(network, sites, get_probe(trainer, "train"))
    return {name: replace(tap, site=sites[name]) for name, tap in taps.items()}


def find_taps(network: nn.Module, modules: Iterable[str], batches: SampleBatches) -> dict[str, Tap]:
    """Find the tap of each module that the network calls, in the order of computation.

    Args:
        network: Network. It is run on one sample in eval mode, and not changed.
        modules: Names of the modules. If one is called several times, the first call counts.
        batches: Batches, of which the first sample is used.

    Returns:
        Taps by module name.
    """
    if not (layers := list(modules)):
        return {}
    inputs, _ = next(iter(batches))
    taps = Taps(network, layers)
    calls: list[Call] = []

    def note(call: Call, output: Tensor) -> None:
        calls.append(call)

    with torch.no_grad(), taps.hooked(note) as run:
        run(inputs[:1])
    return {call.module: tap for call, tap in taps.make_taps(calls).items() if call.number == 1}
