"""Parts of the normalizer-free ResNets (Brock, De and Smith 2021, arXiv 2101.08692)."""

import math

import torch
from torch import Tensor, nn

RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))
BRANCH_SCALE = 0.2  # alpha of the paper


class GainedReLU(nn.ReLU):
    """ReLU times the gain that keeps the variance of normally distributed values with mean 0.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> round(GainedReLU()(torch.randn(1_000_000)).var().item(), 2)
        1.0
    """

    def forward(self, x: Tensor) -> Tensor:
        """Compute RELU_GAIN * max(x, 0)."""
        return RELU_GAIN * super().forward(x)


class ScaledStandardizedConv2d(nn.Conv2d):
    """A convolution with scaled weight standardization (equation 1) and a learned gain.

    The weights of each output channel are standardized to mean 0 and variance 1 / fan-in, then
    multiplied by a gain that is initially 1. The parameter `weight` contains the weights before
    standardization.
    """

    EPS = 1e-4  # minimum of variance times fan-in; from the authors' code

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, kernel_size: int = 3
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2
        )
        self.gain = nn.Parameter(torch.ones(out_channels))

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        variance, mean = torch.var_mean(weight, (1, 2, 3), correction=0, keepdim=True)
        scale = (variance * weight[0].numel()).clamp_min(self.EPS).rsqrt()
        standardized = (weight - mean) * scale * self.gain[:, None, None, None]
        convolved: Tensor = super()._conv_forward(x, standardized, bias)
        return convolved


class ActivatedConv(nn.Module):
    """ReLU with its gain, then a scaled standardized convolution, named `act` and `conv`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.act = GainedReLU()
        self.conv = ScaledStandardizedConv2d(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map N x in_channels x H x W to N x out_channels x H/stride x W/stride, rounded up."""
        convolved: Tensor = self.conv(self.act(x))
        return convolved


class ShortcutConv(ScaledStandardizedConv2d):
    """Convolution of a shortcut. Its site is not `conv`: networks with a norm have none there."""

    site = "output"


class NormalizerFreeBlock(nn.Module):
    """Residual block h + alpha * skip_gain * f(h / beta), where beta^2 is the variance of h.

    `skip_gain` is learned and initially 0 (SkipInit). The variance is not measured but predicted.
    Each block adds alpha^2 to it; a block that halves the image first resets it to 1. The shortcut
    of such a block is not h but a strided 1x1 convolution of the activated h / beta, with scaled
    weight standardization.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution and of the shortcut; 1 requires as many output as
            input channels.
        variance: Predicted variance of the input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, variance: float) -> None:
        super().__init__()
        self.first = ActivatedConv(in_channels, out_channels, stride)
        self.second = ActivatedConv(out_channels, out_channels)
        self.shortcut = (
            ShortcutConv(in_channels, out_channels, kernel_size=1) if stride > 1 else None
        )
        self.skip_gain = nn.Parameter(torch.tensor(0.0))
        self.stride, self.beta = stride, math.sqrt(variance)

    def forward(self, x: Tensor) -> Tensor:
        """Map N x in_channels x H x W to N x out_channels x H/stride x W/stride, rounded up."""
        activated = self.first.act(x / self.beta)
        branch = self.second(self.first.conv(activated))
        if self.shortcut is not None:
            # Slicing replaces the stride of the convolution: on a CPU, the backward pass of a
            # strided 1x1 convolution of fewer than 8 channels writes out of bounds (oneDNN's issue
            # 6035).
            x = self.shortcut(activated[:, :, :: self.stride, :: self.stride])
        output: Tensor = x + BRANCH_SCALE * self.skip_gain * branch
        return output
