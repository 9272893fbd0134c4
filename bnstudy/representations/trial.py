"""Trial run of a network: shapes and channel axes of outputs, modules that cannot be read."""

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

from bnstudy.errors import UserError, first_line
from bnstudy.representations.channels import ChannelAxes, function_name
from bnstudy.representations.running_statistics import uncalibrated
from bnstudy.representations.taps import (
    ACTIVATION_ADVICE,
    ACTIVATIONS,
    FEATURES,
    OUTPUT,
    SITE_TYPES,
    Call,
    NoSuchLayer,
    Taps,
    first_input,
    is_scripted,
)

NUM_SAMPLES = 2  # with 1 sample, an output with a constant batch size of 1 would look valid
MAX_LISTED = 5  # names in a warning
WEIGHTED_TYPES = (*SITE_TYPES["conv"], *SITE_TYPES["norm"], nn.Linear)
FUNCTION_NAMES = {kind.__name__.lower() for kind in ACTIVATIONS}  # without underscores
CLASS_ENDINGS = (*FUNCTION_NAMES, "swish", "activation")
UNREADABLE_ADVICE = (
    "Choose other sites, or in Python select modules with layers=[...] that are called in eval "
    "mode and return one tensor with a row for each sample of the batch"
)
_reported: WeakSet[nn.Module] = WeakSet()


