"""The convolutional network whose depth and width one sweeps."""

from bnstudy.errors import UserError
from bnstudy.models.blocks import BlockStack
from bnstudy.models.normalization import Normalization

CONVOLUTIONS_PER_STAGE = 2


class CNN(BlockStack):
    """`depth` blocks in stages of two, max pooling after each full stage, one linear layer.

    Args:
        depth: Convolutional layers.
        width: Channels of the first stage; they double from stage to stage.
        input_shape: Channels, height and width of an image.
        num_classes: Length of the output.
        norm: Makes the normalization layers.

    Raises:
        UserError: The images are too small for so many poolings, or the width is no integer.
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
            raise UserError(f"model.width={width}: with model=cnn it is the channels of a layer")
        _, height, width_of_image = input_shape
        stages = -(-depth // CONVOLUTIONS_PER_STAGE)
        possible = min(height, width_of_image).bit_length() - 1
        if stages > possible:  # none works on 1x1 maps, which some norms cannot normalize
            raise UserError(
                f"model.depth={depth} has {stages} stages, each of half the size, and "
                f"{height}x{width_of_image} images allow {possible}; "
                f"it takes 1 to {possible * CONVOLUTIONS_PER_STAGE}"
            )
        super().__init__(
            [int(width) * 2 ** (index // CONVOLUTIONS_PER_STAGE) for index in range(depth)],
            range(CONVOLUTIONS_PER_STAGE, depth + 1, CONVOLUTIONS_PER_STAGE),
            input_shape=input_shape,
            num_classes=num_classes,
            norm=norm,
        )
