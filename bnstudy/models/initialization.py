"""Initial weights that do not depend on the normalization."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import sqrt
from typing import Literal

import torch
from torch import nn

from bnstudy.models.resnet import ResNet
from bnstudy.randomness import generator_for

Draw = Callable[[nn.Conv2d | nn.Linear, torch.Generator], object]


def _torch(layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
    nn.init.kaiming_uniform_(layer.weight, a=sqrt(5), generator=generator)


def _he(layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
    nn.init.kaiming_normal_(layer.weight, nonlinearity=_next_activation(layer), generator=generator)


def _xavier(layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
    nn.init.xavier_uniform_(layer.weight, generator=generator)


def _orthogonal(layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
    gain = nn.init.calculate_gain(_next_activation(layer))
    nn.init.orthogonal_(layer.weight, gain, generator=generator)


def _next_activation(layer: nn.Conv2d | nn.Linear) -> Literal["relu", "linear"]:
    """Return the activation function that is assumed to follow a layer."""
    return "relu" if isinstance(layer, nn.Conv2d) else "linear"


# Functions that draw the weights of a layer, by scheme.
SCHEMES: dict[str, Draw] = {
    "torch": _torch,
    "he": _he,
    "xavier": _xavier,
    "orthogonal": _orthogonal,
}


@torch.no_grad()
def initialize(network: nn.Module, seed: int, scheme: str = "he") -> None:
    """Initialize every 2-D convolution and linear layer, from the seed and the layer's name alone.

    Networks whose layers have the same names and shapes get the same weights, bit for bit. All
    other parameters, such as those of normalization layers, keep their values. With every scheme,
    the layers of a `ResNet` are then scaled by its `initial_scales`.

    Args:
        network: Network, changed in place.
        seed: Seed of the run.
        scheme: One of

            - `torch`: PyTorch's default; weights and biases uniform within 1 / sqrt(fan-in).
            - `he`: He et al. 2015 (arXiv 1502.01852); normal with variance 2 / fan-in for a
              convolution, which a ReLU is assumed to follow, and 1 / fan-in for a linear layer;
              biases 0.
            - `xavier`: Glorot and Bengio 2010; uniform with variance 2 / (fan-in + fan-out); biases
              0.
            - `orthogonal`: Saxe, McClelland and Ganguli 2014 (arXiv 1312.6120); orthogonal, times
              sqrt(2) for a convolution; biases 0.
            - `own`: weights that the network's constructor drew are kept (see `seeded`).
    """
    scales = network.initial_scales() if isinstance(network, ResNet) else {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if scheme != "own":
                SCHEMES[scheme](module, generator_for(seed, "weights", name))
                if module.bias is not None:
                    bound = 1 / sqrt(module.weight[0].numel()) if scheme == "torch" else 0.0
                    generator = generator_for(seed, "biases", name)
                    nn.init.uniform_(module.bias, -bound, bound, generator)
            module.weight *= scales.get(name, 1.0)
            if module.bias is not None:
                module.bias *= scales.get(name, 1.0)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generators inside the context, and restore the CPU's state afterwards.

    A network that is constructed inside gets weights that depend on the seed alone. They do not
    depend on the norm, because normalization layers draw no random numbers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(seed, "network").initial_seed())
        yield
