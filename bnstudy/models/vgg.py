"""VGG, in its form for 32x32 images."""

from itertools import accumulate

from bnstudy.errors import UserError
from bnstudy.models.blocks import BlockStack, scaled
from bnstudy.models.normalization import Normalization

CHANNELS = (64, 128, 256, 512, 512)  # of the stages
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
SMALLEST_IMAGE = 17  # the last stage's maps are then 2x2: some norms cannot normalize 1x1


class VGG(BlockStack):
    """The convolutions A, B, D and E of Simonyan and Zisserman 2015, arXiv 1409.1556, Table 1.

    Five stages, each ended by 2x2 max pooling (which takes in an odd last row, as of 28x28 images),
    and one linear layer instead of three: what is usual for 32x32 images. `depth` counts as the
    paper does, three linear layers included. Full width has the paper's 14.71 million parameters in
    the convolutions of VGG-16.

    Args:
        depth: 11, 13, 16 or 19.
        width: Multiplies the channels of all layers; 1 is the paper's.
        input_shape: Channels, height and width of an image.
        num_classes: Length of the output.
        norm: Makes the normalization layers.

    Raises:
        UserError: There is no such depth, or the images are too small.
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
            raise UserError(f"model.depth={depth} is not allowed; model=vgg takes {allowed}")
        _, height, width_of_image = input_shape
        if min(height, width_of_image) < SMALLEST_IMAGE:
            raise UserError(
                f"model=vgg halves images five times: {height}x{width_of_image} is too small, it "
                f"takes at least {SMALLEST_IMAGE}x{SMALLEST_IMAGE}"
            )
        stages = CONVOLUTIONS[depth]
        super().__init__(
            [
                scaled(channels, width)
                for channels, count in zip(CHANNELS, stages, strict=True)
                for _ in range(count)
            ],
            set(accumulate(stages)),
            input_shape=input_shape,
            num_classes=num_classes,
            norm=norm,
            ceil_mode=True,
        )
