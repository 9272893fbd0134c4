"""Regularizers that change representations directly, by a penalty added to the loss.

A correlation of sparsity or clustering with generalization does not show that one causes the other.
These regularizers intervene: they change sparsity or clustering, and the rest of the training
procedure stays the same.
"""

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from bnstudy.errors import UserError
from bnstudy.representations.taps import Call, Taps

# Width of the sigmoid that replaces the step function, relative to the inputs' root mean square.
SURROGATE_WIDTH = 0.2
MULTIPLIER_RATE = 0.01  # step size of the multipliers; at 1 the shares of zeros oscillate


class Activation(NamedTuple):
    """One call of an activation function.

    Attributes:
        layer: Name of the layer.
        name: Name of the layer in the record: `layer`, with `#2` at the module's second call.
        before: Input, N x C x H x W or N x D.
        after: Output, in the shape of the input.
    """

    layer: str
    name: str
    before: Tensor
    after: Tensor


class Regularizer(nn.Module, ABC):
    """Base of the regularizers: a penalty on the outputs of a network's activation functions.

    Args:
        network: Network whose activation functions are observed by forward hooks.
        strength: Factor of the penalty.
        layers: Shell-style patterns of layers' names.

    Attributes:
        layers: Names of the layers that match.

    Raises:
        UserError: A pattern matches no layer.
    """

    def __init__(self, network: nn.Module, strength: float, layers: Sequence[str]) -> None:
        super().__init__()
        self.strength = strength
        self._seen: list[Activation] | None = None
        taps = Taps(network, sites=["act"])
        names = taps.layer_names()
        for pattern in layers:
            if not fnmatch.filter(names.values(), pattern):
                raise UserError(
                    f"regularizer.layers: no layer matches {pattern}; there are "
                    f"{', '.join(names.values())}"
                )
        self.layers: list[str] = []
        for module, layer in names.items():
            if any(fnmatch.fnmatchcase(layer, pattern) for pattern in layers):
                self.layers.append(layer)
                taps.modules[module].register_forward_hook(self._hook(layer))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Observe the forward pass inside the context, in which `forward` must be called too."""
        self._seen = []
        try:
            yield
        finally:
            self._seen = None

    def forward(self, labels: Tensor) -> Tensor:
        """Return the scalar to add to the loss of the observed batch; labels are int64, N."""
        assert self._seen is not None
        return self.strength * self.penalty(self._seen, labels)

    @abstractmethod
    def penalty(self, activations: Sequence[Activation], labels: Tensor) -> Tensor:
        """Compute the penalty, a scalar, from the activations of a batch and its labels, N."""

    def _hook(self, layer: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if self._seen is not None:
                number = 1 + sum(seen.layer == layer for seen in self._seen)
                name = Call(layer, number).numbered(layer)
                self._seen.append(Activation(layer, name, inputs[0], output))

        return hook


class ActivationL1(Regularizer):
    """Mean absolute activation of each layer, averaged over layers."""

    def penalty(self, activations: Sequence[Activation], labels: Tensor) -> Tensor:
        """Compute the mean absolute activation, at least 0."""
        return torch.stack(
            [activation.after.float().abs().mean() for activation in activations]
        ).mean()


class Cluster(Regularizer):
    """Share of a batch's variance that lies within classes, averaged over layers.

    The share is tr(S_W) / tr(S_T). Unlike the center loss of Wen et al. 2016, it does not depend on
    the scale of the representations, so that shrinking them does not lower it.
    """

    def penalty(self, activations: Sequence[Activation], labels: Tensor) -> Tensor:
        """Compute the share, from 0 (each class collapsed to a point) to 1."""
        membership = functional.one_hot(labels).float()
        sizes = membership.sum(0).clamp_min(1)
        shares = []
        for activation in activations:
            samples = activation.after.float().flatten(1)
            means = membership.T @ samples / sizes[:, None]
            within = (samples - means[labels]).square().sum()
            total = (samples - samples.mean(0)).square().sum()
            shares.append(within / total.clamp_min(torch.finfo(total.dtype).tiny))
        return torch.stack(shares).mean()


class TargetSparsity(Regularizer):
    """Constraint that moves each layer's share of zeros to a target, by the method of multipliers.

    The gap g is a layer's share of zeros minus its target. The penalty is m g + g^2 / 2, summed
    over layers. After each batch the layer's multiplier m grows by a fraction of g, until the gap
    is 0 on average (Hestenes 1969, doi 10.1007/BF00927673, with one gradient step for each
    minimization).

    The share is exact in the forward pass. In the backward pass a sigmoid replaces the step
    function (a straight-through estimator: Bengio, Leonard and Courville 2013, arXiv 1308.3432).
    Inactive units therefore get a gradient and can become active again, unlike with an L1 penalty.

    Args:
        network: Network whose activation functions are observed by forward hooks.
        strength: Factor of the penalty.
        layers: Shell-style patterns of layers' names.
        target: Share of zeros from 0 to 1, one for all layers or one for each `Activation.name`.
    """

    multipliers: Tensor

    def __init__(
        self,
        network: nn.Module,
        strength: float,
        layers: Sequence[str],
        target: float | Mapping[str, float],
    ) -> None:
        super().__init__(network, strength, layers)
        self.target = target
        self.register_buffer("multipliers", torch.zeros(len(self.layers)))

    def penalty(self, activations: Sequence[Activation], labels: Tensor) -> Tensor:
        """Compute the penalty, which may be negative, and update the multipliers."""
        gaps: dict[str, list[Tensor]] = {layer: [] for layer in self.layers}
        for activation in activations:
            target = (
                self.target[activation.name] if isinstance(self.target, Mapping) else self.target
            )
            gaps[activation.layer].append(_share_of_zeros(activation) - target)
        gap = torch.stack([torch.stack(layer_gaps).mean() for layer_gaps in gaps.values()])
        # The value becomes that over all processes; the gradient stays that of this process,
        # because a distributed run averages gradients.
        gap = gap + (_mean_of_processes(gap.detach()) - gap.detach())
        penalty = self.multipliers.clone() @ gap + gap.square().sum() / 2
        self.multipliers += MULTIPLIER_RATE * gap.detach()
        return penalty


def _mean_of_processes(values: Tensor) -> Tensor:
    if not distributed.is_initialized():
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def _share_of_zeros(activation: Activation) -> Tensor:
    before = activation.before.float()
    scale = before.detach().square().mean().sqrt().clamp_min(torch.finfo(before.dtype).tiny)
    smooth = torch.sigmoid(-before / (SURROGATE_WIDTH * scale)).mean()
    exact = (activation.after == 0).float().mean()
    return smooth + (exact - smooth).detach()


REGULARIZERS: dict[str, type[Regularizer]] = {
    "activation_l1": ActivationL1,
    "cluster": Cluster,
    "target_sparsity": TargetSparsity,
}


def make_regularizer(network: nn.Module, name: str, **options: Any) -> Regularizer | None:
    """Create the regularizer of a network; None for the name `none`.

    Args:
        network: Network to regularize.
        name: Name of a file in conf/regularizer.
        options: Other keys of that file.

    Raises:
        UserError: The name is unknown, or a pattern of `layers` matches no layer.
    """
    if name == "none":
        return None
    if name not in REGULARIZERS:
        raise UserError(f"regularizer.name={name} is unknown; choose one with regularizer=...")
    return REGULARIZERS[name](network, **options)
