"""Choice of a device that computes in float64."""

import torch
from torch import Tensor


def where_float64(tensor: Tensor) -> Tensor:
    """Copy a tensor to the CPU if its device has no float64, as Apple's MPS; else return it."""
    try:
        torch.zeros((), dtype=torch.float64, device=tensor.device)
    except (RuntimeError, TypeError):
        return tensor.cpu()
    return tensor
