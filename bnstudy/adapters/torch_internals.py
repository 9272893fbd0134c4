"""Private parts of torch. Checked with torch 2.11 and 2.15."""

from typing import TYPE_CHECKING

from torch import distributed, nn

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

# Attributes of a module that hold its forward and backward hooks.
HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
)


def shared_store() -> "Store | None":
    """Return the key-value store that the processes of a run share; None if it has one process."""
    if not distributed.is_available() or not distributed.is_initialized():
        return None
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def share_hooks(module: nn.Module, other: nn.Module) -> None:
    """Let another module call the forward and backward hooks of a module.

    The dictionaries of hooks are shared, so that the handles of the hooks remove them from both.
    """
    vars(other).update({name: vars(module)[name] for name in HOOKS})
