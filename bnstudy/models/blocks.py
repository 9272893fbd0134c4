"""What the networks are made of."""

from collections import OrderedDict
from collections.abc import Collection, Sequence

from torch import Tensor, nn

from bnstudy.models.normalization import Normalization


class ConvBlock(nn.Module):
    """A 3x3 convolution, normalization, ReLU; the modules are named so whatever the norm.

    The convolution keeps its bias with every norm, so that all variants have the same weights; a
    norm that subtracts a mean makes it without effect.
    """

    def __init__(
        self, in_channels: int, out_channels: int, norm: Normalization, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv = norm.convolution(in_channels, out_channels, 3, stride=stride, padding=1)
        self.norm = norm.layer(out_channels)
        self.act = nn.ReLU()
        self.position = norm.position

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """N x in_channels x H x W to N x out_channels x H/stride x W/stride, rounded up.

        Args:
            x: The input.
            shortcut: Added before the ReLU, in the shape of the output.
        """
        x = self.conv(x)
        if self.position == "pre":
            x = self.norm(x)
        x = self.act(x if shortcut is None else x + shortcut)
        if self.position == "post":
            x = self.norm(x)
        return x


class BlockStack(nn.Sequential):
    """Blocks one after the other, 2x2 max pooling after some, one linear layer at the end.

    Args:
        channels: Of each block.
        pool_after: Numbers of the blocks, from 1, that are pooled after.
        input_shape: Channels, height and width of an image.
        num_classes: Length of the output.
        norm: Makes the normalization layers.
        ceil_mode: Whether an odd last row or column is pooled as well, or dropped.
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


def scaled(channels: int, multiplier: float) -> int:
    """The channels of a network of other width: at least 1."""
    return max(1, round(channels * multiplier))
