"""Convolutional network with adjustable depth and width."""

from math import ceil

from bnstudy.errors import UserError
from bnstudy.models.blocks import BlockStack
from bnstudy.models.normalization import Normalization

CONVOLUTIONS_PER_STAGE = 2


class CNN(BlockStack):
    """Convolutional network: stages of two blocks and a max pooling, then one linear layer.

    If the depth is odd, the last stage has one block and no pooling.

    Args:
        depth: Number of convolutional layers.
        width: Number of channels of the first stage; it doubles from stage to stage.
        input_shape: Channels, height and width of an image.
        num_classes: Length of the output.
        norm: Factory of the normalization layers.

    Raises:
        UserError: The images are too small for the depth, or the width is not an integer.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        *,
        input_shape: tuple[int, int, int],
        num_classes: int,
        norm: Normalization,
    ) -> None:
        if width != int(width):
            raise UserError(
                f"model.width={width}: not an integer; for model=cnn it is a number of channels"
            )
        _, height, width_of_image = input_shape
        stages = ceil(depth / CONVOLUTIONS_PER_STAGE)
        max_stages = min(height, width_of_image).bit_length() - 1
        if not max_stages:
            raise UserError(
                f"{height}x{width_of_image} images are too small for model=cnn, which halves them "
                "after two layers; expected at least 2x2"
            )
        if stages > max_stages:  # some norms cannot normalize 1x1 feature maps
            raise UserError(
                f"model.depth={depth} has {stages} stages, but {height}x{width_of_image} images, "
                f"which are halved between stages, allow {max_stages}; "
                f"expected 1 to {max_stages * CONVOLUTIONS_PER_STAGE}"
            )
        super().__init__(
            [int(width) * 2 ** (index // CONVOLUTIONS_PER_STAGE) for index in range(depth)],
            range(CONVOLUTIONS_PER_STAGE, depth + 1, CONVOLUTIONS_PER_STAGE),
            input_shape=input_shape,
            num_classes=num_classes,
            norm=norm,
        )
