"""A damaged checkpoint is refused, whatever the damage; it is never taken as good."""

import random
import shutil
from pathlib import Path

import pytest
import torch

from bnstudy.errors import UserError
from bnstudy.training.checkpoints import load_checkpoint
from tests.conftest import KEPT

FLIPS = 300


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of a run's last checkpoint."""
    (kept,) = KEPT.glob("batchnorm-depth2-width2-seed0-*/checkpoints/last.ckpt")
    return Path(shutil.copy(kept, tmp_path))


def test_a_flipped_bit_is_refused_or_changes_no_weight(checkpoint: Path) -> None:
    whole = checkpoint.read_bytes()
    weights = load_checkpoint(checkpoint)["state_dict"]
    chance = random.Random(0)
    refused = 0
    for place in [chance.randrange(8 * len(whole)) for _ in range(FLIPS)]:
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        checkpoint.write_bytes(flipped)
        try:
            loaded = load_checkpoint(checkpoint)["state_dict"]
        except UserError:
            refused += 1
        else:  # a bit that means nothing, such as one of the padding between tensors
            torch.testing.assert_close(loaded, weights, rtol=0, atol=0)
    assert refused > FLIPS / 4


@pytest.mark.parametrize("content", [b"", b"P", b"not an archive" * 100], ids=len)
def test_a_file_that_is_no_archive_is_refused(checkpoint: Path, content: bytes) -> None:
    checkpoint.write_bytes(content)
    with pytest.raises(UserError, match=r"last\.ckpt is damaged \(\w"):
        load_checkpoint(checkpoint)
