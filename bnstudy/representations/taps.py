"""Places in a network where representations are read, and hooks that read them."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from torch.utils.hooks import RemovableHandle
from torchvision.ops import FrozenBatchNorm2d

from bnstudy.errors import UserError
from bnstudy.representations.precision import exact_operators
from bnstudy.terms import layer_label, suggest


def _find_types(*homes: ModuleType) -> tuple[type[nn.Module], ...]:
    """Return the module classes that the given torch modules define."""
    return tuple(
        kind
        for home in homes
        for kind in vars(home).values()
        if isinstance(kind, type)
        and issubclass(kind, nn.Module)
        and kind.__module__ == home.__name__
    )


# Modules of `torch.nn.modules.activation` that are no activation functions here: attention, and
# softmax and its variants.
NO_ACTIVATIONS = (nn.MultiheadAttention, nn.Softmin, nn.Softmax, nn.Softmax2d, nn.LogSoftmax)
ACTIVATIONS = tuple(kind for kind in _find_types(activation) if kind not in NO_ACTIVATIONS)
SITE_TYPES: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": _find_types(conv),
    "norm": (*_find_types(batchnorm, instancenorm, normalization), FrozenBatchNorm2d),
    "act": ACTIVATIONS,
}
# Names of sigmoids in squeeze-and-excitation blocks, whose outputs scale other activations.
GATES = ("gate", "scale_activation")
MAX_LISTED_MODULES = 5  # in an error message
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# Input of the last linear layer, for which neural collapse is defined.
FEATURES = "features"
OUTPUT = "output"  # site of a module that is at none of the sites above and was selected by name
ACTIVATION_ADVICE = (
    "Use modules such as nn.ReLU() instead of functions such as F.relu, or set the attribute "
    'site = "act" in your activation class'
)
SCRIPT_ADVICE = "Scripted modules cannot be read; pass the network as it was before torch.jit"


class NoSuchLayer(UserError, ValueError):
    """Error for layers or sites that match no module of the network that can be read."""


@dataclass(frozen=True)
class Tap:
    """Place in a network where representations are read.

    Attributes:
        layer_index: Position of the layer in the order of computation, from 0.
        layer: Name of the layer, without the prefix that the names of all layers have in common,
            whichever sites are selected.
            The suffix `#2` marks the second call of the same module in a forward pass, and so on.
        site: Site in the layer: conv, norm, act, features, or output.
    """

    layer_index: int
    layer: str
    site: str

    @property
    def label(self) -> str:
        """Name of the layer, followed by the site unless that is act."""
        return layer_label(self.layer, self.site)


@dataclass(frozen=True)
class Call:
    """One call of a module in a forward pass; the first call has number 1."""

    module: str
    number: int

    def numbered(self, layer: str) -> str:
        """Return a layer's name with the number of this call, unless it is the first."""
        return f"{layer}#{self.number}" if self.number > 1 else layer


Hook = Callable[[Call, Tensor], Tensor | None]


