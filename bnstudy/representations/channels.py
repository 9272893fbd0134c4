"""Tracker of the channel axis of each tensor in a forward pass."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

DEFAULT_AXIS = 1
CHANNELS_FIRST = ("conv", "batch_norm", "instance_norm", "group_norm")  # prefixes of function names
CHANNELS_LAST = {"linear", "bilinear", "embedding", "lstm", "gru", "rnn_tanh", "rnn_relu"}
NORMS = {"layer_norm", "rms_norm"}
MOVES = {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "T", "mT"}
RESHAPES = {"reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze"}


class ChannelAxes(TorchFunctionMode):
    """Context that follows the channels through every torch function called in it.

    The output of a convolution, BatchNorm, InstanceNorm or GroupNorm has its channels at axis 1,
    the output of a linear layer, an embedding or a recurrent layer at the last axis. Permuting and
    reshaping move the channel axis. Any other function keeps the channel axis of its inputs. If
    LayerNorm or RMSNorm normalizes over one axis, and the channel axis of its input is unknown, the
    normalized axis becomes the channel axis.
    """

    def __init__(self) -> None:
        super().__init__()
        # Channel axis of each tensor; None if the channels can no longer be followed, for example
        # after a split into heads.
        self._axes = WeakTensorKeyDictionary()

    def axis_of(self, tensor: Tensor) -> int:
        """Return a tensor's channel axis; 1 if it is unknown."""
        axis = self._axes.get(tensor)
        return DEFAULT_AXIS if axis is None else int(axis)

    def inherit(self, output: Tensor, inputs: Iterable[Any]) -> None:
        """Assign the channel axis of the inputs to an output that has no entry yet."""
        if output not in self._axes and (axis := self._inherit_axis(output, inputs)) is not None:
            self._axes[output] = axis

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a torch function and record the channel axis of its outputs."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = [*args, *kwargs.values()]
        for output in _tensors([result]):
            axis = self._find_axis(func, args, kwargs, output)
            if axis is not None or any(tensor in self._axes for tensor in _tensors(inputs)):
                self._axes[output] = axis
        return result

    def _find_axis(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> int | None:
        name = function_name(func)
        if name.startswith(CHANNELS_FIRST):
            return DEFAULT_AXIS
        if name in CHANNELS_LAST:
            return output.ndim - 1
        source = args[0] if args and isinstance(args[0], Tensor) else None
        if name in MOVES and source is not None:
            # Unprocessed images have their channels at axis 1.
            is_image = source.ndim > 3 and not isinstance(source, nn.Parameter)
            before = self._axes.get(source, DEFAULT_AXIS if is_image else None)
            if before is None:
                return None
            # Move a small tensor whose only axis larger than 1 is the channel axis.
            sizes = [1] * source.ndim
            sizes[before] = 2
            moved = list(func(source.new_empty(sizes), *args[1:], **kwargs).shape).index(2)
            return moved or None  # axis 0 is that of the samples
        if name in RESHAPES and source is not None:
            return self._follow_reshape(source, output)
        axis = self._inherit_axis(output, [*args, *kwargs.values()])
        if axis is None and name in NORMS:
            normalized = args[1] if len(args) > 1 else kwargs.get("normalized_shape", ())
            return output.ndim - 1 if len(normalized) == 1 else None
        return axis

    def _inherit_axis(self, output: Tensor, inputs: Iterable[Any]) -> int | None:
        axes = (self._axes.get(tensor) for tensor in _tensors(inputs) if tensor.ndim == output.ndim)
        return next((axis for axis in axes if axis is not None), None)

    def _follow_reshape(self, source: Tensor, output: Tensor) -> int | None:
        """Find the channel axis after reshaping.

        It is the first axis for which two numbers are as before: its size, and the product of the
        sizes ahead of it.
        """
        before = self._axes.get(source)
        if before is None:
            return None
        sizes, channels = output.shape, source.shape[before]
        ahead = math.prod(source.shape[:before])
        axes = (
            axis
            for axis in range(1, len(sizes))
            if sizes[axis] == channels and math.prod(sizes[:axis]) == ahead
        )
        return next(axes, None)


def function_name(func: Any) -> str:
    """Return the name of a torch function, method or property."""
    name = str(getattr(func, "__name__", ""))
    return str(getattr(func.__self__, "__name__", "")) if name == "__get__" else name


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
