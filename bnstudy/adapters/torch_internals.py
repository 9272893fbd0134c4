"""Private parts of torch. Checked with torch 2.15."""

from torch import distributed
from torch.distributed.distributed_c10d import _get_default_store


def shared_store() -> distributed.Store | None:
    """Return the key-value store that the processes of a run share; None if it has one process."""
    return _get_default_store() if distributed.is_initialized() else None
