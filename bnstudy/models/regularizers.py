"""Interventions: what is added to the loss to change representations directly.

A correlation of sparsity, or of clustering, with generalization does not say that one causes the
other. These regularizers move the one and leave the rest of the training as it is.
"""

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from bnstudy.errors import UserError
from bnstudy.representations.taps import Call, Taps

SURROGATE_WIDTH = 0.2  # of the sigmoid that stands for the ReLU's step, in root mean squares
MULTIPLIER_RATE = 0.01  # a batch's part in a multiplier: at 1 the shares of zeros oscillate


class Activation(NamedTuple):
    """One call of an activation function.

    Attributes:
        layer: The layer's name.
        name: The same, as in the record: with `#2` where the module is called again.
        before: What it was given, N x C x H x W or N x D.
        after: What it put out, likewise.
    """

    layer: str
    name: str
    before: Tensor
    after: Tensor


class Regularizer(nn.Module, ABC):
    """Reads the activation functions of a network as it is trained, and adds to the loss.

    Args:
        network: Whose activations are read.
        strength: The weight of what is added.
        layers: Patterns of layers' names, as in a shell.

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
        """Read what the network computes in the body; `self(labels)` in it is to be added."""
        self._seen = []
        try:
            yield
        finally:
            self._seen = None

    def forward(self, labels: Tensor) -> Tensor:
        """What is added to the loss of a batch with these labels: a scalar."""
        assert self._seen is not None
        return self.strength * self.penalty(self._seen, labels)

    @abstractmethod
    def penalty(self, activations: Sequence[Activation], labels: Tensor) -> Tensor:
        """A scalar, of the activations of a batch with labels N."""

    def _hook(self, layer: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if self._seen is not None:
                number = 1 + sum(one.layer == layer for one in self._seen)
                name = Call(layer, number).within(layer)
                self._seen.append(Activation(layer, name, inputs[0], output))

        return hook


class ActivationL1(Regularizer):
    """The mean absolute activation of a layer, averaged over layers."""

    def penalty(self, activations: Sequence[Activation], labels: Tensor) -> Tensor:
        """At least 0."""
        return torch.stack([one.after.float().abs().mean() for one in activations]).mean()


class Cluster(Regularizer):
    """The share of a batch's variance that lies within classes, averaged over layers.

    tr(S_W) / tr(S_T): it does not depend on the scale of the representations, so that shrinking
    them is no way out, as it is for the center loss of Wen et al. 2016.
    """

    def penalty(self, activations: Sequence[Activation], labels: Tensor) -> Tensor:
        """From 0 (every class at a point) to 1."""
        membership = functional.one_hot(labels).float()
        sizes = membership.sum(0).clamp_min(1)
        shares = []
        for one in activations:
            samples = one.after.float().flatten(1)
            means = membership.T @ samples / sizes[:, None]
            within = (samples - means[labels]).square().sum()
            total = (samples - samples.mean(0)).square().sum()
            shares.append(within / total.clamp_min(torch.finfo(total.dtype).tiny))
        return torch.stack(shares).mean()


class TargetSparsity(Regularizer):
    """Steers each layer's share of zeros to a target: the method of multipliers.

    For the gap g between a layer's share and its target, m g + g^2 / 2 is added, and with each
    batch its multiplier m grows by a part of g: it settles where the gap is 0 on average. (Hestenes
    1969, doi 10.1007/BF00927673, with one gradient step instead of a minimization.) The share is
    counted exactly; its gradient is that of a sigmoid in the place of the step (a straight-through
    estimator: Bengio, Leonard and Courville 2013, arXiv 1308.3432), so that silent units can be
    brought back, which an L1 penalty cannot do.

    Args:
        network: Whose activations are read.
        strength: The weight of what is added.
        layers: Patterns of layers' names, as in a shell.
        target: For all layers, or for each by its name as in the record: 0 to 1.
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
        """Of either sign."""
        gaps: dict[str, list[Tensor]] = {layer: [] for layer in self.layers}
        for one in activations:
            target = self.target[one.name] if isinstance(self.target, Mapping) else self.target
            gaps[one.layer].append(_share_of_zeros(one) - target)
        gap = torch.stack([torch.stack(of_layer).mean() for of_layer in gaps.values()])
        penalty = self.multipliers.clone() @ gap + gap.square().sum() / 2
        self.multipliers += MULTIPLIER_RATE * gap.detach()
        return penalty


def _share_of_zeros(activation: Activation) -> Tensor:
    before = activation.before.float()
    size = before.detach().square().mean().sqrt().clamp_min(torch.finfo(before.dtype).tiny)
    smooth = torch.sigmoid(-before / (SURROGATE_WIDTH * size)).mean()
    exact = (activation.after == 0).float().mean()
    return smooth + (exact - smooth).detach()


REGULARIZERS: dict[str, type[Regularizer]] = {
    "activation_l1": ActivationL1,
    "cluster": Cluster,
    "target_sparsity": TargetSparsity,
}


def regularizer(network: nn.Module, name: str, **options: Any) -> Regularizer | None:
    """The regularizer of a network; None for `none`.

    Args:
        network: Whose activations are read.
        name: One of the files in conf/regularizer.
        options: What else that file says.

    Raises:
        UserError: There is none of that name, or no such layer.
    """
    if name == "none":
        return None
    if name not in REGULARIZERS:
        raise UserError(f"regularizer.name={name} is not known; choose one with regularizer=...")
    return REGULARIZERS[name](network, **options)
