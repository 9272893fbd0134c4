"""Norms of the weights, and the learning rate relative to them."""

from math import nan

import lightning as L
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from bnstudy.callbacks.optimization import (
    OptimizationMetrics,
    compute_norm,
    find_taps_at,
    find_weight_sites,
    get_network,
    make_rows,
)
from bnstudy.representations import Tap
from bnstudy.representations.taps import Taps


class WeightNorms(OptimizationMetrics):
    """L2 norms of each layer's parameters, before training and at the end of each epoch.

    Convolutions and linear layers, at the sites `conv` and `linear`, unless a parametrization such
    as weight_norm computes their weights:

    - `weight_norm`: norm of the weights w.
    - `effective_lr`: learning rate of the last step (before training, of the first step), divided
      by |w|^2 with SGD, or by |w| with Adam and AdamW, whose steps do not grow with the gradient.
      If a normalization layer follows, the scale of w has no effect, and the effective learning
      rate determines how fast the direction of w changes (van Laarhoven 2017, arXiv 1706.05350).
      Otherwise it has no such meaning.

    Normalization layers, at the site `norm`: `gamma_norm` of the scale and `beta_norm` of the
    shift, if they have them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.taps: dict[str, Tap] = {}
        self.lr = nan

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the layers, and measure before the first step unless the run is resumed."""
        network = get_network(pl_module)
        sites = find_weight_sites(network)
        sites |= {name: "norm" for name, site in Taps(network).site_of.items() if site == "norm"}
        self.taps = find_taps_at(trainer, network, sites)
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]
        if trainer.global_step == 0:
            self._measure(trainer, network, epoch=0)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Note the learning rate of the step."""
        self.lr = optimizer.param_groups[0]["lr"]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure at the end of the epoch."""
        self._measure(trainer, get_network(pl_module), trainer.current_epoch + 1)

    def _measure(self, trainer: L.Trainer, network: nn.Module, epoch: int) -> None:
        power = 2 if isinstance(trainer.optimizers[0], SGD) else 1
        rows = []
        with self.timed():
            for name, tap in self.taps.items():
                weight, bias = _parameters_of(network.get_submodule(name))
                values = {}
                if tap.site == "norm":
                    for metric, parameter in (("gamma_norm", weight), ("beta_norm", bias)):
                        if parameter is not None:
                            values[metric] = compute_norm(parameter.detach()).item()
                elif weight is not None:
                    norm = compute_norm(weight.detach()).item()
                    values["weight_norm"] = norm
                    values["effective_lr"] = self.lr / norm**power if norm else nan
                reason = "the weights are 0, or not finite"
                rows += make_rows(values, tap, epoch, trainer.global_step, reason=reason)
        self.publish(trainer, epoch, rows)


def _parameters_of(module: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """Return weight and bias of a module, or of the norm that it wraps."""
    for part in module.modules():
        if isinstance(weight := getattr(part, "weight", None), nn.Parameter):
            return weight, getattr(part, "bias", None)
    return None, None
