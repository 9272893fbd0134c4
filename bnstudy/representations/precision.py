"""Matrix products with float32 sums, in the fastest operand precision that is accurate enough.

Processors multiply numbers in bfloat16 several times faster than numbers in float32. A number in
bfloat16 has only 8 significant bits, but the sum of two has 16: with x = high + low, the product
x y is high_x high_y + high_x low_y + low_x high_y to about 2^-17. Each of these products is exact
in float32, in which they are summed (Henry, Tang and Heinecke 2019, arXiv 1904.06376). These
operands are exact in TF32 as well, the precision of a GPU's tensor cores.

Operands that are merely rounded to bfloat16 are not accurate enough: k-means then finds other
clusters in a trained layer.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from bnstudy.errors import UserError

Precision = Literal["auto", "bfloat16x3", "float32"]

MIN_UNITS = 1000  # with fewer units there is little to save
CHUNK_UNITS = 2**11  # units that are split at once
MIN_TF32_CAPABILITY = (8, 0)  # compute capability from which GPUs multiply in TF32
# Trial of split operands:
MIN_SPEEDUP = 1.2
NUM_TRIALS = 4
TRIAL_ROWS = {"cpu": 512, "cuda": 4096}
TRIAL_UNITS = 4096

BACKENDS: tuple[Any, ...] = (
    torch.backends.cuda.matmul,
    torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
    torch.backends.cudnn.conv,  # type: ignore[attr-defined]
    torch.backends.mkldnn.conv,  # type: ignore[attr-defined]
)
# Precision of each of the backends.
FULL_PRECISION = ("ieee", "ieee", "ieee", "ieee")
LOWER_PRECISION = ("tf32", "bf16", "ieee", "ieee")


class Multiplication(NamedTuple):
    """Kind of matrix multiplication.

    Attributes:
        name: Name in the record.
        settings: Precision of each of the `BACKENDS`.
        splits: Whether operands are split into sums of two numbers in bfloat16.
        resolution: Largest error of an inner product, relative to the squared norm of a row.
    """

    name: str
    settings: tuple[str, ...]
    splits: bool
    resolution: float


FLOAT32 = Multiplication("float32", FULL_PRECISION, False, torch.finfo(torch.float32).eps)
SPLIT = Multiplication("bfloat16x3", LOWER_PRECISION, True, 2**-17)


@contextmanager
def in_float32(device: torch.device) -> Iterator[None]:
    """Compute in full float32 without gradients, whatever precision the caller has set."""
    with exact_operators(), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def exact_operators() -> Iterator[None]:
    """Multiply and convolve in full float32, also on GPUs, which convolve in TF32 by default."""
    with _set_precision(FULL_PRECISION):
        yield


def on_float64_device(tensor: Tensor) -> Tensor:
    """Copy a tensor to the CPU if its device has no float64 (Apple's MPS); else return it."""
    try:
        torch.zeros((), dtype=torch.float64, device=tensor.device)
    except (RuntimeError, TypeError):
        return tensor.cpu()
    return tensor


def check_precision(precision: str) -> None:
    """Raise UserError if a precision of products is unknown."""
    if precision not in (known := get_args(Precision)):
        raise UserError(f"precision={precision} is not allowed; expected {', '.join(known)}")


def choose_multiplication(precision: Precision, units: int, device: torch.device) -> Multiplication:
    """Choose the kind of multiplication for representations.

    Args:
        precision: `auto` for the fastest, or `bfloat16x3` or `float32`.
        units: Number of units; fewer than `MIN_UNITS` are always multiplied in float32.
        device: Device of the representations.

    Raises:
        UserError: The precision is unknown.
    """
    check_precision(precision)
    if precision == "float32" or units < MIN_UNITS:
        return FLOAT32
    return SPLIT if precision == "bfloat16x3" else _fastest(device)


def add_products(
    totals: Tensor,
    rows: Tensor,
    tiles: Sequence[tuple[slice, slice]],
    multiplication: Multiplication,
) -> None:
    """Add the inner products of rows to some tiles of a matrix.

    Args:
        totals: Matrix, N x N.
        rows: N x units, of the dtype of `totals`.
        tiles: Rows and columns of each tile.
        multiplication: Kind of multiplication.
    """
    with _set_precision(multiplication.settings):
        for left, right in _split(rows) if multiplication.splits else [(rows, rows)]:
            for row_slice, column_slice in tiles:
                totals[row_slice, column_slice].addmm_(left[row_slice], right[column_slice].T)


def _split(rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pairs of operands that bfloat16 represents exactly.

    The sum of their products is the product of the rows with themselves, to about 2^-17.
    """
    for part in rows.split(CHUNK_UNITS, dim=1):
        high = part.bfloat16().to(part.dtype)
        low = (part - high).bfloat16().to(part.dtype)
        yield high, high
        yield high, low
        yield low, high


@contextmanager
def _set_precision(settings: tuple[str, ...]) -> Iterator[None]:
    """Set the precision of float32 operators in `BACKENDS`.

    These options are used because torch's older functions, such as
    `torch.get_float32_matmul_precision`, raise an error if an option has a value that they cannot
    express.
    """
    before = [_reset_precision(backend) for backend in BACKENDS]
    try:
        for backend, setting in zip(BACKENDS, settings, strict=True):
            backend.fp32_precision = setting
        yield
    finally:
        for backend, setting in zip(BACKENDS, before, strict=True):
            backend.fp32_precision = setting


def _reset_precision(backend: Any) -> str:
    """Set a backend to "none", which inherits the setting of `torch.backends`.

    Returns:
        Former setting; "none" if it is equal to the inherited one.
    """
    setting: str = backend.fp32_precision
    backend.fp32_precision = "none"
    return "none" if backend.fp32_precision == setting else setting


@cache
def _fastest(device: torch.device) -> Multiplication:
    """Choose split operands where a trial shows that they are faster and accurate; else float32.

    They are tried only on devices with matrix units for their precision. There they are either
    several times as fast or no faster, so timing noise does not change the choice, and equal runs
    have equal results.
    """
    if not _has_matrix_units(device):
        return FLOAT32
    generator = torch.Generator().manual_seed(0)
    operand = torch.randn(TRIAL_ROWS[device.type], TRIAL_UNITS, generator=generator).to(device)
    exact = operand.double() @ operand.double().T
    error = (_multiply(operand, SPLIT) - exact).abs().max() / exact.diagonal().mean()
    if not error <= SPLIT.resolution:
        return FLOAT32
    seconds: dict[Multiplication, list[float]] = {FLOAT32: [], SPLIT: []}
    for _ in range(NUM_TRIALS):
        for multiplication, times in seconds.items():
            started = time.perf_counter()
            _multiply(operand, multiplication)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - started)
    return SPLIT if MIN_SPEEDUP * min(seconds[SPLIT]) < min(seconds[FLOAT32]) else FLOAT32


def _has_matrix_units(device: torch.device) -> bool:
    """Return whether a GPU multiplies in TF32, or a processor has AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= MIN_TF32_CAPABILITY
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


def _multiply(operand: Tensor, multiplication: Multiplication) -> Tensor:
    totals = operand.new_zeros(len(operand), len(operand))
    add_products(totals, operand, [(slice(None), slice(None))], multiplication)
    return totals
