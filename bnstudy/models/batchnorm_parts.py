"""BatchNorm taken apart, to ask which part of it matters.

Each layer keeps or changes one part of BatchNorm (Ioffe and Szegedy 2015, arXiv 1502.03167). All
learn a scale and a shift by channel and keep running statistics as torch's BatchNorm does: their
buffers and parameters have its names. They are not subclasses of it, since torch's synchronization
across processes replaces every BatchNorm by its own complete one.
"""

import math

import torch
from torch import Tensor, distributed
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase


class _BatchStatistics(_NormBase):
    """The mean and variance of each channel: in training the batch's, else the running ones."""

    def __init__(
        self, num_channels: int, synchronized: bool, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__(num_channels, eps, momentum)
        self.synchronized = synchronized

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and (biased) variance, float32, each C, of x, N x C x H x W."""
        assert self.running_mean is not None
        assert self.running_var is not None
        if not self.training:
            return self.running_mean, self.running_var
        variance, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
        count = float(x.numel() // x.shape[1])
        if self.synchronized and distributed.is_initialized():
            variance, mean, count = _over_processes(variance, mean, count)
        with torch.no_grad():
            factor = _averaging_factor(self)
            self.running_mean.lerp_(mean.to(self.running_mean), factor)
            unbiased = variance * count / max(count - 1, 1)
            self.running_var.lerp_(unbiased.to(self.running_var), factor)
        return mean, variance


class CenteringBatchNorm(_BatchStatistics):
    """BatchNorm that only subtracts the mean: y = weight * (x - mean) + bias."""

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape and type as x, N x C x H x W."""
        mean, _ = self.statistics(x)
        scale, shift = self.weight, self.bias - self.weight * mean
        return (x * _by_channel(scale) + _by_channel(shift)).to(x.dtype)


class ScalingBatchNorm(_BatchStatistics):
    """BatchNorm that only divides: y = weight * x / sqrt(variance + eps) + bias."""

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape and type as x, N x C x H x W."""
        _, variance = self.statistics(x)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (x * _by_channel(scale) + _by_channel(self.bias)).to(x.dtype)


class FrozenBatchNorm(_NormBase):
    """BatchNorm whose statistics stay those of initialization, in training too.

    They are set by `bnstudy.models.recalibrate`: only while `momentum` is None does the layer use a
    batch's own statistics and add them to the average it keeps.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__(num_channels, eps, momentum=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape and type as x, N x C x H x W."""
        return _batch_norm(self, x, batch_statistics=self.training and self.momentum is None)


class GhostBatchNorm(_NormBase):
    """BatchNorm over parts of a batch (Hoffer, Hubara and Soudry 2017, arXiv 1705.08741).

    In training a batch is split into as few parts of nearly equal size as have at most `ghost_size`
    samples; each is normalized by its own statistics, and moves the running ones.
    """

    def __init__(
        self, num_channels: int, ghost_size: int, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__(num_channels, eps, momentum)
        self.ghost_size = ghost_size

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape and type as x, N x C x H x W."""
        if not self.training:
            return _batch_norm(self, x, batch_statistics=False)
        parts = x.tensor_split(math.ceil(len(x) / self.ghost_size))
        return torch.cat([_batch_norm(self, part, batch_statistics=True) for part in parts])


def _batch_norm(layer: _NormBase, x: Tensor, batch_statistics: bool) -> Tensor:
    return functional.batch_norm(
        x,
        layer.running_mean,
        layer.running_var,
        layer.weight,
        layer.bias,
        training=batch_statistics,
        momentum=_averaging_factor(layer) if batch_statistics else 0.0,
        eps=layer.eps,
    )


def _averaging_factor(layer: _NormBase) -> float:
    """The weight of a batch in the running statistics; of all alike where momentum is None."""
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    if layer.momentum is None:
        return 1 / float(layer.num_batches_tracked)
    return layer.momentum


def _by_channel(values: Tensor) -> Tensor:
    return values[:, None, None]


def _over_processes(variance: Tensor, mean: Tensor, count: float) -> tuple[Tensor, Tensor, float]:
    """The statistics of all processes' samples together, of which each may have another number."""
    sums = all_reduce(torch.cat([mean * count, mean.new_tensor([count])]))
    total = sums[-1]
    mean_of_all = sums[:-1] / total
    squared = all_reduce((variance + (mean - mean_of_all).square()) * count)
    return squared / total, mean_of_all, total.item()
