"""Small tensors, for which one thread is faster than two."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread(_own_surroundings: None) -> None:
    torch.set_num_threads(1)
