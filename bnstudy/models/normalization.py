"""The normalization layers, by name."""

from typing import Any

from torch import nn

from bnstudy.errors import UserError


def _group_norm(num_channels: int, num_groups: int, eps: float) -> nn.Module:
    if num_channels % num_groups:
        raise UserError(
            f"norm.num_groups={num_groups} does not divide the {num_channels} channels of a layer; "
            "set norm.num_groups or model.width so that it does"
        )
    return nn.GroupNorm(num_groups, num_channels, eps)


def normalization(num_channels: int, name: str, **options: Any) -> nn.Module:
    """The layer that normalizes N x `num_channels` x H x W activations, of the same shape.

    `none` is the identity: its module stays in place, so that names do not depend on the norm.

    Args:
        num_channels: C.
        name: One of the files in conf/norm.
        options: What else that file says.

    Raises:
        UserError: The options do not fit the number of channels.
    """
    match name:
        case "batchnorm":
            return nn.BatchNorm2d(num_channels, **options)
        case "none":
            return nn.Identity(**options)
        case "layernorm":  # over channels and positions: one group
            return _group_norm(num_channels, num_groups=1, **options)
        case "groupnorm":
            return _group_norm(num_channels, **options)
        case "instancenorm":
            return nn.InstanceNorm2d(num_channels, affine=True, **options)
        case _:
            raise UserError(f"norm.name={name} is not known; choose a norm with norm=...")
