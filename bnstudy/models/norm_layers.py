"""Normalization layers that torch does not have."""

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
    follows instead of their thresholded linear unit, max(y, threshold) = ReLU(y - threshold) +
    threshold: the shift of this layer and the bias of the next have the same effect as the learned
    threshold.
    """

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__(num_channels)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x, N x C x H x W; shape and type are kept."""
        mean_square = x.float().square().mean((2, 3), keepdim=True)
        return super().forward((x * (mean_square + self.eps).rsqrt()).to(x.dtype))


class WeightStandardizedConv2d(nn.Conv2d):
    """A convolution with standardized weights (Qiao et al. 2019, arXiv 1903.10520).

    The weights of each output channel have mean 0 and variance 1 over input channels and positions.
    The parameter `weight` is the weight before standardization.
    """

    EPS = 1e-5

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        variance, mean = torch.var_mean(weight, (1, 2, 3), correction=0, keepdim=True)
        standardized = (weight - mean) * (variance + self.EPS).rsqrt()
        convolved: Tensor = super()._conv_forward(x, standardized, bias)
        return convolved
