"""Where in a network representations are read, and running the network with hooks there."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import takewhile
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import activation, batchnorm, conv, instancenorm, normalization
from torch.nn.utils.parametrize import ParametrizationList
from torchvision.ops import FrozenBatchNorm2d

from bnstudy.errors import UserError
from bnstudy.terms import layer_label


def _classes(*homes: ModuleType) -> tuple[type[nn.Module], ...]:
    """Module classes that some of torch's source files define."""
    return tuple(
        kind
        for home in homes
        for kind in vars(home).values()
        if isinstance(kind, type)
        and issubclass(kind, nn.Module)
        and kind.__module__ == home.__name__
    )


# Attention, and the functions that turn numbers into probabilities.
NO_ACTIVATIONS = (
    nn.MultiheadAttention,
    nn.Softmin,
    nn.Softmax,
    nn.Softmax2d,
    nn.LogSoftmax,
)
ACTIVATIONS = tuple(kind for kind in _classes(activation) if kind not in NO_ACTIVATIONS)
SITE_TYPES: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": _classes(conv),
    "norm": (*_classes(batchnorm, instancenorm, normalization), FrozenBatchNorm2d),
    "act": ACTIVATIONS,
}
# Names of activations whose output is a factor between 0 and 1, in squeeze-and-excitation blocks.
GATES = ("gate", "scale_activation")
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# What the last linear layer reads: where neural collapse is defined.
FEATURES = "features"
OUTPUT = "output"  # of a module that is at none of the sites, asked for by its name
ACTIVATION_ADVICE = (
    "Call modules such as nn.ReLU() in the place of functions such as F.relu, or give a class of "
    'activation functions the attribute site = "act"'
)


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
        return layer_label(self.layer, self.site)


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

    A module's site is its attribute `site`, or follows from its type: convolution, normalization,
    activation function. Softmax is no activation here, nor is the gate of a squeeze-and-excitation
    block: their outputs are weights of other activations. The site of a module of another type is
    the last part of its name where that is `conv`, `norm` or `act`; a module that contains others
    has a site by its name only where it is a wrapper of one activation or normalization, such as
    `x * sigmoid(x)`. The site `features` is the input of the last linear layer.

    Where a module's name ends with its site, as in `bnstudy.models.blocks.ConvBlock`, the layer is
    the block; any other module is a layer by itself.

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
        self.linear = [
            name for name, module in self.modules.items() if isinstance(module, nn.Linear)
        ]
        self.site_of = self._sites()
        if layers is None and sites is None:
            sites = ["act"]
        self.layers = layers
        self.sites = sites
        self.places = self._places(layers, sites)
        everywhere = self._places(layers, (*SITE_TYPES, FEATURES) if layers is None else None)
        names = [layer for layer, _ in (everywhere | self.places).values()]
        if layers is None or FEATURES in (sites or ()):
            names += self.linear  # any may be the last one that is called
        parents = [name.split(".")[:-1] for name in names]
        same = takewhile(lambda parts: len(set(parts)) == 1, zip(*parents, strict=False))
        self.shared = len(list(same))  # parts that the layers' names begin with

    def _sites(self) -> dict[str, str]:
        """By name of each module, its site; `OUTPUT` for a part of what is at that site itself."""
        sites: dict[str, str] = {}
        for name, module in self.modules.items():
            site = _site(name, module)
            parts = name.split(".")
            parents = [".".join(parts[:end]) for end in range(1, len(parts))]
            is_gate = parts[-1] in GATES and isinstance(module, nn.Sigmoid | nn.Hardsigmoid)
            is_part = any(
                sites[parent] == site or isinstance(self.modules[parent], ParametrizationList)
                for parent in parents
            )
            sites[name] = OUTPUT if is_part or is_gate else site
        return sites

    def _places(
        self, layers: Sequence[str] | None, sites: Sequence[str] | None
    ) -> dict[str, tuple[str, str]]:
        """By name of each module that is read, the layer's name and the site."""
        self.require(layers or (), "layers")
        places: dict[str, tuple[str, str]] = {}
        for name, module in self.modules.items():
            if layers is None or any(fnmatchcase(name, pattern) for pattern in layers):
                site = self.site_of[name]
                known = any(module is self.modules[other] for other in places)  # by another name
                if (sites is None or site in sites) and not known:
                    block, _, last = name.rpartition(".")
                    places[name] = (block if block and last == site else name, site)
        if sites is not None and FEATURES in sites and self.linear:
            places[self.linear[-1]] = (self.linear[-1], FEATURES)
        if not places:
            advice = f"\n{ACTIVATION_ADVICE}" if sites is not None and "act" in sites else ""
            raise NoSuchLayer(
                f"sites: no module of the network is at {', '.join(sites or ())}; choose other "
                f"sites, or in Python modules by their names with layers=[...]{advice}"
            )
        return places

    def require(self, patterns: Iterable[str], key: str) -> None:
        """Raise NoSuchLayer where a pattern, given as `key`, matches no module's name."""
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in self.modules):
                near = difflib.get_close_matches(pattern, self.modules) or list(self.modules)[:5]
                raise NoSuchLayer(f"{key}: no module matches {pattern}; near: {', '.join(near)}")

    def move_features(self, linear: str) -> None:
        """Read the site `features` at another linear layer: the last one that is called."""
        self.places = {name: at for name, at in self.places.items() if at[1] != FEATURES}
        self.places[linear] = (linear, FEATURES)

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
    def evaluating(self) -> Iterator[Callable[[Tensor], Any]]:
        """The network in eval mode; afterwards it is in the mode that it was in.

        Yields:
            Runs the network on inputs, on its device and in its floating type.
        """
        training = {module: module.training for module in self.model.modules()}
        parameter = next(self.model.parameters(), torch.empty(0))

        def run(inputs: Tensor) -> Any:
            dtype = parameter.dtype if inputs.is_floating_point() else inputs.dtype
            return self.model(inputs.to(parameter.device, dtype))

        with ExitStack() as stack:
            for module, mode in training.items():
                stack.callback(setattr, module, "training", mode)
            self.model.eval()
            if any(map(_is_compiled, training)):  # compiled code does not call new hooks
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield run

    @contextmanager
    def hooked(self, hook: Hook) -> Iterator[Callable[[Tensor], Any]]:
        """The network in eval mode, `hook` called with what is put out at each place.

        What the hook returns, unless it is None, takes the place of what was put out. Afterwards
        the network is as it was: its mode, its hooks, its gradients.

        Yields:
            Runs the network on inputs, on its device and in its floating type.
        """
        numbers: dict[str, int] = {}
        with ExitStack() as stack:
            run = stack.enter_context(self.evaluating())
            for name, (_, site) in self.places.items():
                at = _hook_of(name, site, numbers, hook)
                module = self.modules[name]
                if site == FEATURES:
                    handle = module.register_forward_pre_hook(at)
                else:
                    handle = module.register_forward_hook(at)
                stack.callback(handle.remove)

            def run_anew(inputs: Tensor) -> Any:
                numbers.clear()
                return run(inputs)

            yield run_anew


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


def _site(name: str, module: nn.Module) -> str:
    """The site of a module, by its attribute, its type or its name, in this order."""
    if (site := _known_site(module)) is not None:
        return site
    last = name.rpartition(".")[2]
    inside = {_known_site(part) for part in module.modules()} - {None}
    is_leaf = next(module.children(), None) is None
    is_wrapper = not isinstance(module, CONTAINERS) and inside <= {last} - {"conv"}
    return last if last in SITE_TYPES and (is_leaf or is_wrapper) else OUTPUT


def _known_site(module: nn.Module) -> str | None:
    """The site of a module, by its attribute or its type."""
    if (declared := getattr(module, "site", None)) in SITE_TYPES:
        return str(declared)
    return next((site for site, types in SITE_TYPES.items() if isinstance(module, types)), None)


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
