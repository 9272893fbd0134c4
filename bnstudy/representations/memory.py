"""Memory that the C library keeps after it was freed."""

import ctypes
import sys
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
RETAINED = 2**28  # bytes
MAX_MMAP_THRESHOLD = 2**25  # bytes; glibc before 2.35 accepts no more


def retain_memory() -> None:
    """Let the C library keep freed memory for the next training step.

    By default, glibc returns freed tensors of more than 32 MiB and the free end of the heap to the
    operating system, so that each step waits for new pages. After this call, glibc keeps freed
    tensors, and a free end of the heap, of up to `RETAINED` bytes each until `release_memory` is
    called. This lasts until the process ends, because the default cannot be restored.
    """
    set_option = _find_in_glibc("mallopt")
    # mallopt returns 0 for a value that it does not accept.
    if set_option is not None and any(
        set_option(M_MMAP_THRESHOLD, size) for size in (RETAINED, MAX_MMAP_THRESHOLD)
    ):
        set_option(M_TRIM_THRESHOLD, RETAINED)


def release_memory() -> None:
    """Return freed memory to the operating system if the C library retains it.

    glibc keeps the gaps that freed tensors of about a megabyte leave in the heap: after a few
    hundred small batches, the heap is many times larger than the memory in use.
    """
    trim = _find_in_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _find_in_glibc(name: str) -> Any:
    """Return a function of glibc; None where another C library is used."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return getattr(library, name) if hasattr(library, "gnu_get_libc_version") else None
