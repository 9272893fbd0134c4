"""Keeping the process as small as what it holds, without asking the system for the same anew."""

import ctypes
import sys
from functools import cache

# Of mallopt(3), and the most that the C library allows for the first.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_ON_HEAP = 2**25
MOST_UNUSED = 2**30


def give_back_memory() -> None:
    """Return freed memory to the system, where the C library keeps it for itself.

    glibc's heap grows with every batch of tensors of a megabyte, gaps between them and all: after a
    few hundred small batches it is many times as large as what is in use.
    """
    if library := _glibc():
        library.malloc_trim(0)


@cache
def reuse_memory() -> None:
    """Let the C library keep freed memory until `give_back_memory` is called.

    Otherwise it returns the large tensors of each batch and layer to the system at once, and gets
    as many pages again, each of them zeroed, for the next ones.
    """
    if library := _glibc():
        library.mallopt(M_MMAP_THRESHOLD, LARGEST_ON_HEAP)
        library.mallopt(M_TRIM_THRESHOLD, MOST_UNUSED)


def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is this one; musl and others need nothing of the kind."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "malloc_trim") else None
