"""Two ways to write a network of which every normalization can be studied."""

from torch import Tensor, nn


class Net(nn.Module):
    """Convolutional network that makes its layers by the chosen norm.

    Args:
        input_shape: Channels, height and width of an image, from the data.
        num_classes: Length of the output, from the data.
        norm: Factory of the layers: `norm.layer(channels)`, and `norm.convolution(...)` with the
            arguments of `nn.Conv2d`.
        depth: Number of convolutions; a key of yours, `model.depth`.
        channels: Channels of each convolution; a key of yours, `model.channels`.
    """

    def __init__(self, input_shape, num_classes, norm, depth: int, channels: int) -> None:
        super().__init__()
        blocks, before = [], input_shape[0]
        for _ in range(depth):
            blocks += [
                norm.convolution(before, channels, 3, padding=1),
                norm.layer(channels),
                nn.ReLU(),  # a module, not F.relu: its output is measured
            ]
            before = channels
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images N x C x H x W to logits N x classes."""
        return self.classifier(self.blocks(images).mean((2, 3)))


class PlainNet(nn.Sequential):
    """Convolutional network that knows nothing of bnstudy: its BatchNorm is replaced."""

    def __init__(self, num_classes: int, channels: int = 8) -> None:
        super().__init__(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, num_classes),
        )
