"""Tests of RepresentationMetrics: when it measures, and with which running statistics."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchvision.models import resnet18

from bnstudy.callbacks import RepresentationMetrics
from bnstudy.data.batches import balanced_folds
from bnstudy.errors import UserError
from bnstudy.metrics import METRICS
from bnstudy.models import recalibrate, recalibrated
from bnstudy.representations import Layer, capture
from bnstudy.runs.long_table import Row
from tests.callbacks.training import QUIET, Watch, noise, small_network, train

LEAF_SPEC = "ignore:.*LeafSpec.* is deprecated"  # Lightning 2.6 with torch 2.15


class Autoencoder(L.LightningModule):
    """A module that is not a classifier and has no validation."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(inplace=True))
        self.decoder = nn.ConvTranspose2d(4, 1, 4, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return (self(batch[0]) - batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def loader(channels: int = 1) -> "DataLoader[tuple[Tensor, ...]]":
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(60, channels, 16, 16, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(60) % 3), batch_size=20)


@pytest.mark.filterwarnings(
    LEAF_SPEC, "ignore:.*does not have many workers", "ignore:.*tensorboard"
)
def test_any_module_is_measured_before_training_and_when_due() -> None:
    seen = []

    class Collect(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.extend(callback.rows)

        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            assert pl_module.training
            seen.extend(callback.rows if callback.rows not in seen else [])

    names = ["unit_sparsity", "silhouette"]
    callback = RepresentationMetrics({"train": loader()}, names, every_n_epochs=2)
    trainer = L.Trainer(**QUIET, max_epochs=3, callbacks=[callback, Collect()])
    trainer.fit(Autoencoder(), loader())
    assert list(dict.fromkeys((row.epoch, row.step) for row in seen)) == [(0, 0), (2, 6), (3, 9)]
    assert {(row.layer, row.site, row.layer_index) for row in seen} == {("encoder.1", "act", 0)}
    assert {row.metric for row in seen} == set(names)
    assert callback.seconds > 0


class StopAfterStep(L.Callback):
    """Callback that stops the training after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.should_stop |= trainer.global_step == self.step


class Times(Logger):
    """Logger that keeps the epoch and step of each logged measurement."""

    name, version = "times", 0

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[float, int | None]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if any(name.startswith("rep/") for name in metrics):
            self.logged.append((metrics["epoch"], step))

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


@pytest.mark.filterwarnings(
    LEAF_SPEC, "ignore:.*does not have many workers", "ignore:`max_epochs` was not set"
)
@pytest.mark.parametrize(
    ("options", "callbacks", "measured"),
    [
        ({"max_epochs": 6}, [], [(0, 0), (5, 15), (6, 18)]),
        ({"max_epochs": 5}, [], [(0, 0), (5, 15)]),
        ({"max_steps": 10}, [], [(0, 0), (4, 10)]),  # ends in the middle of an epoch of 3 steps
        ({"max_steps": 17}, [], [(0, 0), (5, 15), (6, 17)]),
        ({"max_steps": 15}, [], [(0, 0), (5, 15)]),
        ({"max_epochs": -1, "max_steps": 9}, [], [(0, 0), (3, 9)]),
        ({"max_epochs": 50}, [EarlyStopping("flat", patience=2)], [(0, 0), (3, 9)]),
        ({"max_epochs": 50}, [StopAfterStep(8)], [(0, 0), (3, 8)]),
        ({"max_epochs": 2, "limit_train_batches": 0}, [], []),
    ],
    ids=[
        *("6 epochs", "5 epochs", "10 steps", "17 steps", "15 steps", "9 steps"),
        *("early stopping", "should_stop", "no batch"),
    ],
)
@pytest.mark.parametrize("first", [True, False], ids=["called first", "called last"])
def test_the_last_epoch_is_measured_however_training_ends(
    options: dict[str, Any],
    callbacks: list[L.Callback],
    measured: list[tuple[int, int]],
    first: bool,
) -> None:
    class Flat(Autoencoder):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            self.log("flat", 1.0, on_epoch=True)
            return super().training_step(batch, batch_idx)

    callback = RepresentationMetrics({"train": loader()}, ["unit_sparsity"], every_n_epochs=5)
    others = deepcopy(callbacks)
    ordered = [callback, *others] if first else [*others, callback]
    logger = Times()
    trainer = L.Trainer(**QUIET | {"logger": logger} | options, callbacks=ordered)
    model = Flat()
    trainer.fit(model, loader())
    assert logger.logged == measured
    if measured:
        assert {(row.epoch, row.step) for row in callback.rows} == {measured[-1]}
    if not callbacks:
        trainer.fit(model, loader())  # resumed at its end
        assert logger.logged == measured


class Normalized(Autoencoder):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout()
        )


@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_a_network_that_has_seen_no_batch_has_the_statistics_of_the_training_data(
    batch_size: int,
) -> None:
    module, reference = Normalized(), Normalized()
    before = deepcopy(module.state_dict())
    images = torch.cat([inputs for inputs, _ in loader()])
    recalibrate(reference, [(images, torch.zeros(60))])
    data = DataLoader(loader().dataset, batch_size=batch_size)
    callback = RepresentationMetrics({"test": loader(), "train": data}, ["mean"], ["norm"])
    values = {row.split: row.value for row in callback.measure(module, 0, 0)}
    with torch.no_grad():
        normalized = reference.encoder[:2].eval()(images)
    assert values["train"] == pytest.approx(normalized.mean().item(), abs=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())

    module(images)  # gives it running statistics, which are then used
    for row in callback.measure(module, 1, 1):
        assert row.value != pytest.approx(values["train"], abs=1e-6)


def test_a_torchvision_network_is_measured() -> None:
    class Net(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = resnet18(num_classes=3)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    callback = RepresentationMetrics({"test": loader(3)}, ["channel_sparsity"], ["norm", "act"])
    rows = callback.measure(Net(), epoch=0, step=0)
    assert [row.metric for row in rows[:2]] == ["probe_loss", "probe_accuracy"]
    assert len(rows) == 2 + 20 + 17  # loss and accuracy; 20 norms and 17 calls of ReLU
    assert rows[2].layer == "bn1"


def test_an_unknown_metric_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="knn_purty; did you mean knn_purity"):
        RepresentationMetrics({}, ["knn_purty"])


@pytest.mark.parametrize("interval", [0, -1, 0.5, True, "2", None])
def test_an_interval_that_is_no_count_is_refused_at_once(interval: Any) -> None:
    with pytest.raises(UserError, match=r"every_n_epochs=.* not allowed; expected an integer of"):
        RepresentationMetrics({}, [], every_n_epochs=interval)


def test_an_undefined_metric_is_warned_of_once() -> None:
    class Dead(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)
            self.act = nn.ReLU()
            nn.init.constant_(self.conv.bias, -1e6)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.conv(x))

    callback = RepresentationMetrics({"train": loader()}, ["silhouette", "dead_channels"])
    with pytest.warns(UserWarning, match="the same representation; NaN for silhouette"):
        callback.measure(Dead(), 0, 0)
    rows = callback.measure(Dead(), 1, 0)  # a second warning would be an error
    assert [(row.metric, row.reason) for row in rows] == [
        ("silhouette", "all samples have the same representation"),
        ("dead_channels", None),
    ]


class WatchStepRows(Watch):
    """Watch that keeps the rows of the steps of each epoch, instead of the networks after it."""

    def __init__(self, metrics: RepresentationMetrics) -> None:
        super().__init__()
        self.metrics = metrics
        self.step_rows: list[list[Row]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.step_rows.append(list(self.metrics.step_rows))


def test_steps_within_the_first_epoch_are_measured_with_the_datas_statistics() -> None:
    data = noise(batch_size=10)  # 6 steps in an epoch
    metrics = RepresentationMetrics({"train": data.probe("train")}, ["mean"], at_steps="log2")
    watch = WatchStepRows(metrics)
    train(small_network(), metrics, watch, data=data)
    first_epoch, second_epoch = watch.step_rows
    assert {row.step for row in first_epoch} == {1, 2, 4}
    assert {row.epoch for row in first_epoch} == {0}
    assert second_epoch == []
    network, _ = watch.steps[2]  # before the third step
    before = deepcopy(network.state_dict())
    with recalibrated(network, metrics.calibration):
        (first, *_) = capture(network, data.probe("train"))
        expected = METRICS["mean"](first)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    (value,) = [
        row.value
        for row in first_epoch
        if row.step == 2 and row.metric == "mean" and row.layer_index == 0
    ]
    assert value == pytest.approx(expected)


def test_each_step_of_accumulated_gradients_is_measured_once() -> None:
    data = noise(batch_size=10)  # 6 batches, 3 steps in an epoch
    metrics = RepresentationMetrics({"train": data.probe("train")}, ["mean"], at_steps="log2")
    watch = WatchStepRows(metrics)
    train(small_network(), metrics, watch, data=data, accumulate_grad_batches=2)
    first_epoch = watch.step_rows[0]
    measured = [row.step for row in first_epoch if row.metric == "mean" and row.layer_index == 0]
    assert measured == [1, 2]


def test_the_last_step_of_an_epoch_is_measured_only_as_the_epoch() -> None:
    data = noise(batch_size=10)  # 6 batches, 3 steps in an epoch
    metrics = RepresentationMetrics({"train": data.probe("train")}, ["mean"], at_steps=[3, 4])
    watch = WatchStepRows(metrics)
    train(small_network(), metrics, watch, data=data, accumulate_grad_batches=2)
    steps = {row.step for rows in watch.step_rows for row in rows if row.layer_index == 0}
    assert steps == {4}  # step 3 ends the first epoch, and the second begins at the same step


class WithoutLength(IterableDataset[tuple[Tensor, ...]]):
    """The data of `loader`; how many there are is known once they are read."""

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return iter(loader().dataset)


@pytest.mark.filterwarnings(LEAF_SPEC, "ignore:.*does not have many workers")
@pytest.mark.parametrize(
    ("options", "callbacks", "steps"),
    [
        ({}, [], [2, 5]),
        ({"limit_train_batches": 2}, [], [3]),
        ({"max_steps": 5}, [], [2]),  # ends in the middle of the second epoch
        ({}, [StopAfterStep(5)], [2]),
    ],
    ids=["whole epochs", "limited", "5 steps", "should_stop"],
)
@pytest.mark.parametrize("data", [loader(), DataLoader(WithoutLength(), 20)], ids=["sized", "not"])
def test_no_step_that_ends_an_epoch_is_among_those_within(
    data: "DataLoader[tuple[Tensor, ...]]",
    options: dict[str, Any],
    callbacks: list[L.Callback],
    steps: list[int],
) -> None:
    within = []

    class Collect(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            within.extend(row.step for row in metrics.step_rows)

    metrics = RepresentationMetrics({"train": loader()}, ["mean"], at_steps=[2, 3, 5, 6])
    trainer = L.Trainer(
        **QUIET | {"max_epochs": 2} | options,
        callbacks=[metrics, Collect(), *deepcopy(callbacks)],
    )
    trainer.fit(Autoencoder(), data)
    assert within == steps


def test_parts_of_the_probe_set_are_measured_if_training_stops_early() -> None:
    data = noise()
    metrics = RepresentationMetrics({"train": data.probe("train")}, ["mean"], folds=3)

    class StopAfterFirstEpoch(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.should_stop = True

    train(small_network(), metrics, StopAfterFirstEpoch(), data=data)
    assert {row.epoch for _, row in metrics.fold_rows} == {1}
    assert len(metrics.fold_rows) == 3 * 2


def test_parts_of_the_probe_set_are_measured_after_the_last_epoch() -> None:
    data = noise()
    names = ["unit_sparsity", "silhouette", "knn_purity", "nc1", "soft_rank", "participation_ratio"]
    metrics = RepresentationMetrics({"train": data.probe("train")}, names, folds=3)
    watch = Watch()
    train(small_network(), metrics, watch, data=data)
    folds = balanced_folds(data.probe("train").labels, 3)
    assert torch.bincount(3 * data.probe("train").labels + folds).tolist() == [7, 7, 6] * 3
    found = {
        (fold, row.layer_index, row.metric): row.value
        for fold, row in metrics.fold_rows
        if row.epoch == 2
    }
    assert len(found) == len(metrics.fold_rows) == 3 * 2 * len(names)
    for layer in capture(watch.epochs[-1], data.probe("train")):
        for fold in range(3):
            part = torch.nonzero(folds == fold).flatten()
            whole = Layer(layer.activations[part], layer.labels[part])
            for name in names:
                ours = found[fold, layer.index, name]
                assert ours == pytest.approx(METRICS[name](whole), rel=1e-3), name
