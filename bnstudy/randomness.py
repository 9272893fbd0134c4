"""Random numbers that depend on what they are for, and on nothing that came before."""

import hashlib

import torch


def generator_for(*purpose: str | int) -> torch.Generator:
    """A CPU generator whose seed is a function of `purpose` alone, such as (seed, "epoch", 3).

    Unlike torch's global stream it is not shifted by whatever else was drawn: runs that differ in
    their layers share weights and sample order, and a resumed run draws what it would have drawn.
    """
    digest = hashlib.sha256(repr(purpose).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
