"""A device without float64, as Apple's GPUs are, made of the CPU's memory.

Its tensors say that they are on the device `meta`, which every build of torch knows. Operations on
them run on the CPU. As on a real device, those that make float64 are refused, and those that mix
them with tensors of the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")


class _Held(Tensor):
    """Tensor on the device, with its values on the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor, requires_grad: bool = False) -> "_Held":
        made = Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
            requires_grad=requires_grad,
        )
        made.values = values
        return made

    def __repr__(self) -> str:
        return f"on the device: {self.values}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Mode in which tensors are made on the device, and copied to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Constructors(TorchFunctionMode):
    """Mode in which functions that read Python's numbers make tensors on the device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_constructor = func in (torch.tensor, torch.as_tensor)
        device = kwargs.get("device")
        if is_constructor and device is not None and torch.device(device) == DEVICE:
            return func(*args, **kwargs | {"device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given, _ = tree_flatten((args, kwargs))
    tensors = [one for one in given if isinstance(one, Tensor)]
    to = kwargs.get("device")
    to = None if to is None else torch.device(to)
    held = [one for one in tensors if isinstance(one, _Held)]
    is_copy = func in (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)
    on_device = to == DEVICE if to is not None else bool(held)
    if func is torch.ops.aten.copy_.default:
        on_device = isinstance(args[0], _Held)
    if held and not is_copy:
        for one in tensors:
            if not isinstance(one, _Held) and one.ndim > 0:
                raise RuntimeError(f"{func}: expected all tensors on the same device")
    plain_args, plain_kwargs = tree_map(
        lambda one: one.values if isinstance(one, _Held) else one, (args, kwargs)
    )
    if to == DEVICE:
        plain_kwargs["device"] = torch.device("cpu")
    result = func(*plain_args, **plain_kwargs)
    if not on_device:
        return result
    flat, _ = tree_flatten(result)
    if any(isinstance(one, Tensor) and one.dtype == torch.float64 for one in flat):
        raise TypeError(f"{func}: the device does not support float64")
    same = {id(one.values): one for one in held}  # of an operation in place

    def on_the_device(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return same[id(value)] if id(value) in same else _Held(value)

    return tree_map(on_the_device, result)


@contextmanager
def float32_device() -> Iterator[torch.device]:
    """Yield the device, which exists in the context only."""
    with _Mode(), _Constructors():
        yield DEVICE
