"""Residual networks for small images, and the same networks without shortcuts."""

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from bnstudy.errors import UserError
from bnstudy.models.blocks import ConvBlock, scale_channels
from bnstudy.models.normalization import Normalization
from bnstudy.models.normalizer_free import (
    BRANCH_SCALE,
    GainedReLU,
    NormalizerFreeBlock,
    ScaledStandardizedConv2d,
)

CHANNELS = (16, 32, 64)  # per stage
CONVOLUTIONS_PER_BLOCK = 2
MIN_IMAGE_SIZE = 5  # the last stage then has 2x2 feature maps; some norms cannot normalize 1x1
# The standardized weights of a 1x1 convolution with 1 input channel are 0; those with 2 are
# opposite numbers.
MIN_STANDARDIZED_CHANNELS = 3

ResidualInit = Literal["he", "zero", "fixup"]


class ResidualBlock(nn.Module):
    """Two convolutions, with or without a shortcut around them.

    The shortcut has no parameters: it takes every `stride`-th position and fills new channels with
    zeros (option A of He et al. 2016).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: Normalization,
        stride: int,
        has_shortcut: bool,
    ) -> None:
        super().__init__()
        self.first = ConvBlock(in_channels, out_channels, norm, stride)
        self.second = ConvBlock(out_channels, out_channels, norm)
        self.stride, self.new_channels = stride, out_channels - in_channels
        self.has_shortcut = has_shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map N x in_channels x H x W to N x out_channels x H/stride x W/stride, rounded up."""
        shortcut = self.shortcut(x) if self.has_shortcut else None
        activations: Tensor = self.second(self.first(x), shortcut)
        return activations

    def shortcut(self, x: Tensor) -> Tensor:
        """Bring the input into the shape of the output."""
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, 0, self.new_channels)) if self.new_channels else x


