"""Private parts of torch. Checked with torch 2.15."""

from typing import TYPE_CHECKING

from torch import distributed

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store


def shared_store() -> "Store | None":
    """Return the key-value store that the processes of a run share; None if it has one process."""
    if not distributed.is_available() or not distributed.is_initialized():
        return None
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()
