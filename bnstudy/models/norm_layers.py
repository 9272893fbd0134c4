"""Normalization layers that torch does not have, and modules that some norms need around them.

The attribute `site` tells `bnstudy.representations.capture` the site of a module in its block.
"""

import torch
from torch import Tensor, nn


class NoNorm(nn.Identity):
    """Identity in the place of a normalization layer."""

    site = "norm"


class ChannelAffine(nn.Module):
    """BatchNorm's learned scale and shift without its statistics: y = weight * x + bias."""

    site = "norm"

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift x, N x C x H x W; shape and type are kept."""
        y: Tensor = (x * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)
        return y


class FilterResponseNorm(ChannelAffine):
    """Filter response normalization (Singh and Krishnan 2020, arXiv 1911.09737).

    Each channel of each sample is divided by its root mean square, then scaled and shifted. A ReLU
    follows instead of the paper's thresholded linear unit, max(y, threshold) = ReLU(y - threshold)
    + threshold. The shift of this layer and the bias of the next one have the effect of the learned
    threshold, except where the next one pads with zeros.
    """

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__(num_channels)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x, N x C x H x W; shape and type are kept."""
        mean_square = x.float().square().mean((2, 3), keepdim=True)
        return super().forward((x * (mean_square + self.eps).rsqrt()).to(x.dtype))


class RMSNorm(nn.Module):
    """Root mean square normalization (Zhang and Sennrich 2019, arXiv 1910.07467).

    Each sample is divided by its root mean square over channels and positions; each channel has a
    learned scale and, as in the paper, no shift. `torch.nn.RMSNorm` would have a scale for each
    position too.
    """

    site = "norm"

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x, N x C x H x W; shape and type are kept."""
        mean_square = x.float().square().mean((1, 2, 3), keepdim=True)
        y: Tensor = (x * (mean_square + self.eps).rsqrt() * self.weight[:, None, None]).to(x.dtype)
        return y


class DynamicTanh(ChannelAffine):
    """Dynamic tanh, y = weight * tanh(alpha * x) + bias (Zhu et al. 2025, arXiv 2503.10622).

    Args:
        num_channels: Channels, each with its own weight (initially 1) and bias (initially 0).
        alpha: Initial value of the scale that all channels share; the paper's is 0.5.
    """

    def __init__(self, num_channels: int, alpha: float = 0.5) -> None:
        super().__init__(num_channels)
        self.alpha = nn.Parameter(torch.tensor(alpha))

    def forward(self, x: Tensor) -> Tensor:
        """Squash x, N x C x H x W; shape and type are kept."""
        return super().forward(torch.tanh(self.alpha * x).to(x.dtype))


class DynamicErf(ChannelAffine):
    """Derf, y = weight * erf(alpha * x + shift) + bias (Chen et al. 2025, arXiv 2512.10938).

    Args:
        num_channels: Channels, each with its own weight (initially 1) and bias (initially 0).
        alpha: Initial value of the scale that all channels share; the paper's is 0.5. All channels
            also share `shift`, which is initially 0.
    """

    def __init__(self, num_channels: int, alpha: float = 0.5) -> None:
        super().__init__(num_channels)
        self.alpha = nn.Parameter(torch.tensor(alpha))
        self.shift = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        """Squash x, N x C x H x W; shape and type are kept."""
        return super().forward(torch.erf(self.alpha * x + self.shift).to(x.dtype))


class EvoNormS0(ChannelAffine):
    """EvoNorm-S0 (Liu et al. 2020, arXiv 2004.02967), which contains its activation function.

    y = weight * x * sigmoid(v * x) / std(x) + bias. The standard deviation is that of a sample's
    groups of channels, over their channels and positions. v has one value a channel, initially 1.
    """

    def __init__(self, num_channels: int, num_groups: int, eps: float = 1e-5) -> None:
        super().__init__(num_channels)
        self.v = nn.Parameter(torch.ones(num_channels))
        self.num_groups, self.eps = num_groups, eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize and activate x, N x C x H x W; shape and type are kept."""
        groups = x.float().unflatten(1, (self.num_groups, -1))
        variance = groups.var((2, 3, 4), correction=0)
        inverse_std = (variance + self.eps).rsqrt().repeat_interleave(groups.shape[2], dim=1)
        activated = x * torch.sigmoid(self.v[:, None, None] * x)
        return super().forward((activated * inverse_std[:, :, None, None]).to(x.dtype))


class ChannelsLast(nn.Module):
    """A norm of N x C x H x W activations, applied to activations whose last axis is the channels.

    Args:
        norm: Layer that normalizes N x C x H x W.
    """

    site = "norm"

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x, N x ... x C; shape and type are kept."""
        moved = x.movedim(-1, 1)
        y: Tensor = self.norm(moved if x.ndim == 4 else moved.reshape(*moved.shape[:2], -1, 1))
        return y.reshape(moved.shape).movedim(1, -1)


class FusedActivation(nn.Identity):
    """Identity in the place of the activation function that a norm such as EvoNorm contains."""

    site = "act"


class WeightStandardizedConv2d(nn.Conv2d):
    """A convolution with standardized weights (Qiao et al. 2019, arXiv 1903.10520).

    The weights of each output channel have mean 0 and variance 1 over input channels and positions.
    The parameter `weight` contains the weights before standardization.
    """

    EPS = 1e-5

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        variance, mean = torch.var_mean(weight, (1, 2, 3), correction=0, keepdim=True)
        standardized = (weight - mean) * (variance + self.EPS).rsqrt()
        convolved: Tensor = super()._conv_forward(x, standardized, bias)
        return convolved
