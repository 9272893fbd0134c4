"""Precision of matrix products: float32, or operands rounded to bfloat16 where that is faster.

A product of two numbers in bfloat16 is exact in float32. With rounded operands and float32 sums, a
product is therefore the same on bfloat16 units, AMX and tensor cores (TF32), and can be tested on
any processor.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any, Literal

import torch

Precision = Literal["auto", "bfloat16", "float32"]

MIN_UNITS = 1000  # with fewer units rounding errors average out less, and little is saved
MIN_SPEEDUP = 1.2
NUM_TRIALS = 3
TRIAL_SHAPE = (256, 4096)  # of a product of some milliseconds
TENSOR_CORES = (8, 0)  # compute capability from which GPUs multiply in TF32
BACKENDS: tuple[Any, Any] = (
    torch.backends.cuda.matmul,
    torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
)
# Mean squared relative error of a number that is rounded to bfloat16, with 8 significant bits.
ROUNDING = 2**-18 / 3
FULL = ("ieee", "ieee")
ROUNDED = ("tf32", "bf16")  # precisions that leave operands unchanged which bfloat16 holds


@contextmanager
def in_float32(device: torch.device) -> Iterator[None]:
    """Compute in full float32 without gradients, whatever precision the caller has set."""
    with (
        _product_precision(FULL),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield


def at_bfloat16_speed() -> AbstractContextManager[None]:
    """Multiply with bfloat16 operands and float32 sums, exact for numbers that bfloat16 holds."""
    return _product_precision(ROUNDED)


def should_round(precision: Precision, units: int, device: torch.device) -> bool:
    """Return whether to round the operands of a layer's products to bfloat16.

    Args:
        precision: `auto` for where it is faster; `bfloat16` for any processor.
        units: Number of the layer's units.
        device: Device of the products.
    """
    if precision == "float32" or units < MIN_UNITS:
        return False
    return precision == "bfloat16" or _is_faster(device)


@cache
def _is_faster(device: torch.device) -> bool:
    """Return whether products of bfloat16 numbers are faster, tried once in a process."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= TENSOR_CORES
    if device.type != "cpu" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    operand = torch.ones(TRIAL_SHAPE)
    seconds: dict[tuple[str, str], list[float]] = {ROUNDED: [], FULL: []}
    for _ in range(NUM_TRIALS + 1):
        for precisions, times in seconds.items():
            with _product_precision(precisions):
                started = time.perf_counter()
                operand @ operand.T
                times.append(time.perf_counter() - started)
    rounded, full = (min(times[1:]) for times in seconds.values())  # the first ones warm up
    return MIN_SPEEDUP * rounded < full


@contextmanager
def _product_precision(precisions: tuple[str, str]) -> Iterator[None]:
    """Set the precision of float32 products in `BACKENDS`.

    torch's older functions, such as `torch.get_float32_matmul_precision`, raise where these options
    have values that the older ones cannot express; the options always work.
    """
    before = [_own_precision(backend) for backend in BACKENDS]
    try:
        for backend, precision in zip(BACKENDS, precisions, strict=True):
            backend.fp32_precision = precision
        yield
    finally:
        for backend, own in zip(BACKENDS, before, strict=True):
            backend.fp32_precision = own


def _own_precision(backend: Any) -> str:
    """Return a backend's own precision, "none" if it inherits that of `torch.backends`."""
    own: str = backend.fp32_precision
    backend.fp32_precision = "none"
    return "none" if backend.fp32_precision == own else own
