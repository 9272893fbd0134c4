"""Curvature of the loss: largest eigenvalues and trace of its Hessian."""

from collections.abc import Sequence
from copy import deepcopy
from math import nan, sqrt
from typing import Literal

import lightning as L
import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from bnstudy.callbacks.first_process import others_wait
from bnstudy.callbacks.optimization import (
    OptimizationMetrics,
    calibrated_network,
    get_network,
    get_probe,
    make_rows,
)
from bnstudy.data.batches import choose_balanced
from bnstudy.randomness import generator_for
from bnstudy.representations import Tap
from bnstudy.representations.running_statistics import with_running_statistics

TOLERANCE = 1e-3  # relative error of an eigenvalue


class HessianOperator:
    """Hessian of a loss with respect to some parameters, known by its products with vectors.

    Args:
        gradient: Gradient of the loss, one tensor for each parameter, with its graph.
        parameters: Parameters.
    """

    def __init__(self, gradient: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
        self.gradient, self.parameters = gradient, parameters
        self.size = sum(parameter.numel() for parameter in parameters)

    def product(self, vector: Tensor) -> Tensor:
        """Multiply the Hessian with a vector of `size` numbers (Pearlmutter 1994)."""
        like = self.parameters[0]
        pieces = vector.to(like).split([parameter.numel() for parameter in self.parameters])
        # A constant slope, such as that of an unused parameter, has no graph.
        slopes, shaped = [], []
        for slope, piece, parameter in zip(self.gradient, pieces, self.parameters, strict=True):
            if slope.requires_grad:
                slopes.append(slope)
                shaped.append(piece.view_as(parameter))
        if not slopes:
            return torch.zeros_like(vector)
        products = torch.autograd.grad(
            slopes, self.parameters, shaped, retain_graph=True, materialize_grads=True
        )
        return torch.cat([product.flatten() for product in products])

    def largest_eigenvalues(self, count: int) -> list[float]:
        """Compute the (algebraically) largest eigenvalues by Lanczos' method, the largest first.

        They are all NaN if the method does not converge. It finds at most `size` - 1 eigenvalues;
        the others are NaN.
        """

        def multiply(vector: np.ndarray) -> np.ndarray:
            return self.product(torch.from_numpy(vector.ravel())).double().cpu().numpy()

        start = torch.randn(self.size, generator=generator_for("hessian", "start")).double().numpy()
        operator = LinearOperator((self.size, self.size), matvec=multiply, dtype=np.float64)
        possible = min(count, self.size - 1)
        try:
            converged = eigsh(
                operator, possible, which="LA", v0=start, tol=TOLERANCE, return_eigenvectors=False
            )
        except (ArpackError, ValueError):
            # Only a Hessian of 0 maps a random vector to 0; Lanczos' method cannot start there.
            is_zero = not multiply(start).any()
            converged = np.zeros(possible if is_zero else 0)
        known = sorted(converged.tolist(), reverse=True)
        return [*known, *[nan] * (count - len(known))]

    def trace(self, num_probes: int) -> tuple[float, float]:
        """Estimate the trace by Hutchinson's method (1989), with its standard error.

        Args:
            num_probes: Number of random vectors of +1 and -1, at least 2.
        """
        generator = generator_for("hessian", "probes")
        values = []
        for _ in range(num_probes):
            probe = torch.randint(2, (self.size,), generator=generator).float() * 2 - 1
            values.append(probe.double() @ self.product(probe).double().cpu())
        estimates = torch.stack(values)
        return estimates.mean().item(), estimates.std().item() / sqrt(num_probes)


class Hessian(OptimizationMetrics):
    """Curvature of the training loss (Yao et al. 2020, PyHessian, arXiv 1912.07145).

    It is measured for the whole model and, at the site `stage`, for the parameters of each of its
    parts. It is measured before training, every n-th epoch and at epoch `trainer.max_epochs`. The
    loss is the cross-entropy of class-balanced samples of the training split's probe set, without
    label smoothing or a regularizer's penalty, as a function of the parameters that are trained.
    Metrics:

    - `hessian_eigenvalue_1`, `_2`, ...: the largest eigenvalues.
    - `hessian_trace`, `hessian_trace_error`: estimated trace and its standard error.

    In a distributed run the first process measures while the others wait.

    Args:
        every_n_epochs: Interval n of the measured epochs.
        num_eigenvalues: Number of eigenvalues.
        num_probes: Number of random vectors for the trace, at least 2.
        num_samples: Maximum number of samples.
        batchnorm: Mode of normalization layers that keep running statistics: `eval` to use these,
            as constants; `train` to use the statistics of the samples, which depend on the
            parameters. All other layers, such as dropout, are in eval mode.
    """

    def __init__(
        self,
        every_n_epochs: int,
        num_eigenvalues: int,
        num_probes: int,
        num_samples: int,
        batchnorm: Literal["eval", "train"],
    ) -> None:
        super().__init__()
        self.every_n_epochs = every_n_epochs
        self.num_eigenvalues = num_eigenvalues
        self.num_probes = num_probes
        self.num_samples = num_samples
        self.batchnorm = batchnorm

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure before the first step, unless the run is resumed."""
        if trainer.global_step == 0:
            with calibrated_network(trainer, pl_module):
                self._measure(trainer, pl_module, epoch=0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the epoch if it is due."""
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs:
            self._measure(trainer, pl_module, epoch)

    def _measure(self, trainer: L.Trainer, module: L.LightningModule, epoch: int) -> None:
        with others_wait(trainer) as is_first, self.timed():
            if not is_first:
                return
            network = deepcopy(get_network(module)).eval()
            if self.batchnorm == "train":
                for layer in with_running_statistics(network).values():
                    desynchronize(layer)
                    layer.train()
            probe = zip(*get_probe(trainer, "train"), strict=True)
            inputs, labels = (torch.cat(tensors) for tensors in probe)
            chosen = choose_balanced(labels, min(self.num_samples, len(labels)))
            images = inputs[chosen].to(next(network.parameters()))
            labels = labels[chosen].to(images.device)
            loss = functional.cross_entropy(network(images), labels)
            trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
            slopes = torch.autograd.grad(loss, trained, create_graph=True, materialize_grads=True)
            gradients = dict(zip(map(id, trained), slopes, strict=True))
            rows = []
            parts: list[tuple[Tap | None, nn.Module]] = [(None, network)]
            parts += [
                (Tap(index, name, "stage"), part)
                for index, (name, part) in enumerate(find_stages(network).items())
            ]
            for tap, part in parts:
                values, reason = self._measure_part(part, gradients)
                rows += make_rows(values, tap, epoch, trainer.global_step, reason=reason)
        self.publish(trainer, epoch, rows)

    def _measure_part(
        self, part: nn.Module, gradients: dict[int, Tensor]
    ) -> tuple[dict[str, float], str]:
        """Compute the metrics of a part, and the reason if some are NaN.

        Args:
            part: Part of the network.
            gradients: Gradient of the loss by the `id` of each trained parameter.
        """
        parameters = [parameter for parameter in part.parameters() if id(parameter) in gradients]
        gradient = [gradients[id(parameter)] for parameter in parameters]
        names = [f"hessian_eigenvalue_{number + 1}" for number in range(self.num_eigenvalues)]
        names += ["hessian_trace", "hessian_trace_error"]
        if not all(slope.isfinite().all() for slope in gradient):
            return dict.fromkeys(names, nan), "a gradient is not finite"
        hessian = HessianOperator(gradient, parameters)
        eigenvalues = hessian.largest_eigenvalues(self.num_eigenvalues)
        values = dict(zip(names, [*eigenvalues, *hessian.trace(self.num_probes)], strict=True))
        reason = "Lanczos' method did not converge, there are too few parameters, "
        return values, reason + "or the Hessian is not finite"


class _LocalBatchNorm(_BatchNorm):
    """BatchNorm over the samples of this process, with any number of axes."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        pass


def desynchronize(layer: nn.Module) -> None:
    """Let a norm compute batch statistics in this process only, because the others wait."""
    if isinstance(layer, nn.SyncBatchNorm):
        layer.__class__ = _LocalBatchNorm  # type: ignore[assignment]
    elif hasattr(layer, "synchronized"):
        layer.synchronized = False  # type: ignore[assignment]


def find_stages(network: nn.Module) -> dict[str, nn.Module]:
    """Return the parts of a network that have trained parameters, such as its stages, by name.

    While there is only one such part, its parts are returned instead. A single layer has none.
    """
    parts = {
        name: part
        for name, part in network.named_children()
        if any(parameter.requires_grad for parameter in part.parameters())
    }
    return find_stages(next(iter(parts.values()))) if len(parts) == 1 else parts
