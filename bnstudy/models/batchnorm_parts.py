"""Variants of BatchNorm, each of which keeps or changes one part of it.

The original is that of Ioffe and Szegedy 2015, arXiv 1502.03167. Every variant learns a scale and a
shift for each channel and has running statistics; these parameters and buffers have the same names
as those of torch's BatchNorm. The variants are not subclasses of torch's BatchNorm, because
`SyncBatchNorm.convert_sync_batchnorm` would replace them by the complete BatchNorm.
"""

import math

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase


class _BatchStatistics(_NormBase):
    """Base of layers that use batch statistics in training and running statistics otherwise.

    Args:
        num_channels: Channels.
        synchronized: Whether batch statistics are those of all processes of a distributed run.
        eps: Constant added to variances.
        momentum: Weight of a batch in the running statistics. While the attribute is set to None,
            all batches have the same weight.
    """

    def __init__(
        self, num_channels: int, synchronized: bool, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__(num_channels, eps, momentum)
        self.synchronized = synchronized

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return each channel's mean and variance, C, to normalize x, N x C x H x W.

        In training, these are the mean and the biased variance of x, and the running statistics are
        updated. Otherwise they are the running statistics, whose variance is unbiased.
        """
        assert self.running_mean is not None
        assert self.running_var is not None
        if not self.training:
            return self.running_mean, self.running_var
        variance, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
        count = float(x.numel() // x.shape[1])
        if self.synchronized and distributed.is_initialized():
            variance, mean, count = _combine_processes(variance, mean, count)
        with torch.no_grad():
            factor = _count_batch(self)
            self.running_mean.lerp_(mean.to(self.running_mean), factor)
            unbiased = variance * count / max(count - 1, 1)
            self.running_var.lerp_(unbiased.to(self.running_var), factor)
        return mean, variance


class CenteringBatchNorm(_BatchStatistics):
    """BatchNorm without the division: y = weight * (x - mean) + bias."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x, N x C x H x W; shape and type are kept."""
        mean, _ = self.statistics(x)
        scale, shift = self.weight, self.bias - self.weight * mean
        return (x * _by_channel(scale) + _by_channel(shift)).to(x.dtype)


class ScalingBatchNorm(_BatchStatistics):
    """BatchNorm without the subtraction: y = weight * x / sqrt(variance + eps) + bias."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x, N x C x H x W; shape and type are kept."""
        _, variance = self.statistics(x)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (x * _by_channel(scale) + _by_channel(self.bias)).to(x.dtype)


class BatchRenorm(_BatchStatistics):
    """Batch renormalization (Ioffe 2017, arXiv 1702.03275).

    In training y = weight * ((x - mean) / std * r + d) + bias, with the mean and standard deviation
    of the batch. r is std / running std, clipped to [1 / r_max, r_max]; d is (mean - running mean)
    / running std, clipped to [-d_max, d_max]. The running statistics are those before the batch,
    and no gradient flows through r and d. Without clipping, x would be normalized by the running
    statistics.

    As in the paper, the limits are widened gradually, from those of BatchNorm (1 and 0). Here they
    grow linearly over the first `ramp_batches` batches.

    Args:
        num_channels: Channels.
        synchronized: Whether batch statistics are those of all processes of a distributed run.
        r_max: Final limit of r.
        d_max: Final limit of d.
        ramp_batches: Batches until the limits are reached.
        eps: Constant added to variances.
        momentum: Weight of a batch in the running statistics.
    """

    def __init__(
        self,
        num_channels: int,
        synchronized: bool,
        r_max: float,
        d_max: float,
        ramp_batches: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_channels, synchronized, eps, momentum)
        self.r_max, self.d_max, self.ramp_batches = r_max, d_max, ramp_batches

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x, N x C x H x W; shape and type are kept."""
        scale: Tensor = self.weight
        shift: Tensor = self.bias
        # While `recalibrate` averages the running statistics, it sets this layer's momentum to
        # None; x is then normalized by the statistics of the batch alone.
        if self.training and self.momentum is not None:
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            old_mean, old_std = self.running_mean.clone(), (self.running_var + self.eps).sqrt()
            share = (self.num_batches_tracked / self.ramp_batches).clamp(max=1)
            mean, variance = self.statistics(x)
            r_max, d_max = 1 + share * (self.r_max - 1), share * self.d_max
            r = ((variance.detach() + self.eps).sqrt() / old_std).clamp(1 / r_max, r_max)
            d = ((mean.detach() - old_mean) / old_std).clamp(-d_max, d_max)
            scale, shift = scale * r, shift + scale * d
        else:
            mean, variance = self.statistics(x)
        scale = scale * (variance + self.eps).rsqrt()
        return (x * _by_channel(scale) + _by_channel(shift - scale * mean)).to(x.dtype)


class EvoNormB0(_BatchStatistics):
    """EvoNorm-B0 (Liu et al. 2020, arXiv 2004.02967), which contains its activation function.

    y = weight * x / max(std of the batch, v * x + std of the sample) + bias. Each channel has its
    own standard deviations; that of the sample is over its positions. The parameter v has one value
    a channel, initially 1. In evaluation the running variance replaces that of the batch.
    """

    def __init__(
        self, num_channels: int, synchronized: bool, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__(num_channels, synchronized, eps, momentum)
        self.v = nn.Parameter(torch.ones(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize and activate x, N x C x H x W; shape and type are kept."""
        _, batch_variance = self.statistics(x)
        sample_variance = x.float().var((2, 3), correction=0, keepdim=True)
        batch_std = _by_channel((batch_variance + self.eps).sqrt())
        sample_std = (sample_variance + self.eps).sqrt()
        y = x / torch.maximum(batch_std, _by_channel(self.v) * x + sample_std)
        return (y * _by_channel(self.weight) + _by_channel(self.bias)).to(x.dtype)


class FrozenBatchNorm(_NormBase):
    """BatchNorm with fixed statistics, in training as in evaluation.

    `bnstudy.models.recalibrate` sets the statistics before training. Meanwhile it sets `momentum`
    to None; only then does the layer normalize by batch statistics, and average them.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__(num_channels, eps, momentum=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x, N x C x H x W; shape and type are kept."""
        return _batch_norm(self, x, batch_statistics=self.training and self.momentum is None)


class GhostBatchNorm(_NormBase):
    """BatchNorm over parts of a batch (Hoffer, Hubara and Soudry 2017, arXiv 1705.08741).

    In training, a batch is split into the smallest number of nearly equal parts that have at most
    `ghost_size` samples. Parts may have one sample more if one of them would otherwise have a
    single sample. Each part is normalized by its own statistics, and updates the running
    statistics.
    """

    def __init__(
        self, num_channels: int, ghost_size: int, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__(num_channels, eps, momentum)
        self.ghost_size = ghost_size

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x, N x C x H x W; shape and type are kept."""
        if not self.training:
            return _batch_norm(self, x, batch_statistics=False)
        parts = x.tensor_split(max(1, min(math.ceil(len(x) / self.ghost_size), len(x) // 2)))
        return torch.cat([_batch_norm(self, part, batch_statistics=True) for part in parts])


def _batch_norm(layer: _NormBase, x: Tensor, batch_statistics: bool) -> Tensor:
    return functional.batch_norm(
        x,
        layer.running_mean,
        layer.running_var,
        layer.weight,
        layer.bias,
        training=batch_statistics,
        momentum=_count_batch(layer) if batch_statistics else 0.0,
        eps=layer.eps,
    )


def _count_batch(layer: _NormBase) -> float:
    """Count a batch, and return its weight in the running statistics.

    With a momentum of None, all batches have the same weight.
    """
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    if layer.momentum is None:
        return 1 / float(layer.num_batches_tracked)
    return layer.momentum


def _by_channel(values: Tensor) -> Tensor:
    """Reshape one value a channel to C x 1 x 1."""
    return values[:, None, None]


def _combine_processes(
    variance: Tensor, mean: Tensor, count: float
) -> tuple[Tensor, Tensor, float]:
    """Return the statistics over the samples of all processes, whose counts may differ."""
    sums = all_reduce(torch.cat([mean * count, mean.new_tensor([count])]))
    total_count = sums[-1]
    total_mean = sums[:-1] / total_count
    squares = all_reduce((variance + (mean - total_mean).square()) * count)
    return squares / total_count, total_mean, total_count.item()