class Taps:
    """Modules of a network whose representations are read.

    The site of a module is determined by the first of these rules that applies:

    1. Its attribute `site`.
    2. Its type: convolution, normalization or activation function. Softmax and the gates of
       squeeze-and-excitation blocks do not count as activation functions, because their outputs are
       weights of other activations.
    3. The last part of its name, if that is `conv`, `norm` or `act`. A module with submodules, for
       example one that computes `x * sigmoid(x)`, only counts if it is no container of torch, such
       as `nn.Sequential`, and contains no convolution and no module at another site.

    The site `features` is the input of the last linear layer. Scripted modules, those of
    `torch.jit.script`, are at no site, because they call no hooks.

    If a module's name ends with its site, as in `bnstudy.models.blocks.ConvBlock`, its layer is the
    enclosing block. Any other module is a layer of its own.

    Args:
        model: Network. Wrappers of `torch.compile` and of data parallelism are removed.
        layers: Shell-style patterns of module names, such as `layer4.*`; None for all modules.
        sites: Sites to read: any of conv, norm, act and features. None selects every module that
            matches `layers`, or the site `act` if `layers` is None too.

    Raises:
        NoSuchLayer: A pattern matches no module name, no matching module is at the sites, or a
            scripted module is selected by its name.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str] | None = None,
        sites: Sequence[str] | None = None,
    ) -> None:
        self.model = _unwrap(model)
        self.modules = {
            _clean_name(name): module
            for name, module in self.model.named_modules(remove_duplicate=False)
            if name
        }
        self.linear = [
            name for name, module in self.modules.items() if isinstance(module, nn.Linear)
        ]
        self.site_of = self._find_sites()
        if layers is None and sites is None:
            sites = ["act"]
        self.layers = layers
        self.sites = sites
        self.places = self._find_places(layers, sites)
        if scripted := [name for name in self.places if is_scripted(self.modules[name])]:
            raise NoSuchLayer(
                f"layers: scripted modules match: {', '.join(scripted[:MAX_LISTED_MODULES])}\n"
                f"{SCRIPT_ADVICE}, or choose other layers=[...]"
            )
        # The prefix that the names of all layers have in common, whichever sites are selected, is
        # left out, so that a name does not depend on the selected sites.
        everywhere = self._find_places(layers, (*SITE_TYPES, FEATURES) if layers is None else None)
        names = [layer for layer, _ in (everywhere | self.places).values()]
        if layers is None or FEATURES in (sites or ()):
            names += self.linear  # any of them may be called last
        parents = [name.split(".")[:-1] for name in names]
        prefix = takewhile(lambda parts: len(set(parts)) == 1, zip(*parents, strict=False))
        self.num_prefix_parts = len(list(prefix))

    def _find_sites(self) -> dict[str, str]:
        """Return each module's site by name.

        The site is `OUTPUT` if no rule applies. It is also `OUTPUT` for gates, parametrizations,
        scripted modules and submodules of a module at the same site.
        """
        sites: dict[str, str] = {}
        for name, module in self.modules.items():
            site = _find_site(name, module)
            parts = name.split(".")
            parents = [".".join(parts[:end]) for end in range(1, len(parts))]
            is_gate = parts[-1] in GATES and isinstance(module, nn.Sigmoid | nn.Hardsigmoid)
            is_part = any(
                sites[parent] == site or isinstance(self.modules[parent], ParametrizationList)
                for parent in parents
            )
            sites[name] = OUTPUT if is_part or is_gate or is_scripted(module) else site
        return sites

    def _find_places(
        self, layers: Sequence[str] | None, sites: Sequence[str] | None
    ) -> dict[str, tuple[str, str]]:
        """Return the layer name and the site of each module that is read, by module name."""
        if layers is not None and not layers:
            raise NoSuchLayer(
                "layers=[] selects no module; give patterns of module names, or None for all"
            )
        self.require_matches(layers or (), "layers")
        places: dict[str, tuple[str, str]] = {}
        for name, module in self.modules.items():
            if layers is None or any(fnmatchcase(name, pattern) for pattern in layers):
                site = self.site_of[name]
                # A module may have several names.
                is_known = any(module is self.modules[other] for other in places)
                if (sites is None or site in sites) and not is_known:
                    block, _, last = name.rpartition(".")
                    places[name] = (block if block and last == site else name, site)
        if sites is not None and FEATURES in sites and self.linear:
            places[self.linear[-1]] = (self.linear[-1], FEATURES)
        if not places:
            advice = f"\n{ACTIVATION_ADVICE}" if sites is not None and "act" in sites else ""
            if any(isinstance(module, torch.jit.ScriptModule) for module in self.modules.values()):
                advice = f"\n{SCRIPT_ADVICE}"
            searched = f"that matches {', '.join(layers)}" if layers else "of the network"
            raise NoSuchLayer(
                f"sites: no module {searched} is at {', '.join(sites or ())}; choose other sites, "
                f"or in Python select modules by name with layers=[...]{advice}"
            )
        return places

    def require_matches(self, patterns: Iterable[str], key: str) -> None:
        """Raise NoSuchLayer if a pattern, given by the user as `key`, matches no module name."""
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in self.modules):
                listed = list(self.modules)[:MAX_LISTED_MODULES]
                more = ", ..." if len(listed) < len(self.modules) else ""
                advice = suggest(pattern, self.modules)
                advice = advice or f"the network has {', '.join(listed)}{more}"
                raise NoSuchLayer(f"{key}: no module matches {pattern}; {advice}")

    def move_features(self, linear: str) -> None:
        """Read the site `features` at another linear layer, the last one that is called."""
        self.places = {
            name: (layer, site) for name, (layer, site) in self.places.items() if site != FEATURES
        }
        self.places[linear] = (linear, FEATURES)

    def make_taps(self, calls: Sequence[Call]) -> dict[Call, Tap]:
        """Create the taps of the calls of a forward pass, given in order of computation."""
        names = self.layer_names()
        indices: dict[str, int] = {}
        taps = {}
        for call in calls:
            layer = call.numbered(names[call.module])
            site = self.places[call.module][1]
            taps[call] = Tap(indices.setdefault(layer, len(indices)), layer, site)
        return taps

    def layer_names(self) -> dict[str, str]:
        """Return the layer name of each module that is read, without the common prefix."""
        return {
            module: ".".join(layer.split(".")[self.num_prefix_parts :])
            for module, (layer, _) in self.places.items()
        }

    @contextmanager
    def evaluating(self) -> Iterator[Callable[[Tensor], Any]]:
        """Set the network to eval mode and restore its mode afterwards.

        A network in float32 computes in full float32, so that representations hardly depend on the
        device.

        Yields:
            Function that runs the network on a copy of inputs; see `copy_inputs`.
        """
        # Modules of `torch.jit.freeze` have no mode.
        training = {
            module: module.training
            for module in self.model.modules()
            if hasattr(module, "training")
        }
        parameter = next(self.model.parameters(), torch.empty(0))

        def run(inputs: Tensor) -> Any:
            return self.model(copy_inputs(inputs, parameter))

        with ExitStack() as stack:
            stack.enter_context(exact_operators())
            for module, mode in training.items():
                stack.callback(setattr, module, "training", mode)
            self.model.eval()
            if any(map(_is_compiled, training)):  # compiled code does not call new hooks
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield run

    @contextmanager
    def hooked(self, hook: Hook) -> Iterator[Callable[[Tensor], Any]]:
        """Set the network to eval mode and call `hook` with each tapped module's output.

        At the site `features`, the hook gets the module's input instead. A tensor that the hook
        returns replaces the output or input. Afterwards the mode and the hooks of the network are
        restored.

        Yields:
            Function that runs the network on a copy of inputs; see `copy_inputs`.
        """
        numbers: Counter[str] = Counter()
        with ExitStack() as stack:
            run = stack.enter_context(self.evaluating())
            for name, (_, site) in self.places.items():
                stack.enter_context(_register(self.modules[name], name, site, numbers, hook))

            def run_and_count(inputs: Tensor) -> Any:
                numbers.clear()
                return run(inputs)

            yield run_and_count


def copy_inputs(inputs: Tensor, parameter: Tensor) -> Tensor:
    """Copy inputs to a parameter's device and, if they are floating-point, to its type.

    A network gets a copy, even where nothing is converted, because it may change its input in
    place.
    """
    dtype = parameter.dtype if inputs.is_floating_point() else inputs.dtype
    return inputs.to(parameter.device, dtype, copy=True)


def is_scripted(module: nn.Module) -> bool:
    """Return True for a module of `torch.jit.script`, which refuses hooks."""
    return isinstance(module, torch.jit.RecursiveScriptModule)  # type: ignore[attr-defined]


def first_input(inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """Return the first input of a module's call, by position or by name; None without inputs."""
    return next(iter((*inputs, *named.values())), None)


