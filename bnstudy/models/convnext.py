"""ConvNeXt for small images."""

from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from bnstudy.errors import UserError
from bnstudy.models.blocks import scale_channels
from bnstudy.models.normalization import Normalization
from bnstudy.models.torchvision_models import check_input_size, replace_norms

CHANNELS = (96, 192, 384, 768)  # of each stage of ConvNeXt-T
BLOCKS = (1, 1, 3, 1)  # relative number of blocks of each stage
PATCH_SIZE = 2


def convnext(
    depth: int,
    width: float,
    layer_scale: float = 1e-6,
    *,
    input_shape: tuple[int, int, int],
    num_classes: int,
    norm: Normalization,
) -> nn.Module:
    """Create torchvision's ConvNeXt (Liu et al. 2022, arXiv 2201.03545), with the chosen norm.

    The stem has patches of 2x2 pixels instead of 4x4, so that images of 28x28 and 32x32 pixels pass
    the four stages, and there is no stochastic depth. With norm=layernorm_channels, the norms are
    the paper's.

    Args:
        depth: Number of blocks, a multiple of 6; 18 for ConvNeXt-T's.
        width: Factor of the channels of all layers; 1 for ConvNeXt-T's 96, 192, 384 and 768.
        layer_scale: Initial factor of each channel of the branches; the paper's is 1e-6.
        input_shape: Channels, height and width of an image.
        num_classes: Length of the output.
        norm: Factory of the normalization layers.

    Raises:
        UserError: The depth is not a multiple of 6, the norm is not possible, or the images are too
            small.
    """
    blocks, rest = divmod(depth, sum(BLOCKS))
    if rest or not blocks:
        raise UserError(f"model.depth={depth} is not allowed; expected 6, 12, 18, ...")
    channels = [scale_channels(count, width) for count in CHANNELS]
    stage_blocks = [blocks * count for count in BLOCKS]
    stages = [
        CNBlockConfig(*stage)
        for stage in zip(channels, [*channels[1:], None], stage_blocks, strict=True)
    ]
    network = ConvNeXt(stages, 0.0, layer_scale, num_classes)
    stem = nn.Conv2d(input_shape[0], channels[0], PATCH_SIZE, PATCH_SIZE)
    nn.init.trunc_normal_(stem.weight, std=0.02)  # as torchvision initializes its convolutions
    assert stem.bias is not None
    nn.init.zeros_(stem.bias)
    network.features[0][0] = stem
    replace_norms(network, "convnext", norm)
    check_input_size(network, "convnext", input_shape, norm)
    made: nn.Module = network
    return made
