"""The callback on a LightningModule that is not ours."""

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from bnstudy.callbacks import RepresentationMetrics
from bnstudy.errors import UserError

LEAF_SPEC = "ignore:.*LeafSpec.* is deprecated"  # Lightning 2.6 with torch 2.15


class Autoencoder(L.LightningModule):
    """No classifier, no validation, names of its own."""

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

    class Watch(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.extend(callback.rows)

        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            assert pl_module.training
            seen.extend(callback.rows if callback.rows not in seen else [])

    names = ["unit_sparsity", "silhouette"]
    callback = RepresentationMetrics({"train": loader()}, names, every_n_epochs=2)
    trainer = L.Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[callback, Watch()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(Autoencoder(), loader())
    assert list(dict.fromkeys((row.epoch, row.step) for row in seen)) == [(0, 0), (2, 6), (3, 9)]
    assert {(row.layer, row.site, row.layer_index) for row in seen} == {("encoder.1", "act", 0)}
    assert {row.metric for row in seen} == set(names)
    assert callback.seconds > 0


def test_a_torchvision_network_is_measured() -> None:
    class Net(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = resnet18(num_classes=3)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    callback = RepresentationMetrics({"test": loader(3)}, ["channel_sparsity"], ["norm", "act"])
    rows = callback.measure(Net(), epoch=0, step=0)
    assert len(rows) == 20 + 17
    assert rows[0].layer == "bn1"


def test_an_unknown_metric_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="knn_purty; near: knn_purity"):
        RepresentationMetrics({}, ["knn_purty"])


def test_an_undefined_metric_is_told_once() -> None:
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
