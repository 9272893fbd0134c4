"""The convolutional network whose depth and width one sweeps."""

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

from bnstudy.errors import UserError

NormFactory = Callable[[int], nn.Module]

CONVOLUTIONS_PER_STAGE = 2


class ConvBlock(nn.Module):
    """Convolution, normalization, ReLU; the modules are named so whatever the norm.

    The convolution keeps its bias with every norm, so that all variants have the same weights; a
    norm that subtracts a mean makes it without effect.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: NormFactory) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm = norm(out_channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """N x in_channels x H x W to N x out_channels x H x W."""
        activations: Tensor = self.act(self.norm(self.conv(x)))
        return activations


class CNN(nn.Sequential):
    """`depth` blocks in stages of two, max pooling after each full stage, one linear layer.

    Args:
        depth: Convolutional layers.
        width: Channels of the first stage; they double from stage to stage.
        input_shape: Channels, height and width of an image.
        num_classes: Length of the output.
        norm: Makes the normalization layer for a number of channels.

    Raises:
        UserError: The images are too small for so many poolings.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        *,
        input_shape: tuple[int, int, int],
        num_classes: int,
        norm: NormFactory,
    ) -> None:
        channels, height, width_of_image = input_shape
        poolings = depth // CONVOLUTIONS_PER_STAGE
        stages = -(-depth // CONVOLUTIONS_PER_STAGE)
        possible = min(height, width_of_image).bit_length() - 1
        if stages > possible:  # none works on 1x1 maps, which some norms cannot normalize
            raise UserError(
                f"model.depth={depth} has {stages} stages, each of half the size, and "
                f"{height}x{width_of_image} images allow {possible}; "
                f"it takes 1 to {possible * CONVOLUTIONS_PER_STAGE}"
            )
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for index in range(depth):
            stage = index // CONVOLUTIONS_PER_STAGE
            out_channels = width * 2**stage
            number = f"{index + 1:02d}"
            layers[f"block{number}"] = ConvBlock(channels, out_channels, norm)
            channels = out_channels
            if (index + 1) % CONVOLUTIONS_PER_STAGE == 0:
                layers[f"pool{number}"] = nn.MaxPool2d(2)
        layers["flatten"] = nn.Flatten()
        features = channels * (height >> poolings) * (width_of_image >> poolings)
        layers["classifier"] = nn.Linear(features, num_classes)
        super().__init__(layers)
