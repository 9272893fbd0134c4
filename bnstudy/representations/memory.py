"""Memory that the C library keeps after it was freed."""

import ctypes
import sys
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
RETAINED = 2**28  # bytes
MAX_MMAP_THRESHOLD = 2**25  # bytes; glibc before 2.35 accepts no more


def retain_memory() -> None:
    """Let the C library keep freed memory for the next training step.

    By default, glibc returns tensors of more than 32 MiB and the free end of the heap to the
    operating system, so that each step waits for new pages. Afterwards, it keeps tensors and an end
    of the heap of up to `RETAINED` bytes until `release_memory` is called. This lasts until the
    process ends, because the default cannot be restored.
    """
    set_option = _find_in_glibc("mallopt")
    if set_option is not None and any(
        set_option(M_MMAP_THRESHOLD, size) for size in (RETAINED, MAX_MMAP_THRESHOLD)
    ):
        set_option(M_TRIM_THRESHOLD, RETAINED)


def release_memory() -> None:
    """Return freed memory to the operating system if the C library retains it.

    glibc keeps the gaps between tensors of about a megabyte: after a few hundred small batches, the
    heap is many times larger than the memory in use.
    """
    trim = _find_in_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _find_in_glibc(name: str) -> Any:
    """Return a function of glibc; None where another C library is used."""
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        return None
    return getattr(ctypes.CDLL(None), name)
