"""Axis of the channels in each tensor of a forward pass."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

DEFAULT_AXIS = 1
FIRST = ("conv", "batch_norm", "instance_norm", "group_norm")  # beginnings of functions' names
LAST = {"linear", "bilinear", "embedding", "lstm", "gru", "rnn_tanh", "rnn_relu"}
NORMS = {"layer_norm", "rms_norm"}
MOVES = {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "T", "mT"}
RESHAPES = {"reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze"}


class ChannelAxes(TorchFunctionMode):
    """Follows the channels through every function of torch that is called in the body.

    Convolutions put out channels first (axis 1), linear layers last; permuting and reshaping move
    them, and what any other function puts out has them where its inputs have them. Layer
    normalization over one axis, of an input of which nothing is known, makes that axis the
    channels'.
    """

    def __init__(self) -> None:
        super().__init__()
        # None where the channels were lost on the way, as where they are divided among heads.
        self._axes = WeakTensorKeyDictionary()

    def axis_of(self, tensor: Tensor) -> int:
        """Axis of a tensor's channels: 1 where nothing else is known."""
        axis = self._axes.get(tensor)
        return DEFAULT_AXIS if axis is None else int(axis)

    def inherit(self, output: Tensor, inputs: Iterable[Any]) -> None:
        """Let an output of which nothing is known have its channels where its inputs have them."""
        if output not in self._axes and (axis := self._inherited(output, inputs)) is not None:
            self._axes[output] = axis

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, and note where its outputs' channels are."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = [*args, *kwargs.values()]
        for output in _tensors([result]):
            axis = self._axis(func, args, kwargs, output)
            if axis is not None or any(one in self._axes for one in _tensors(inputs)):
                self._axes[output] = axis
        return result

    def _axis(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> int | None:
        name = function_name(func)
        if name.startswith(FIRST):
            return DEFAULT_AXIS
        if name in LAST:
            return output.ndim - 1
        source = args[0] if args and isinstance(args[0], Tensor) else None
        if name in MOVES and source is not None:
            # Images that nothing has been done to have their channels first.
            is_image = source.ndim > 3 and not isinstance(source, nn.Parameter)
            before = self._axes.get(source, DEFAULT_AXIS if is_image else None)
            if before is None:
                return None
            # A tensor that is larger than 1 along this axis alone shows where it goes.
            sizes = [1] * source.ndim
            sizes[before] = 2
            moved = list(func(source.new_empty(sizes), *args[1:], **kwargs).shape).index(2)
            return moved or None  # at 0 are the samples
        if name in RESHAPES and source is not None:
            return self._reshaped(source, output)
        axis = self._inherited(output, [*args, *kwargs.values()])
        if axis is None and name in NORMS:
            sizes = args[1] if len(args) > 1 else kwargs.get("normalized_shape", ())
            return output.ndim - 1 if len(sizes) == 1 else None
        return axis

    def _inherited(self, output: Tensor, inputs: Iterable[Any]) -> int | None:
        axes = (self._axes.get(one) for one in _tensors(inputs) if one.ndim == output.ndim)
        return next((axis for axis in axes if axis is not None), None)

    def _reshaped(self, source: Tensor, output: Tensor) -> int | None:
        """The axis of the same size, behind as many positions as before."""
        before = self._axes.get(source)
        if before is None:
            return None
        sizes, channels = output.shape, source.shape[before]
        ahead = math.prod(source.shape[:before])
        found = (
            axis
            for axis in range(1, len(sizes))
            if sizes[axis] == channels and math.prod(sizes[:axis]) == ahead
        )
        return next(found, None)


def function_name(func: Any) -> str:
    """The name of a function or method of torch, or of the property that is read."""
    name = str(getattr(func, "__name__", ""))
    return str(getattr(func.__self__, "__name__", "")) if name == "__get__" else name


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
