"""Two ways to give data: a LightningDataModule, and a pair of torch data sets."""

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset


def stripes(samples: int = 300) -> tuple[TensorDataset, TensorDataset]:
    """Make the training and the test data set: noisy stripes of four directions."""
    return _stripes(samples, seed=0), _stripes(samples // 2, seed=1)


class Stripes(L.LightningDataModule):
    """The same as a LightningDataModule; its validation samples are the study's test split."""

    def __init__(self, samples: int, batch_size: int) -> None:
        super().__init__()
        self.samples, self.batch_size = samples, batch_size

    def setup(self, stage: str) -> None:
        """Make the data sets."""
        self.train, self.val = stripes(self.samples)

    def train_dataloader(self) -> DataLoader:
        """Return the training samples; bnstudy orders them by the seed."""
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Return the samples that are not trained on."""
        return DataLoader(self.val, self.batch_size)


def _stripes(samples: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 4
    x, y = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    waves = torch.stack([x, y, (x + y) / 1.4, (x - y) / 1.4])[labels]
    phases = 6.3 * torch.rand(samples, 1, 1, generator=generator)
    noise = torch.randn(samples, 12, 12, generator=generator)
    return TensorDataset((torch.sin(waves + phases) + 0.5 * noise)[:, None], labels)
