"""Factory of normalization layers, configured by the files in conf/norm."""

from typing import Any, Literal

from torch import nn
from torchvision.models.convnext import LayerNorm2d

from bnstudy.errors import UserError
from bnstudy.models.batchnorm_parts import (
    BatchRenorm,
    CenteringBatchNorm,
    EvoNormB0,
    FrozenBatchNorm,
    GhostBatchNorm,
    ScalingBatchNorm,
)
from bnstudy.models.norm_layers import (
    ChannelAffine,
    DynamicErf,
    DynamicTanh,
    EvoNormS0,
    FilterResponseNorm,
    FusedActivation,
    NoNorm,
    RMSNorm,
    WeightStandardizedConv2d,
)
from bnstudy.terms import FUSED_NORMS

Position = Literal["pre", "post"]


class Normalization:
    """Factory of a network's normalization layers and convolutions.

    Args:
        name: Name of a file in conf/norm.
        position: Position of the layer in a block: before (`pre`) or after (`post`) the activation.
        synchronized: Whether norms with statistics of the whole batch compute them over all
            processes of a distributed run. This concerns only the norms that bnstudy implements:
            Lightning synchronizes torch's BatchNorm.
        options: Other keys of that file.
    """

    def __init__(
        self,
        name: str,
        *,
        position: Position = "pre",
        synchronized: bool = False,
        **options: Any,
    ) -> None:
        self.name = name
        self.position = position
        self.synchronized = synchronized
        self.options = options

    @property
    def has_activation(self) -> bool:
        """Whether the layers contain an activation function, which replaces the ReLU after them."""
        return self.name in FUSED_NORMS

    def activation(self) -> nn.Module:
        """Create the activation function after a layer; an identity if the layer contains it."""
        return FusedActivation() if self.has_activation else nn.ReLU()

    def layer(self, num_channels: int) -> nn.Module:
        """Create a layer that normalizes activations N x `num_channels` x H x W.

        For `none` the layer is an identity module, so that module names are the same for all norms.

        Raises:
            UserError: The name is unknown, or the options do not fit the number of channels.
        """
        options = self.options
        match self.name:
            case "none":
                return NoNorm()
            case "batchnorm":
                return nn.BatchNorm2d(num_channels, **options)
            case "batchnorm_noaffine":
                return nn.BatchNorm2d(num_channels, affine=False, **options)
            case "batchnorm_centering":
                return CenteringBatchNorm(num_channels, self.synchronized, **options)
            case "batchnorm_scaling":
                return ScalingBatchNorm(num_channels, self.synchronized, **options)
            case "batch_renorm":
                return BatchRenorm(num_channels, self.synchronized, **options)
            case "evonorm_b0":
                return EvoNormB0(num_channels, self.synchronized, **options)
            case "evonorm_s0":
                _require_groups(num_channels, options["num_groups"])
                return EvoNormS0(num_channels, **options)
            case "batchnorm_frozen":
                return FrozenBatchNorm(num_channels, **options)
            case "ghostbatchnorm":
                return GhostBatchNorm(num_channels, **options)
            case "affine":
                return ChannelAffine(num_channels)
            case "layernorm":  # over channels and positions: one group
                return _group_norm(num_channels, num_groups=1, **options)
            case "groupnorm" | "weightstandardization":
                return _group_norm(num_channels, **options)
            case "instancenorm":
                return nn.InstanceNorm2d(num_channels, affine=True, **options)
            case "layernorm_channels":
                channel_norm: nn.Module = LayerNorm2d(num_channels, **options)
                return channel_norm
            case "rmsnorm":
                return RMSNorm(num_channels, **options)
            case "dyt":
                return DynamicTanh(num_channels, **options)
            case "derf":
                return DynamicErf(num_channels, **options)
            case "filterresponse":
                return FilterResponseNorm(num_channels, **options)
            case _:
                raise UserError(f"norm.name={self.name} is unknown; choose a norm with norm=...")

    @property
    def convolution_class(self) -> type[nn.Conv2d]:
        """Class of convolutions; those of `weightstandardization` standardize their weights."""
        is_standardizing = self.name == "weightstandardization"
        return WeightStandardizedConv2d if is_standardizing else nn.Conv2d

    def convolution(self, *args: Any, **kwargs: Any) -> nn.Conv2d:
        """Create a convolution, with the arguments of `torch.nn.Conv2d`.

        With `weightstandardization`, the convolution standardizes its weights.
        """
        return self.convolution_class(*args, **kwargs)


def _group_norm(num_channels: int, num_groups: int, eps: float) -> nn.Module:
    _require_groups(num_channels, num_groups)
    return nn.GroupNorm(num_groups, num_channels, eps)


def _require_groups(num_channels: int, num_groups: int) -> None:
    if num_channels % num_groups:
        raise UserError(
            f"norm.num_groups={num_groups} does not divide the {num_channels} channels of a layer; "
            "set norm.num_groups or model.width so that it does"
        )