class ResNet(nn.Sequential):
    """The CIFAR networks of He, Zhang, Ren and Sun 2016, arXiv 1512.03385, section 4.2.

    The network consists of one convolution, three stages of n residual blocks with 16, 32 and 64
    channels, average pooling over all positions, and one linear layer. The second and the third
    stage halve the image. The published parameter counts (Table 6: 0.27 million at depth 20, 0.85
    at 56, 1.7 at 110) do not include biases of the convolutions. Here convolutions have biases (688
    parameters at depth 20), because some norms have no shift.

    Args:
        depth: Number of layers, 6n + 2: 20, 32, 44, 56, 110, ...
        width: Factor of the channels of all layers; 1 for the paper's.
        shortcuts: Whether blocks have shortcuts; without them the network is the paper's plain
            network, with the same initial weights as with shortcuts.
        residual_init: Initialization of the residual branches. `he`: as all other layers. `zero`:
            the last convolution of each branch is 0. `fixup`: in addition, the first convolution of
            each branch is divided by the square root of the number of branches, and the linear
            layer is 0 (rules 1 and 2 of Zhang, Dauphin and Ma 2019, arXiv 1901.09321; the
            convolutions' biases replace the scalar biases of rule 3, and its multipliers are
            omitted).
        normalizer_free: Whether the network is the normalizer-free one of Brock, De and Smith 2021
            (arXiv 2101.08692): activations before convolutions, standardized weights, scaled
            branches, and a 1x1 convolution in each shortcut that halves the image; see
            `NormalizerFreeBlock`. All other convolutions have the same names and initial weights
            (before standardization) as without this option, and there are as many activation
            functions.
        input_shape: Channels, height and width of an image.
        num_classes: Length of the output.
        norm: Factory of the normalization layers.

    Raises:
        UserError: The depth is not 6n + 2, the images or the width are too small, options cannot be
            combined, or the output would be the same for all images.
    """

    def __init__(
        self,
        depth: int,
        width: float,
        *,
        shortcuts: bool = True,
        residual_init: ResidualInit = "he",
        normalizer_free: bool = False,
        input_shape: tuple[int, int, int],
        num_classes: int,
        norm: Normalization,
    ) -> None:
        blocks, rest = divmod(depth - 2, len(CHANNELS) * CONVOLUTIONS_PER_BLOCK)
        if blocks < 1 or rest:
            nearest = max(blocks, 1) * 6 + 2
            raise UserError(
                f"model.depth={depth} is not allowed; expected 6n + 2, such as {nearest} or "
                f"{nearest + 6}"
            )
        if residual_init != "he" and not shortcuts:
            raise UserError(
                f"model.residual_init={residual_init} needs shortcuts: without them the output "
                "would not depend on the image; set model.residual_init=he"
            )
        if normalizer_free and (norm.name != "none" or residual_init != "he" or not shortcuts):
            raise UserError(
                "model.normalizer_free=true needs norm=none, model.residual_init=he and shortcuts; "
                f"given are norm={norm.name}, model.residual_init={residual_init} and "
                f"model.shortcuts={str(shortcuts).lower()}\n"
                "Give each norm its own value: 'model.normalizer_free={batchnorm:false,none:true}'"
            )
        image_channels, height, width_of_image = input_shape
        if min(height, width_of_image) < MIN_IMAGE_SIZE:
            raise UserError(
                f"{height}x{width_of_image} images are too small for this network; expected at "
                f"least {MIN_IMAGE_SIZE}x{MIN_IMAGE_SIZE}"
            )
        if (norm.name, norm.position) == ("instancenorm", "post"):
            raise UserError(
                "norm=instancenorm norm.position=post cannot learn with this network: the mean "
                "over positions, which the last layer reads, is the same for every image; set "
                "norm.position=pre"
            )
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        stem = scale_channels(CHANNELS[0], width)
        if normalizer_free and stem < MIN_STANDARDIZED_CHANNELS:
            raise UserError(
                f"model.width={width} is too small for model.normalizer_free=true: with fewer than "
                f"{MIN_STANDARDIZED_CHANNELS} channels in the first stage, standardized 1x1 "
                "convolutions are all 0 or all alike; set model.width to at least 0.2"
            )
        layers["stem"] = (
            nn.Sequential(OrderedDict(conv=ScaledStandardizedConv2d(image_channels, stem)))
            if normalizer_free
            else ConvBlock(image_channels, stem, norm)
        )
        channels, variance = stem, 1.0
        for stage, stage_channels in enumerate(CHANNELS, start=1):
            stage_blocks: OrderedDict[str, nn.Module] = OrderedDict()
            for number in range(1, blocks + 1):
                stride = 2 if stage > 1 and number == 1 else 1
                out_channels = scale_channels(stage_channels, width)
                stage_blocks[f"block{number:02d}"] = (
                    NormalizerFreeBlock(channels, out_channels, stride, variance)
                    if normalizer_free
                    else ResidualBlock(channels, out_channels, norm, stride, shortcuts)
                )
                variance = (1.0 if stride > 1 else variance) + BRANCH_SCALE**2
                channels = out_channels
            layers[f"stage{stage}"] = nn.Sequential(stage_blocks)
        if normalizer_free:
            layers["act"] = GainedReLU()
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["classifier"] = nn.Linear(channels, num_classes)
        super().__init__(layers)
        self.residual_init = residual_init

    def initial_scales(self) -> dict[str, float]:
        """Return the factor of each layer's initial weights, by its name; others have factor 1."""
        if self.residual_init == "he":
            return {}
        blocks = [name for name, part in self.named_modules() if isinstance(part, ResidualBlock)]
        scales = {f"{name}.second.conv": 0.0 for name in blocks}
        if self.residual_init == "fixup":
            # L^(-1/(2m - 2)) for L branches of m = 2 convolutions
            first = len(blocks) ** (-1 / (2 * CONVOLUTIONS_PER_BLOCK - 2))
            scales |= {f"{name}.first.conv": first for name in blocks} | {"classifier": 0.0}
        return scales
