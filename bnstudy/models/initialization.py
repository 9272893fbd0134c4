"""Initial weights that are the same whatever the normalization."""

import torch
from torch import nn

from bnstudy.models.resnet import ResNet
from bnstudy.randomness import generator_for


@torch.no_grad()
def initialize(network: nn.Module, seed: int) -> None:
    """Draw every convolution's and linear layer's weights from a generator of (seed, its name).

    He initialization (He et al. 2015, arXiv 1502.01852): normal with variance 2 / fan-in before a
    ReLU, 1 / fan-in for a linear layer; biases are 0. Residual branches may start smaller (see
    `ResNet`). Normalization layers keep torch's scale 1 and shift 0. Networks whose layers have the
    same names and shapes get the same weights, bit for bit.
    """
    scales = network.initial_scales() if isinstance(network, ResNet) else {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(
                module.weight,
                nonlinearity="relu" if isinstance(module, nn.Conv2d) else "linear",
                generator=generator_for(seed, "weights", name),
            )
            module.weight *= scales.get(name, 1.0)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
