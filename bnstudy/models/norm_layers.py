"""Normalization layers that torch does not have."""

import torch
from torch import Tensor, nn


class NoNorm(nn.Identity):
    """What stands where no normalization does."""

    site = "norm"


class ChannelAffine(nn.Module):
    """The learned scale and shift of BatchNorm, without its statistics: y = weight * x + bias."""

    site = "norm"

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape and type as x, N x C x H x W."""
        y: Tensor = (x * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)
        return y


class FilterResponseNorm(ChannelAffine):
    """Each channel of each sample divided by its root mean square, then scaled and shifted.

    Singh and Krishnan 2020, arXiv 1911.09737. Their thresholded linear unit,
    max(y, threshold) = ReLU(y - threshold) + threshold, is left to the ReLU that follows: the shift
    here and the next layer's bias stand for its learned threshold.
    """

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__(num_channels)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape and type as x, N x C x H x W."""
        mean_square = x.float().square().mean((2, 3), keepdim=True)
        return super().forward((x * (mean_square + self.eps).rsqrt()).to(x.dtype))


class WeightStandardizedConv2d(nn.Conv2d):
    """A convolution whose weights have mean 0 and variance 1 in each output channel.

    Qiao, Wang, Liu, Shen and Yuille 2019, arXiv 1903.10520: over the channels and
    positions that an output channel reads. The parameter is the weight before that.
    """

    EPS = 1e-5

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        variance, mean = torch.var_mean(weight, (1, 2, 3), correction=0, keepdim=True)
        standardized = (weight - mean) * (variance + self.EPS).rsqrt()
        convolved: Tensor = super()._conv_forward(x, standardized, bias)
        return convolved
