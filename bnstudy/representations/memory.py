"""Release of freed memory to the operating system."""

import ctypes
import sys


def release_memory() -> None:
    """Return freed memory to the operating system if the C library retains it.

    glibc keeps the gaps between tensors of about a megabyte: after a few hundred small batches, the
    heap is many times larger than the memory in use.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl neither has nor needs it
        if trim is not None:
            trim(0)
