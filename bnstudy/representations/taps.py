"""Where in a network representations are read, and running the network with hooks there."""

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from bnstudy.errors import UserError

SITE_TYPES: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "norm": (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm),
    "act": (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh),
}
# What the last linear layer reads: where neural collapse is defined.
FEATURES = "features"
OUTPUT = "output"  # of a module that is at none of the sites, asked for by its name


class NoSuchLayer(UserError, ValueError):
    """The network has nothing at the places that are asked for."""


@dataclass(frozen=True)
class Tap:
    """A place in a network where representations are read.

    Attributes:
        layer_index: From 0, in the order in which the layers are computed.
        layer: The layer's name, without the part that all layers' names begin with, those at other
            sites as well. The second call of one module in a forward pass has `#2` after it, and so
            on.
        site: Where in the layer: conv, norm, act, features, or output.
    """

    layer_index: int
    layer: str
    site: str

    @property
    def label(self) -> str:
        """The layer, with the site where that is another one than act."""
        return self.layer if self.site == "act" else f"{self.layer}.{self.site}"


@dataclass(frozen=True)
class Call:
    """One call of a module in a forward pass, the first one being number 1."""

    module: str
    number: int

    def within(self, layer: str) -> str:
        """The name of the layer that this call computes, in a layer that may have several."""
        return f"{layer}#{self.number}" if self.number > 1 else layer


Hook = Callable[[Call, Tensor], Tensor | None]


class Taps:
    """The modules of a network whose representations are read.

    A module's site is the last part of its name where that is `conv`, `norm` or `act`, as in
    `bnstudy.models.blocks.ConvBlock`, and the block is the layer. Any other module is a layer of
    its own, and its site is what its attribute `site` says or follows from its type (convolution,
    normalization, activation function). The site `features` is the input of the last linear layer.

    Args:
        model: The network; `torch.compile`d and data-parallel ones are run without their wrapping.
        layers: Patterns of modules' names such as `layer4.*`, as in a shell; None: all modules.
        sites: Any of conv, norm, act and features; None: `act`, or where `layers` are given, any
            module that matches.

    Raises:
        NoSuchLayer: A pattern matches no module's name, or no module is at one of the sites.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str] | None = None,
        sites: Sequence[str] | None = None,
    ) -> None:
        self.model = _unwrapped(model)
        self.modules = {
            _clean(name): module
            for name, module in self.model.named_modules(remove_duplicate=False)
            if name
        }
        self.places = self._places(layers, sites)
        everywhere = self._places(layers, (*SITE_TYPES, FEATURES) if layers is None else None)
        parents = [layer.split(".")[:-1] for layer, _ in (everywhere | self.places).values()]
        same = takewhile(lambda parts: len(set(parts)) == 1, zip(*parents, strict=False))
        self.shared = len(list(same))  # parts that the layers' names begin with

    def _places(
        self, layers: Sequence[str] | None, sites: Sequence[str] | None
    ) -> dict[str, tuple[str, str]]:
        """By name of each module that is read, the layer's name and the site."""
        for pattern in layers or ():
            if not any(fnmatchcase(name, pattern) for name in self.modules):
                near = difflib.get_close_matches(pattern, self.modules) or list(self.modules)[:5]
                raise NoSuchLayer(f"layers: no module matches {pattern}; near: {', '.join(near)}")
        if layers is None and sites is None:
            sites = ["act"]
        places: dict[str, tuple[str, str]] = {}
        linear = [name for name, module in self.modules.items() if isinstance(module, nn.Linear)]
        for name, module in self.modules.items():
            if layers is None or any(fnmatchcase(name, pattern) for pattern in layers):
                block, site = _place(name, module)
                known = any(module is self.modules[other] for other in places)  # by another name
                if (sites is None or site in sites) and not known:
                    places[name] = (block, site)
        if sites is not None and FEATURES in sites and linear:
            places[linear[-1]] = (linear[-1], FEATURES)
        if not places:
            raise NoSuchLayer(
                f"sites: no module of the network is at {', '.join(sites or ())}; choose other "
                "sites, or in Python modules by their names with layers=[...]"
            )
        return places

    def taps(self, calls: Sequence[Call]) -> dict[Call, Tap]:
        """The taps of the calls that a forward pass makes, given in their order."""
        names = self.layer_names()
        indices: dict[str, int] = {}
        taps = {}
        for call in calls:
            layer = call.within(names[call.module])
            site = self.places[call.module][1]
            taps[call] = Tap(indices.setdefault(layer, len(indices)), layer, site)
        return taps

    def layer_names(self) -> dict[str, str]:
        """By name of each module that is read, its layer's, without what all begin with."""
        return {
            module: ".".join(layer.split(".")[self.shared :])
            for module, (layer, _) in self.places.items()
        }

    @contextmanager
    def hooked(self, hook: Hook) -> Iterator[Callable[[Tensor], Any]]:
        """The network in eval mode, `hook` called with what is put out at each place.

        What the hook returns, unless it is None, takes the place of what was put out. Afterwards
        the network is as it was: its mode, its hooks, its gradients.

        Yields:
            Runs the network on inputs, on its device and in its floating type.
        """
        training = {module: module.training for module in self.model.modules()}
        parameter = next(self.model.parameters(), torch.empty(0))
        numbers: dict[str, int] = {}

        def run(inputs: Tensor) -> Any:
            numbers.clear()
            dtype = parameter.dtype if inputs.is_floating_point() else inputs.dtype
            return self.model(inputs.to(parameter.device, dtype))

        with ExitStack() as stack:
            for module, mode in training.items():
                stack.callback(setattr, module, "training", mode)
            self.model.eval()
            if any(map(_is_compiled, training)):  # compiled code does not call new hooks
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for name, (_, site) in self.places.items():
                at = _hook_of(name, site, numbers, hook)
                module = self.modules[name]
                if site == FEATURES:
                    handle = module.register_forward_pre_hook(at)
                else:
                    handle = module.register_forward_hook(at)
                stack.callback(handle.remove)
            yield run


def _hook_of(name: str, site: str, numbers: dict[str, int], hook: Hook) -> Callable[..., Any]:
    def at(module: nn.Module, inputs: tuple[Any, ...], output: Any = None) -> Any:
        value = inputs[0] if site == FEATURES else output
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} puts out a {type(value).__name__} and not a tensor; leave it out with "
                "layers=[...], or choose a module inside it"
            )
        numbers[name] = numbers.get(name, 0) + 1
        instead = hook(Call(name, numbers[name]), value)
        if instead is None:
            return None
        return (instead, *inputs[1:]) if site == FEATURES else instead

    return at


def _place(name: str, module: nn.Module) -> tuple[str, str]:
    """The layer that a module belongs to, and its site."""
    block, _, last = name.rpartition(".")
    if block and last in SITE_TYPES:
        return block, last
    if (declared := getattr(module, "site", None)) in SITE_TYPES:
        return name, declared
    for site, types in SITE_TYPES.items():
        if isinstance(module, types):
            return name, site
    return name, OUTPUT


def _unwrapped(model: nn.Module) -> nn.Module:
    """A network without what compiles it or runs it in parallel."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _clean(name: str) -> str:
    """A module's name without what `torch.compile` adds to it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
