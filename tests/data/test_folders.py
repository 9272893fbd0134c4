"""Tests of data in folders that are read-only, another user's, or not where they were."""

import gzip
import shutil
from pathlib import Path
from typing import Any

import pytest

from bnstudy.data import ImageFolder, MNIST5k, TorchvisionImages
from bnstudy.data import torchvision_images as module
from bnstudy.data.contents import locate
from bnstudy.data.module import ImageDataModule
from bnstudy.errors import UserError
from tests.conftest import flip_bit
from tests.data.conftest import OPTIONS, ReadOnly
from tests.data.test_torchvision_images import write_cifar, write_mnist


def sha256(data: ImageDataModule) -> str:
    data.setup()
    found: str = data.facts()["sha256"]
    return found


def contents(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.suffix != ".lock"}


@pytest.mark.slow
def test_digits_are_read_from_a_read_only_folder(tmp_path: Path, read_only: ReadOnly) -> None:
    before = sha256(MNIST5k(root=str(tmp_path), **OPTIONS))
    for file in tmp_path.glob("*.[ls]*"):
        file.unlink()  # no lock, no note
    read_only(tmp_path)
    assert sha256(MNIST5k(root=str(tmp_path), **OPTIONS)) == before
    with pytest.raises(UserError, match=r"elsewhere: permission denied; set data.root to a folder"):
        MNIST5k(root=str(tmp_path / "elsewhere"), **OPTIONS).setup()


@pytest.mark.slow
def test_digits_cannot_be_kept_in_a_read_only_folder(tmp_path: Path, read_only: ReadOnly) -> None:
    read_only(tmp_path)
    with pytest.raises(UserError, match=r"mnist5k.npz: Permission denied\nCheck .*BNSTUDY_DATA"):
        MNIST5k(root=str(tmp_path), **OPTIONS).setup()


@pytest.mark.slow
def test_digits_are_read_beside_the_lock_of_another_user(
    tmp_path: Path, read_only: ReadOnly
) -> None:
    before = sha256(MNIST5k(root=str(tmp_path), **OPTIONS))
    read_only(tmp_path / "mnist5k.lock")
    assert sha256(MNIST5k(root=str(tmp_path), **OPTIONS)) == before


def test_a_read_only_cache_is_used_and_not_added_to(tree: Path, read_only: ReadOnly) -> None:
    cache = tree.parent / "cache"
    options = OPTIONS | {"root": str(tree), "cache": str(cache)}
    before = sha256(ImageFolder(**options))
    read_only(cache)
    read_only(tree)
    assert sha256(ImageFolder(**options)) == before
    with pytest.raises(UserError, match=r"Permission denied\nCheck permissions"):
        ImageFolder(**options, image_size=4).setup()


def repack(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compress IDX files as Debian does: other bytes, the same content; no checksum is right."""
    for file in (root / "FashionMNIST" / "raw").iterdir():
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes(), 1))
        file.unlink()
    resources = [("http://127.0.0.1:9/" + file, "0" * 32) for file in module.IDX_FILES]
    monkeypatch.setattr(module.datasets.FashionMNIST, "resources", resources)
    monkeypatch.setattr(module.datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])


@pytest.mark.usefixtures("small_sources")
@pytest.mark.parametrize("is_read_only", [False, True])
def test_idx_files_that_were_packed_otherwise_are_the_same_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_only: ReadOnly, is_read_only: bool
) -> None:
    write_mnist(tmp_path, "FashionMNIST")
    before = sha256(TorchvisionImages("FashionMNIST", root=str(tmp_path), **OPTIONS))
    for note in tmp_path.glob("*.sha256"):
        note.unlink()
    repack(tmp_path, monkeypatch)
    there = contents(tmp_path)
    if is_read_only:
        read_only(tmp_path)
    assert sha256(TorchvisionImages("FashionMNIST", root=str(tmp_path), **OPTIONS)) == before
    assert (contents(tmp_path) == there) == is_read_only


@pytest.mark.usefixtures("small_sources")
@pytest.mark.parametrize("file", module.IDX_FILES)
def test_a_damaged_packed_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    write_mnist(tmp_path, "FashionMNIST")
    repack(tmp_path, monkeypatch)
    path = tmp_path / "FashionMNIST" / "raw" / f"{file}.gz"
    flip_bit(path, 1 / 2)
    with pytest.raises(UserError, match=r"data FashionMNIST: damaged in data.root="):
        TorchvisionImages("FashionMNIST", root=str(tmp_path), **OPTIONS).setup()


@pytest.mark.usefixtures("small_sources")
@pytest.mark.parametrize("is_read_only", [False, True])
def test_an_archive_that_was_packed_otherwise_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_only: ReadOnly, is_read_only: bool
) -> None:
    write_cifar(tmp_path, "CIFAR10", monkeypatch)
    shutil.rmtree(tmp_path / module.datasets.CIFAR10.base_folder)
    monkeypatch.setattr(module.datasets.CIFAR10, "tgz_md5", "0" * 32)
    monkeypatch.setattr(module.datasets.CIFAR10, "url", "http://127.0.0.1:9/x")
    if is_read_only:
        read_only(tmp_path)
    data = TorchvisionImages("CIFAR10", root=str(tmp_path), **OPTIONS)
    data.setup()
    assert len(data.data.labels["train"]) == 60


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "SVHN"])
def test_data_that_are_not_there_are_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def no_network(*arguments: Any, **options: Any) -> None:
        raise OSError("no network")

    source = getattr(module.datasets, name)
    monkeypatch.setattr(source, "download", no_network)
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)  # of a download that failed
    with pytest.raises(
        UserError, match=rf"data {name}: not there in .*no network.*\nSet data.root"
    ):
        TorchvisionImages(name, root=str(tmp_path), **OPTIONS).setup()


def test_data_that_have_moved_are_found(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path / "new")
    mnist = {"_target_": "bnstudy.data.TorchvisionImages", "dataset": "MNIST"}
    mnist |= {"root": str(tmp_path / "old"), "batch_size": 8}
    new = str(tmp_path / "new")
    assert locate(mnist, {}) == mnist  # nowhere: reading them will say so
    assert locate(mnist, {"root": new, "batch_size": 4, "cache": new}) == mnist | {"root": new}
    monkeypatch.setenv("BNSTUDY_DATA", new)
    assert locate(mnist, {}) == mnist | {"root": new}
    assert locate(mnist | {"dataset": "KMNIST"}, {})["root"] == new  # where it can be downloaded
    images = {"_target_": "bnstudy.data.ImageFolder", "root": str(tree), "cache": "old"}
    assert locate(images, {}) == images | {"cache": new}
    assert locate(images, {"root": "lost"})["root"] == str(tree)
    own = {"_target_": "mine.Data", "root": str(tree)}
    assert locate(own, {}) == own
    assert locate(own, {"root": new}) == own | {"root": new}
    several = own | {"root": ["a", "b"]}
    assert locate(several, {}) == several


def test_data_stay_where_they_are_if_they_are_not_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path / "old")
    mnist = {"_target_": "bnstudy.data.TorchvisionImages", "dataset": "MNIST"}
    mnist |= {"root": str(tmp_path / "old")}
    monkeypatch.setenv("BNSTUDY_DATA", str(tmp_path / "new"))
    assert locate(mnist, {}) == mnist
