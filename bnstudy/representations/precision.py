"""Precision of matrix products: sums in float32, with the fastest operands that are exact enough.

Processors multiply numbers in bfloat16 several times faster than numbers in float32. A number in
bfloat16 has only 8 significant bits, but the sum of two has 16: with x = high + low, the product
x y is high_x high_y + high_x low_y + low_x high_y to about 2^-17. Each of these products is exact
in float32, in which they are summed (Henry, Tang and Heinecke 2019, arXiv 1904.06376). These
operands are exact in TF32 as well, the precision of a GPU's tensor cores.

With operands that are rounded to bfloat16 once, k-means of a trained layer finds other clusters.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Precision = Literal["auto", "bfloat16x3", "float32"]

MIN_UNITS = 1000  # with fewer units there is little to save
CHUNK = 2**11  # units that are split at once
TENSOR_CORES = (8, 0)  # compute capability from which GPUs multiply in TF32
# Trial of the multiplications:
MIN_SPEEDUP = 1.2
NUM_TRIALS = 3
TRIAL_SHAPE = (512, 4096)  # of the operand
MAX_ERROR = 4e-6  # of a product, relative to the squared norm

BACKENDS: tuple[Any, ...] = (
    torch.backends.cuda.matmul,
    torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
    torch.backends.cudnn.conv,  # type: ignore[attr-defined]
    torch.backends.mkldnn.conv,  # type: ignore[attr-defined]
)
FULL = ("ieee", "ieee", "ieee", "ieee")
LOWER = ("tf32", "bf16", "ieee", "ieee")


class Multiplication(NamedTuple):
    """Kind of matrix multiplication.

    Attributes:
        name: Name in the record.
        settings: Precision of each of the `BACKENDS`.
        splits: Whether operands are split into sums of two numbers in bfloat16.
        resolution: Largest relative error of a product.
    """

    name: str
    settings: tuple[str, ...]
    splits: bool
    resolution: float


FLOAT32 = Multiplication("float32", FULL, False, torch.finfo(torch.float32).eps)
# oneDNN may use bfloat16; where it does not, it can be faster than the default library.
ONEDNN = Multiplication(
    "float32 by oneDNN", ("ieee", "bf16", "ieee", "ieee"), False, FLOAT32.resolution
)
SPLIT = Multiplication("bfloat16x3", LOWER, True, 2**-17)


@contextmanager
def in_float32(device: torch.device) -> Iterator[None]:
    """Compute in full float32 without gradients, whatever precision the caller has set."""
    with exact_operators(), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def exact_operators() -> Iterator[None]:
    """Multiply and convolve float32 in full, also on GPUs, which convolve in TF32 by default."""
    with _set(FULL):
        yield


def on_float64_device(tensor: Tensor) -> Tensor:
    """Copy a tensor to the CPU if its device has no float64, as Apple's MPS; else return it."""
    try:
        torch.zeros((), dtype=torch.float64, device=tensor.device)
    except (RuntimeError, TypeError):
        return tensor.cpu()
    return tensor


def choose_multiplication(precision: Precision, units: int, device: torch.device) -> Multiplication:
    """Choose the kind of multiplication for representations.

    Args:
        precision: `auto` for the fastest; `bfloat16x3` also where it is slower.
        units: Number of units.
        device: Device of the representations.
    """
    if precision == "float32" or units < MIN_UNITS:
        return FLOAT32
    return SPLIT if precision == "bfloat16x3" else _fastest(device)


def add_products(
    totals: Tensor,
    rows: Tensor,
    tiles: Callable[[int], Iterator[tuple[slice, slice]]],
    multiplication: Multiplication,
) -> None:
    """Add the inner products of rows to some tiles of a matrix.

    Args:
        totals: Matrix, N x N.
        rows: N x units, of the same type.
        tiles: Function that yields the rows and columns of the tiles for N.
        multiplication: Kind of multiplication.
    """
    with _set(multiplication.settings):
        for left, right in _split(rows) if multiplication.splits else [(rows, rows)]:
            for across, down in tiles(len(rows)):
                totals[across, down].addmm_(left[across], right[down].T)


def _split(rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield operands that bfloat16 represents, whose products sum up to those of the rows."""
    for part in rows.split(CHUNK, dim=1):
        high = part.bfloat16().to(part.dtype)
        low = (part - high).bfloat16().to(part.dtype)
        yield high, high
        yield high, low
        yield low, high


@contextmanager
def _set(settings: tuple[str, ...]) -> Iterator[None]:
    """Set the precision of float32 operators in `BACKENDS`.

    torch's older functions, such as `torch.get_float32_matmul_precision`, raise where these options
    have values that the older ones cannot express; the options always work.
    """
    before = [_own_setting(backend) for backend in BACKENDS]
    try:
        for backend, setting in zip(BACKENDS, settings, strict=True):
            backend.fp32_precision = setting
        yield
    finally:
        for backend, own in zip(BACKENDS, before, strict=True):
            backend.fp32_precision = own


def _own_setting(backend: Any) -> str:
    """Return a backend's own setting, "none" if it inherits that of `torch.backends`."""
    own: str = backend.fp32_precision
    backend.fp32_precision = "none"
    return "none" if backend.fp32_precision == own else own


@cache
def _fastest(device: torch.device) -> Multiplication:
    """Time the candidates; the fastest replaces float32 if it is clearly faster."""
    if device.type == "cuda":
        candidates = [SPLIT] if torch.cuda.get_device_capability(device) >= TENSOR_CORES else []
    else:
        has_units = device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        candidates = [ONEDNN, SPLIT] if has_units else []
    if not candidates:
        return FLOAT32
    operand = torch.randn(TRIAL_SHAPE, generator=torch.Generator().manual_seed(0)).to(device)
    exact = operand.double() @ operand.double().T
    seconds: dict[Multiplication, list[float]] = {
        multiplication: [] for multiplication in (FLOAT32, *candidates)
    }
    for _ in range(NUM_TRIALS + 1):
        for multiplication, times in seconds.items():
            found = torch.zeros_like(exact, dtype=operand.dtype)
            _wait(device)
            started = time.perf_counter()
            add_products(found, operand, _whole, multiplication)
            _wait(device)
            times.append(time.perf_counter() - started)
            if (found - exact).abs().max() > MAX_ERROR * exact.diagonal().mean():
                times[:] = [torch.inf]
    least = {
        multiplication: min(times[1:], default=torch.inf)
        for multiplication, times in seconds.items()
    }  # warm
    best = min(candidates, key=least.__getitem__)
    return best if MIN_SPEEDUP * least[best] < least[FLOAT32] else FLOAT32


def _whole(size: int) -> Iterator[tuple[slice, slice]]:
    yield slice(size), slice(size)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
