"""Tests that the SHA-256 of a data set with unchanged files is found without reading it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate

from bnstudy.config.composition import resolve
from bnstudy.data import ImageFolder, MNIST5k, TorchvisionImages
from bnstudy.data.contents import find_sha256
from tests.conftest import Compose
from tests.data.test_torchvision_images import write_mnist

pytestmark = pytest.mark.usefixtures("small_sources")
READERS = (ImageFolder, MNIST5k, TorchvisionImages)


def options(composed: Compose, *overrides: str) -> dict[str, Any]:
    data: dict[str, Any] = resolve(composed(*overrides))["data"]
    return data


def read(data: dict[str, Any]) -> str:
    """Read the SHA-256 in the way a run does."""
    module = instantiate(data, seed=0, probe={"train": None, "test": None})
    module.setup()
    sha256: str = module.facts()["sha256"]
    return sha256


@pytest.fixture(params=["mnist5k", "mnist", "image_folder"])
def data(
    request: pytest.FixtureRequest,
    composed: Compose,
    tmp_path: Path,
    tree: Path,
) -> dict[str, Any]:
    write_mnist(tmp_path)
    root = tree if request.param == "image_folder" else tmp_path
    override = [f"data.cache={tmp_path}/cache"] * (request.param == "image_folder")
    return options(composed, f"data={request.param}", f"data.root={root}", *override)


@pytest.mark.slow
def test_what_a_run_has_read_is_known_without_reading(
    data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = read(data)
    with monkeypatch.context() as patch:
        for reader in READERS:
            patch.setattr(reader, "load", None)
        assert find_sha256(data | {"batch_size": 7}) == sha256
    for note in Path(data.get("cache", data["root"])).glob("*.sha256"):
        note.unlink()  # earlier versions wrote no note
    assert find_sha256(data) == sha256


def test_nothing_is_found_where_nothing_is(data: dict[str, Any]) -> None:
    assert find_sha256(data | {"root": data["root"] + "/elsewhere"}) is None
    assert not Path(data["root"], "elsewhere").exists()


def test_files_of_the_same_size_and_time_are_other_files(composed: Compose, tmp_path: Path) -> None:
    write_mnist(tmp_path)
    data = options(composed, "data=mnist", f"data.root={tmp_path}")
    sha256 = read(data)
    labels = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    times, content = labels.stat(), labels.read_bytes()
    labels.write_bytes(content[:-1] + b"\0")
    os.utime(labels, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert find_sha256(data) not in (None, sha256)
    labels.write_bytes(content)
    assert find_sha256(data) == sha256


def test_images_that_are_added_change_the_sha256_and_their_place_does_not(
    composed: Compose, tree: Path
) -> None:
    data = options(
        composed, "data=image_folder", f"data.root={tree}", f"data.cache={tree.parent / 'cache'}"
    )
    sha256 = read(data)
    moved = shutil.copytree(tree, tree.parent / "other" / tree.name)
    assert find_sha256(data | {"root": str(moved)}) == sha256
    shutil.copy(tree / "test" / "ant" / "00.png", tree / "test" / "ant" / "again.png")
    assert find_sha256(data) not in (None, sha256)
    assert find_sha256(data | {"image_size": 5}) not in (None, sha256, find_sha256(data))


@pytest.mark.slow
def test_a_module_of_ones_own_is_read(composed: Compose, tmp_path: Path) -> None:
    data = options(composed, f"data.root={tmp_path}")
    sha256 = read(data)
    own = data | {"_target_": "bnstudy.data.mnist5k.MNIST5k"}
    assert find_sha256(own) == sha256
    assert find_sha256(options(composed, "data=planted")) is None  # generated from its options


def test_torch_is_not_needed() -> None:
    program = "import bnstudy.data.contents, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
