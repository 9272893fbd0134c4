"""Keeping the process as small as what it holds."""

import ctypes
import sys


def give_back_memory() -> None:
    """Return freed memory to the system, where the C library keeps it for itself.

    glibc's heap grows with every batch of tensors of a megabyte, gaps between them and all: after a
    few hundred small batches it is many times as large as what is in use.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none, and needs none
        if trim is not None:
            trim(0)
