"""Parts of the normalizer-free ResNets (Brock, De and Smith 2021, arXiv 2101.08692)."""

import math

import torch
from torch import Tensor, nn

# Keeps the variance of normally distributed values through a ReLU.
RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))
BRANCH_SCALE = 0.2  # alpha of the paper


class ScaledStandardizedConv2d(nn.Conv2d):
    """A convolution with scaled weight standardization (ibid., equation 1) and a learned gain.

    The weights of each output channel have mean 0 and variance 1 / fan-in, times a gain that is
    initially 1. The parameter `weight` is the weight before standardization.
    """

    EPS = 1e-4  # smallest variance of a channel's weights, times fan-in; of the authors' code

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, 3, stride=stride, padding=1)
        self.gain = nn.Parameter(torch.ones(out_channels))

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        variance, mean = torch.var_mean(weight, (1, 2, 3), correction=0, keepdim=True)
        scale = (variance * weight[0].numel()).clamp_min(self.EPS).rsqrt()
        standardized = (weight - mean) * scale * self.gain[:, None, None, None]
        convolved: Tensor = super()._conv_forward(x, standardized, bias)
        return convolved


class ActivatedConv(nn.Module):
    """ReLU times its gain, then a scaled standardized convolution, named `act` and `conv`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.conv = ScaledStandardizedConv2d(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map N x in_channels x H x W to N x out_channels x H/stride x W/stride, rounded up."""
        convolved: Tensor = self.conv(RELU_GAIN * self.act(x))
        return convolved


class NormalizerFreeBranch(nn.Module):
    """Residual branch f in h + alpha * skip_gain * f(h / beta), where beta^2 is the variance of h.

    `skip_gain` is learned and initially 0 (SkipInit). The variance is not measured but predicted:
    the first block of a stage sets it to 1, and each block adds alpha^2. There the shortcut starts
    from h / beta, as in the paper; unlike there it has no convolution.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution.
        variance: Predicted variance of the input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, variance: float) -> None:
        super().__init__()
        self.first = ActivatedConv(in_channels, out_channels, stride)
        self.second = ActivatedConv(out_channels, out_channels)
        self.skip_gain = nn.Parameter(torch.tensor(0.0))
        self.beta = math.sqrt(variance)

    def forward(self, scaled: Tensor) -> Tensor:
        """Compute alpha * skip_gain * f of an input that is divided by beta."""
        branch: Tensor = self.second(self.first(scaled))
        return BRANCH_SCALE * self.skip_gain * branch
