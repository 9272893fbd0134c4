"""Building blocks of the networks."""

from collections import OrderedDict
from collections.abc import Collection, Sequence

from torch import Tensor, nn

from bnstudy.models.normalization import Normalization


class ConvBlock(nn.Module):
    """A 3x3 convolution, normalization and a ReLU, named `conv`, `norm` and `act` for every norm.

    If the norm contains its activation function, an identity replaces the ReLU.

    The convolution has a bias with every norm, so that all variants have the same weights. The bias
    has no effect if a norm that subtracts each channel's mean follows directly.
    """

    def __init__(
        self, in_channels: int, out_channels: int, norm: Normalization, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv = norm.convolution(in_channels, out_channels, 3, stride=stride, padding=1)
        self.norm = norm.layer(out_channels)
        self.act = norm.activation()
        self.position = norm.position

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Map N x in_channels x H x W to N x out_channels x H/stride x W/stride, rounded up.

        Args:
            x: Input.
            shortcut: Tensor to add before the ReLU, in the shape of the output; None for no
                shortcut.
        """
        x = self.conv(x)
        if self.position == "pre":
            x = self.norm(x)
        x = self.act(x if shortcut is None else x + shortcut)
        if self.position == "post":
            x = self.norm(x)
        return x


class BlockStack(nn.Sequential):
    """A sequence of blocks, with 2x2 max pooling after some of them and a linear layer at the end.

    Args:
        channels: Output channels of each block.
        pool_after: Numbers, from 1, of the blocks after which there is a pooling.
        input_shape: Channels, height and width of an image.
        num_classes: Length of the output.
        norm: Factory of the normalization layers.
        ceil_mode: Whether poolings keep an odd last row or column; otherwise they drop it.
    """

    def __init__(
        self,
        channels: Sequence[int],
        pool_after: Collection[int],
        *,
        input_shape: tuple[int, int, int],
        num_classes: int,
        norm: Normalization,
        ceil_mode: bool = False,
    ) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        in_channels, height, width = input_shape
        for number, out_channels in enumerate(channels, start=1):
            layers[f"block{number:02d}"] = ConvBlock(in_channels, out_channels, norm)
            in_channels = out_channels
            if number in pool_after:
                layers[f"pool{number:02d}"] = nn.MaxPool2d(2, ceil_mode=ceil_mode)
                height, width = ((size + ceil_mode) // 2 for size in (height, width))
        layers["flatten"] = nn.Flatten()
        layers["classifier"] = nn.Linear(in_channels * height * width, num_classes)
        super().__init__(layers)


def scale_channels(channels: int, multiplier: float) -> int:
    """Multiply a number of channels, and round it to an integer of at least 1."""
    return max(1, round(channels * multiplier))