@dataclass(frozen=True)
class Output:
    """Shape and type of a call's output.

    Attributes:
        channels: Number of channels.
        positions: Number of positions per channel.
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
    """Run a network on copies of one sample to determine which modules are read and how.

    A module that was selected by its site but cannot be read is left out. A warning, issued once
    per network, lists such modules and activation functions that are not modules. Another warning
    names normalization layers whose running statistics still have their initial values.

    Args:
        taps: Selected modules. Those that cannot be read are removed from it, and the site
            `features` moves to the last linear layer that is called.
        inputs: Network inputs: N x ..., with at least one sample.
        channel_axis: Channel axis of outputs by shell-style pattern of module names. By default,
            the axis follows from the functions that the network calls.

    Returns:
        Outputs by call, in the order of computation; and the sizes of the outputs of all modules,
        in bytes per sample.

    Raises:
        NoSuchLayer: A pattern matches no module name, or none of the selected modules is called and
            has an output that can be read.
        TypeError: The output of a module selected by its name is not a tensor with one row per
            sample.
        UserError: An output does not have the given channel axis, or the network fails on inputs
            that are not floating-point.
    """
    taps.require_matches(channel_axis, "channel_axis")
    trial = _Trial(taps, channel_axis)
    with ExitStack() as stack:
        run = stack.enter_context(taps.evaluating())
        for module in trial.names:
            if is_scripted(module):
                continue
            stack.enter_context(module.register_forward_pre_hook(trial.before, with_kwargs=True))
            stack.enter_context(module.register_forward_hook(trial.after))
        try:
            with torch.no_grad(), trial:
                run(torch.cat([inputs[:1]] * NUM_SAMPLES))
        except RuntimeError as error:
            if inputs.is_floating_point() or isinstance(error, torch.OutOfMemoryError):
                raise
            kind = str(inputs.dtype).removeprefix("torch.")
            raise UserError(
                f"batches: the network fails on inputs of type {kind}: {first_line(error)}\n"
                "If it expects floating-point inputs, convert them, for example by inputs.float()"
            ) from error
    if names := [name for name, layer in uncalibrated(taps.model).items() if layer in trial.called]:
        warnings.warn(
            f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: the running mean and "
            "variance are still 0 and 1, so the layer normalizes nothing in eval mode\n"
            "Train the network first, or set them with bnstudy.recalibrate(network, batches)",
            stacklevel=3,
        )
    outputs = trial.finish()
    problems = "; ".join(trial.list_problems(outputs))
    if trial.reads_all_activations and (trial.functions or trial.lookalikes):
        problems += f"\n{ACTIVATION_ADVICE}"
    if not outputs:
        advice = "" if "\n" in problems else f"\n{UNREADABLE_ADVICE}"
        raise NoSuchLayer(f"no layer can be read: {problems}{advice}")
    if problems and taps.sites is not None and taps.model not in _reported:
        _reported.add(taps.model)
        warnings.warn(f"{type(taps.model).__name__}: not measured: {problems}", stacklevel=3)
    return outputs, trial.sample_bytes


class _Trial(ChannelAxes):
    """Observer of a forward pass of `NUM_SAMPLES` samples.

    Attributes:
        names: Name under which each module is read, by module.
        called: Modules that the forward pass calls.
        sample_bytes: Sizes of the outputs of all modules, in bytes per sample, and a 1, so that
            their maximum is defined and not 0.
        unreadable: Reasons why outputs cannot be read, by name of the module that is left out.
        functions: Number of calls of activation functions, by name of the function and class of
            the calling module. Calls by torch's activation modules are left out, and so are those
            inside lookalikes and inside modules at the sites `act` and `norm`.
        lookalikes: Names of classes, by name of the module. These modules are at no site, but their
            classes are named like activation functions.
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
        self._reasons: dict[tuple[str, str], str] = {}  # why it cannot be read, by name and site
        self._constant: set[tuple[str, str]] = set()  # with one row for any batch
        self._last_linear: str | None = None
        self._running: list[nn.Module] = [taps.model]  # modules being called, the innermost last

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a torch function; count activation functions that no module stands for."""
        result = super().__torch_function__(func, types, args, kwargs)
        name = function_name(func).strip("_")
        if name.replace("_", "") in FUNCTION_NAMES and _explain_unreadable(result) is None:
            innermost = self._running[-1]
            is_in_module = isinstance(innermost, ACTIVATIONS) or any(
                self.taps.site_of[self.names[module]] in ("act", "norm")
                or self._is_lookalike(module)
                for module in self._running[1:]
            )
            if not is_in_module:
                self.functions[name, type(innermost).__name__] += 1
        return result

    def _is_lookalike(self, module: nn.Module) -> bool:
        return (
            type(module).__name__.lower().endswith(CLASS_ENDINGS)
            and self.taps.site_of[self.names[module]] == OUTPUT
            and not isinstance(module, ACTIVATIONS)  # such as a gate, whose site is OUTPUT
            and not any(isinstance(part, WEIGHTED_TYPES) for part in module.modules())
        )

    def before(self, module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Record the start of a module's call, and the input of a linear layer."""
        self._running.append(module)
        self.called.add(module)
        if self._is_lookalike(module):
            self.lookalikes[self.names[module]] = type(module).__name__
        if FEATURES in self.sites and isinstance(module, nn.Linear):
            self._last_linear = self.names[module]
            self._record_output(self._last_linear, FEATURES, first_input(inputs, named))

    def after(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Record the end of a module's call, and its output."""
        self._running.pop()
        if isinstance(output, Tensor):
            self.sample_bytes.append(output.numel() * output.element_size() // NUM_SAMPLES)
            self.inherit(output, inputs)
        name = self.names[module]
        if name in self.taps.places and (site := self.taps.places[name][1]) != FEATURES:
            self._record_output(name, site, output)

    def _record_output(self, name: str, site: str, value: Any) -> None:
        if (reason := _explain_unreadable(value)) is not None:
            if self.taps.sites is None:
                raise TypeError(
                    f"{name} {reason}; exclude it with layers=[...], or select a module inside it"
                )
            self._reasons[name, site] = reason
            if isinstance(value, Tensor) and value.shape[:1] == (1,):
                self._constant.add((name, site))
            return
        number = 1 + sum((call.module, other) == (name, site) for call, other in self._outputs)
        axis = self._choose_axis(name, site, value)
        channels = value.shape[axis]
        positions = value[0].numel() // max(1, channels)
        self._outputs[Call(name, number), site] = Output(channels, positions, value.dtype, axis)

    def _choose_axis(self, name: str, site: str, value: Tensor) -> int:
        for pattern, axis in self.channel_axis.items():
            if fnmatchcase(name, pattern):
                if axis == 0 or not -value.ndim < axis < value.ndim:
                    raise UserError(
                        f"channel_axis: {axis} for {pattern} is not a channel axis of {name}, "
                        f"which returns shape {tuple(value.shape)} for {NUM_SAMPLES} samples; "
                        f"choose 1 to {value.ndim - 1}, or -1 for the last axis"
                    )
                return axis % value.ndim
        return value.ndim - 1 if site == FEATURES else self.axis_of(value)

    def finish(self) -> dict[Call, Output]:
        """Remove what cannot be read from the taps; return the outputs to read, by call."""
        if self._last_linear is not None:
            self.taps.move_features(self._last_linear)
        sites_read = {site for _, site in self._outputs}
        for name, (_, site) in list(self.taps.places.items()):
            if (name, site) in self._reasons:
                # An output with one row for any batch, such as a position table, is no
                # representation. If all outputs have one row, the network runs sample by sample.
                if (name, site) not in self._constant or site not in sites_read:
                    self.unreadable[name] = self._reasons[name, site]
                del self.taps.places[name]
        sites = {name: site for name, (_, site) in self.taps.places.items()}
        return {
            call: output
            for (call, site), output in self._outputs.items()
            if sites.get(call.module) == site
        }

    def list_problems(self, outputs: Mapping[Call, Output]) -> list[str]:
        """List what is not measured, and why."""
        problems = []
        if self.reads_all_activations and self.functions:
            counts = [
                f"{name} in {kind} ({count})" for (name, kind), count in self.functions.items()
            ]
            problems.append(f"activation functions that are not modules: {_format_list(counts)}")
        if self.reads_all_activations and self.lookalikes:
            modules = [f"{name} ({kind})" for name, kind in self.lookalikes.items()]
            problems.append(f"modules of unknown classes: {_format_list(modules)}")
        scripted = [name for name, module in self.taps.modules.items() if is_scripted(module)]
        if scripted and self.taps.layers is None:
            outermost = [name for name in scripted if name.rpartition(".")[0] not in scripted]
            problems.append(f"scripted modules: {_format_list(outermost)}")
        called = {call.module for call in outputs}
        if uncalled := [name for name in self.taps.places if name not in called]:
            problems.append(f"modules that are not called in eval mode: {_format_list(uncalled)}")
        if self.unreadable:
            reasons = [f"{name} {reason}" for name, reason in self.unreadable.items()]
            problems.append(_format_list(reasons))
        return problems


def _explain_unreadable(value: Any) -> str | None:
    """Return the reason why an output cannot be read; None if it has one row per sample."""
    if not isinstance(value, Tensor):
        return f"returns a {type(value).__name__}, expected a tensor"
    if value.ndim < 2 or len(value) != NUM_SAMPLES:
        return (
            f"returns shape {tuple(value.shape)} for {NUM_SAMPLES} samples, "
            f"expected ({NUM_SAMPLES}, channels, ...)"
        )
    return None


def _format_list(items: Sequence[str]) -> str:
    more = len(items) - MAX_LISTED
    return ", ".join(items[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
