"""VGG for 32x32 images."""

from itertools import accumulate

from bnstudy.errors import UserError
from bnstudy.models.blocks import BlockStack, scale_channels
from bnstudy.models.normalization import Normalization

CHANNELS = (64, 128, 256, 512, 512)  # of each stage
# Number of convolutions of each stage, by depth.
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
MIN_IMAGE_SIZE = 17  # the last stage then has 2x2 feature maps; some norms cannot normalize 1x1


class VGG(BlockStack):
    """Networks A, B, D and E of Simonyan and Zisserman 2015, arXiv 1409.1556, Table 1.

    The network has five stages of convolutions, each followed by 2x2 max pooling, and one linear
    layer instead of three, as is usual for 32x32 images. Poolings keep an odd last row or column,
    which occurs with 28x28 images. At width 1 the convolutions of VGG-16 have the paper's 14.71
    million parameters.

    Args:
        depth: 11, 13, 16 or 19; as in the paper, the number of convolutions plus three.
        width: Factor of the channels of all layers; 1 for the paper's.
        input_shape: Channels, height and width of an image.
        num_classes: Length of the output.
        norm: Factory of the normalization layers.

    Raises:
        UserError: The depth is none of these, or the images are too small.
    """

    def __init__(
        self,
        depth: int,
        width: float,
        *,
        input_shape: tuple[int, int, int],
        num_classes: int,
        norm: Normalization,
    ) -> None:
        if depth not in CONVOLUTIONS:
            allowed = ", ".join(map(str, CONVOLUTIONS))
            raise UserError(f"model.depth={depth} is not allowed; expected {allowed} for model=vgg")
        _, height, width_of_image = input_shape
        if min(height, width_of_image) < MIN_IMAGE_SIZE:
            raise UserError(
                f"{height}x{width_of_image} images are too small for model=vgg, which halves them "
                f"five times; expected at least {MIN_IMAGE_SIZE}x{MIN_IMAGE_SIZE}"
            )
        stages = CONVOLUTIONS[depth]
        super().__init__(
            [
                scale_channels(channels, width)
                for channels, count in zip(CHANNELS, stages, strict=True)
                for _ in range(count)
            ],
            set(accumulate(stages)),
            input_shape=input_shape,
            num_classes=num_classes,
            norm=norm,
            ceil_mode=True,
        )
