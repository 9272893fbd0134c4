"""A trial run of a network: what its layers put out, where the channels are, what is left out."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from bnstudy.errors import UserError
from bnstudy.representations.channels import ChannelAxes, function_name
from bnstudy.representations.running_statistics import uncalibrated
from bnstudy.representations.taps import (
    ACTIVATION_ADVICE,
    ACTIVATIONS,
    FEATURES,
    OUTPUT,
    SITE_TYPES,
    Call,
    Taps,
)

SAMPLES = 2  # with a single one, an output that does not depend on the samples would look normal
MAX_LISTED = 5
WEIGHTED = (*SITE_TYPES["conv"], *SITE_TYPES["norm"], nn.Linear)
FUNCTIONS = {kind.__name__.lower() for kind in ACTIVATIONS}
CLASS_ENDINGS = (*FUNCTIONS, "swish", "activation")
_reported: WeakSet[nn.Module] = WeakSet()


@dataclass(frozen=True)
class Output:
    """What a call puts out.

    Attributes:
        channels: Number of channels.
        positions: Number of positions in a channel's map.
        dtype: Type of the activations.
        channel_axis: Axis of the channels, at least 1.
    """

    channels: int
    positions: int
    dtype: torch.dtype
    channel_axis: int


def try_out(
    taps: Taps, inputs: Tensor, channel_axis: Mapping[str, int]
) -> tuple[dict[Call, Output], list[int]]:
    """Run a network on one sample, and settle which modules are read and how.

    A module that was chosen by its site and cannot be read is left out. That is reported, once for
    each network, and so are activation functions that are not modules. A warning names the
    normalization layers whose running statistics are none yet.

    Args:
        taps: The modules that were chosen; those that cannot be read are removed from it, and the
            site `features` moves to the last linear layer that is called.
        inputs: N x ..., with at least one sample.
        channel_axis: By pattern of modules' names, the axis of the channels in what they put out;
            elsewhere it follows from the functions that the network calls.

    Returns:
        By call, what it puts out, in the order of computation; and the bytes a sample of every
        module's output.

    Raises:
        NoSuchLayer: A pattern matches no module's name.
        TypeError: A module that was chosen by its name puts out no tensor, or not one row for each
            sample.
        UserError: An output has no such axis.
        ValueError: The network calls none of the modules that were chosen.
    """
    taps.require(channel_axis, "channel_axis")
    trial = _Trial(taps, channel_axis)
    with ExitStack() as stack:
        run = stack.enter_context(taps.evaluating())
        for module in trial.names:
            for handle in (
                module.register_forward_pre_hook(trial.before),
                module.register_forward_hook(trial.after),
            ):
                stack.callback(handle.remove)
        with torch.no_grad(), trial:
            run(torch.cat([inputs[:1]] * SAMPLES))
    if names := [name for name, at in uncalibrated(taps.model).items() if at in trial.called]:
        warnings.warn(
            f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: the running mean and "
            "variance are still 0 and 1, so that nothing is normalized in eval mode\n"
            "Train the network first, or set them with bnstudy.recalibrate(network, batches)",
            stacklevel=3,
        )
    outputs = trial.settle()
    problems = "; ".join(trial.problems(outputs))
    if trial.reads_all_activations and (trial.functions or trial.lookalikes):
        problems += f"\n{ACTIVATION_ADVICE}"
    if not outputs:
        raise ValueError(f"there is no layer that can be read: {problems}")
    if problems and taps.sites is not None and taps.model not in _reported:
        _reported.add(taps.model)
        warnings.warn(f"{type(taps.model).__name__}: not measured: {problems}", stacklevel=3)
    return outputs, trial.sample_bytes


class _Trial(ChannelAxes):
    """Observes a forward pass of `SAMPLES` samples.

    Attributes:
        names: By module, the name by which it is read.
        called: Modules that the forward pass calls.
        sample_bytes: Size of every module's output, in bytes a sample.
        unreadable: By name of a module that is left out, why its output cannot be read.
        functions: By name, and class of the module that called it: how often an activation function
            was called where no module is at the site `act`.
        lookalikes: By name of a module at no site, its class, which is named like an activation
            function.
    """

    def __init__(self, taps: Taps, channel_axis: Mapping[str, int]) -> None:
        super().__init__()
        self.taps = taps
        self.sites = taps.sites or ()
        self.reads_all_activations = "act" in self.sites and taps.layers is None
        self.channel_axis = channel_axis
        names = {module: name for name, module in reversed(taps.modules.items())}
        self.names = names | {taps.modules[name]: name for name in taps.places}
        self.called: set[nn.Module] = set()
        self.sample_bytes = [1]
        self.unreadable: dict[str, str] = {}
        self.functions: Counter[tuple[str, str]] = Counter()
        self.lookalikes: dict[str, str] = {}
        self._outputs: dict[tuple[Call, str], Output] = {}  # by call and site
        self._reasons: dict[tuple[str, str], str] = {}  # by name and site, why it cannot be read
        self._last_linear: str | None = None
        self._running: list[nn.Module] = [taps.model]

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, and count activation functions that no module stands for."""
        result = super().__torch_function__(func, types, args, kwargs)
        name = function_name(func).strip("_")
        if name.replace("_", "") in FUNCTIONS and _unreadable(result) is None:
            innermost = self._running[-1]
            is_in_module = isinstance(innermost, ACTIVATIONS) or any(
                self.taps.site_of[self.names[module]] == "act" or self._is_lookalike(module)
                for module in self._running[1:]
            )
            if not is_in_module:
                self.functions[name, type(innermost).__name__] += 1
        return result

    def _is_lookalike(self, module: nn.Module) -> bool:
        return (
            type(module).__name__.lower().endswith(CLASS_ENDINGS)
            and self.taps.site_of[self.names[module]] == OUTPUT
            and not isinstance(module, ACTIVATIONS)  # a gate
            and not any(isinstance(part, WEIGHTED) for part in module.modules())
        )

    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Note what a linear layer reads: it may be the last one."""
        self._running.append(module)
        self.called.add(module)
        if self._is_lookalike(module):
            self.lookalikes[self.names[module]] = type(module).__name__
        if FEATURES in self.sites and isinstance(module, nn.Linear) and inputs:
            self._last_linear = self.names[module]
            self._note(self._last_linear, FEATURES, inputs[0])

    def after(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Note what a module puts out."""
        self._running.pop()
        if isinstance(output, Tensor):
            self.sample_bytes.append(output.numel() * output.element_size() // SAMPLES)
            self.inherit(output, inputs)
        name = self.names[module]
        if name in self.taps.places and (site := self.taps.places[name][1]) != FEATURES:
            self._note(name, site, output)

    def _note(self, name: str, site: str, value: Any) -> None:
        if (reason := _unreadable(value)) is not None:
            if self.taps.sites is None:
                raise TypeError(
                    f"{name} {reason}; leave it out with layers=[...], or choose a module inside it"
                )
            # One row whatever the samples, as of a table of positions, is no representation.
            is_constant = isinstance(value, Tensor) and value.shape[:1] == (1,)
            self._reasons[name, site] = "" if is_constant else reason
            return
        number = 1 + sum((call.module, at) == (name, site) for call, at in self._outputs)
        axis = self._axis_of(name, site, value)
        channels = value.shape[axis]
        positions = value[0].numel() // max(1, channels)
        self._outputs[Call(name, number), site] = Output(channels, positions, value.dtype, axis)

    def _axis_of(self, name: str, site: str, value: Tensor) -> int:
        for pattern, axis in self.channel_axis.items():
            if fnmatchcase(name, pattern):
                if axis == 0 or not -value.ndim < axis < value.ndim:
                    raise UserError(
                        f"channel_axis: {axis} for {pattern} is not an axis of the channels of "
                        f"{name}, which puts out {tuple(value.shape)} for {SAMPLES} samples; "
                        f"choose 1 to {value.ndim - 1}, or -1 for the last one"
                    )
                return axis % value.ndim
        return value.ndim - 1 if site == FEATURES else self.axis_of(value)

    def settle(self) -> dict[Call, Output]:
        """Let the taps keep what can be read; by call, what is read."""
        if self._last_linear is not None:
            self.taps.move_features(self._last_linear)
        for name, (_, site) in list(self.taps.places.items()):
            if (name, site) in self._reasons:
                if reason := self._reasons[name, site]:
                    self.unreadable[name] = reason
                del self.taps.places[name]
        sites = {name: site for name, (_, site) in self.taps.places.items()}
        return {
            call: output
            for (call, site), output in self._outputs.items()
            if sites.get(call.module) == site
        }

    def problems(self, outputs: Mapping[Call, Output]) -> list[str]:
        """What is not measured, and why."""
        problems = []
        if self.reads_all_activations and self.functions:
            counts = [
                f"{name} in {kind} ({count})" for (name, kind), count in self.functions.items()
            ]
            problems.append(f"calls of functions: {_listed(counts)}")
        if self.reads_all_activations and self.lookalikes:
            modules = [f"{name} ({kind})" for name, kind in self.lookalikes.items()]
            problems.append(f"modules of unknown classes: {_listed(modules)}")
        called = {call.module for call in outputs}
        if idle := [name for name in self.taps.places if name not in called]:
            problems.append(f"modules that are not called in eval mode: {_listed(idle)}")
        if self.unreadable:
            reasons = [f"{name} {reason}" for name, reason in self.unreadable.items()]
            problems.append(_listed(reasons))
        return problems


def _unreadable(value: Any) -> str | None:
    """Why an output cannot be read: None, if it is one row of channels for each sample."""
    if not isinstance(value, Tensor):
        return f"puts out a {type(value).__name__} and not a tensor"
    if value.ndim < 2 or len(value) != SAMPLES:
        return (
            f"puts out {tuple(value.shape)} for {SAMPLES} samples, not ({SAMPLES}, channels, ...)"
        )
    return None


def _listed(items: Sequence[str]) -> str:
    more = len(items) - MAX_LISTED
    return ", ".join(items[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