def _register(
    module: nn.Module, name: str, site: str, numbers: Counter[str], hook: Hook
) -> RemovableHandle:
    """Let each call of a module call `hook`, and count the calls in `numbers`."""

    def call_hook(value: Any) -> Tensor | None:
        if not isinstance(value, Tensor):
            verb = "takes" if site == FEATURES else "returns"
            raise TypeError(
                f"{name} {verb} a {type(value).__name__}, expected a tensor; exclude it with "
                "layers=[...], or select a module inside it"
            )
        numbers[name] += 1
        return hook(Call(name, numbers[name]), value)

    def on_input(
        module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        replacement = call_hook(first_input(inputs, named))
        if replacement is None:
            return None
        if inputs:
            return (replacement, *inputs[1:]), named
        return (), named | {next(iter(named)): replacement}

    def on_output(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor | None:
        return call_hook(output)

    if site == FEATURES:
        return module.register_forward_pre_hook(on_input, with_kwargs=True)
    return module.register_forward_hook(on_output)


def _find_site(name: str, module: nn.Module) -> str:
    """Return a module's site by its attribute, its type or its name, in this order."""
    if (site := _find_declared_site(module)) is not None:
        return site
    last = name.rpartition(".")[2]
    inside = {_find_declared_site(part) for part in module.modules()} - {None}
    is_leaf = next(module.children(), None) is None
    is_wrapper = not isinstance(module, CONTAINERS) and inside <= {last} - {"conv"}
    return last if last in SITE_TYPES and (is_leaf or is_wrapper) else OUTPUT


def _find_declared_site(module: nn.Module) -> str | None:
    """Return a module's site by its attribute or its type; None if neither has one."""
    if (declared := getattr(module, "site", None)) in {*SITE_TYPES, OUTPUT}:
        return str(declared)
    return next((site for site, types in SITE_TYPES.items() if isinstance(module, types)), None)


def _unwrap(model: nn.Module) -> nn.Module:
    """Return a network without the wrappers that compile it or run it in parallel."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _clean_name(name: str) -> str:
    """Return a module's name without the parts that `torch.compile` adds."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
