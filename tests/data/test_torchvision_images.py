"""Tests that torchvision's data sets are read from disk, and that damaged files are errors."""

import gzip
import hashlib
import pickle
import shutil
import struct
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch

from bnstudy.data import TorchvisionImages
from bnstudy.data import torchvision_images as module
from bnstudy.errors import UserError
from tests.conftest import SHARED_DATA, SMALL, CommandLine, description, only_cell
from tests.data.conftest import OPTIONS


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


def write_mnist(root: Path, name: str = "MNIST") -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    images = {}
    for split, prefix, count in (("train", "train", 60), ("test", "t10k", 20)):
        images[split] = generator.integers(256, size=(count, 28, 28))
        write_idx(root / name / "raw" / f"{prefix}-images-idx3-ubyte", images[split])
        write_idx(root / name / "raw" / f"{prefix}-labels-idx1-ubyte", np.arange(count) % 10)
    return images


def write_cifar(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a CIFAR of 60 and 20 images, as the archive that is downloaded."""
    source = getattr(module.datasets, name)
    key = "labels" if name == "CIFAR10" else "fine_labels"
    classes = [str(number) for number in range(10 if name == "CIFAR10" else 100)]
    folder = root / source.base_folder
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)

    def write(file: str, content: dict[str, Any]) -> list[str]:
        (folder / file).write_bytes(pickle.dumps(content))
        return [file, hashlib.md5((folder / file).read_bytes()).hexdigest()]

    def batch(file: str, count: int) -> list[str]:
        pixels = generator.integers(256, size=(count, 3072)).astype(np.uint8)
        return write(file, {"data": pixels, key: [n % 10 for n in range(count)]})

    train = [file for file, _ in source.train_list]
    monkeypatch.setattr(source, "train_list", [batch(f, 60 // len(train)) for f in train])
    monkeypatch.setattr(source, "test_list", [batch(source.test_list[0][0], 20)])
    file, md5 = write(source.meta["filename"], {source.meta["key"]: classes})
    monkeypatch.setattr(source, "meta", source.meta | {"filename": file, "md5": md5})
    with tarfile.open(root / source.filename, "w:gz") as archive:
        archive.add(folder, source.base_folder)
    md5 = hashlib.md5((root / source.filename).read_bytes()).hexdigest()
    monkeypatch.setattr(source, "tgz_md5", md5)


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Write an SVHN of 60 and 20 images, H x W x C x N, whose label 10 is the digit 0."""
    source = module.datasets.SVHN
    generator = np.random.default_rng(0)
    images, listed = {}, {}
    for split, count in (("train", 60), ("test", 20)):
        file = source.split_list[split][1]
        nowhere = f"http://127.0.0.1:9/{file}"
        images[split] = generator.integers(256, size=(32, 32, 3, count)).astype(np.uint8)
        labels = (1 + np.arange(count) % 10).astype(np.uint8)[:, None]
        scipy.io.savemat(root / file, {"X": images[split], "y": labels}, do_compression=True)
        listed[split] = [nowhere, file, hashlib.md5((root / file).read_bytes()).hexdigest()]
    monkeypatch.setattr(source, "split_list", listed)
    return images


@pytest.mark.usefixtures("small_sources")
@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_idx_files_are_read_without_a_network(tmp_path: Path, name: str) -> None:
    images = write_mnist(tmp_path, name)
    data = TorchvisionImages(name, root=str(tmp_path), **OPTIONS)
    data.setup()
    assert data.input_shape == (1, 28, 28)
    assert data.num_classes == 10
    assert np.array_equal(data.data.images["test"][:, 0], images["test"])
    assert data.data.labels["train"].tolist() == [n % 10 for n in range(60)]


@pytest.mark.usefixtures("small_sources")
@pytest.mark.parametrize(("name", "classes"), [("CIFAR10", 10), ("CIFAR100", 100)])
@pytest.mark.parametrize("archive", [True, False])
def test_cifar_is_read_from_its_archive_or_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, classes: int, archive: bool
) -> None:
    write_cifar(tmp_path, name, monkeypatch)
    source = getattr(module.datasets, name)
    if archive:
        shutil.rmtree(tmp_path / source.base_folder)
    else:
        (tmp_path / source.filename).unlink()
    data = TorchvisionImages(name, root=str(tmp_path), **OPTIONS)
    data.setup()
    assert data.input_shape == (3, 32, 32)
    assert data.num_classes == classes
    assert len(data.data.labels["train"]) == 60


@pytest.mark.usefixtures("small_sources")
def test_svhn_is_read_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_svhn(tmp_path, monkeypatch)
    data = TorchvisionImages("SVHN", root=str(tmp_path), **OPTIONS)
    data.setup()
    assert data.input_shape == (3, 32, 32)
    assert data.data.class_names == tuple("0123456789")
    assert data.data.labels["train"].tolist() == [(1 + n) % 10 for n in range(60)]
    for split, written in images.items():
        for number in (0, 19):
            image = data.data.images[split][number]
            assert np.array_equal(image.permute(1, 2, 0), written[..., number])


@pytest.mark.slow
@pytest.mark.usefixtures("small_sources")
@pytest.mark.parametrize(
    "option", ["mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "svhn"]
)
def test_every_configuration_runs(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    name = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}.get(option, option.upper())
    if name == "SVHN":
        write_svhn(tmp_path, monkeypatch)
    elif name.startswith("CIFAR"):
        write_cifar(tmp_path, name, monkeypatch)
    else:
        write_mnist(tmp_path, name)
    result = command_line(
        f"data={option}", "data.root=.", "data.flip=true", "data.shift=2", "data.batch_size=16",
        *SMALL, "probe.train=60", "probe.test=20", "metrics.names=[unit_sparsity,silhouette]",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert description(only_cell(tmp_path / "multirun"))["data"]["train"] == 60


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.usefixtures("small_sources")
@pytest.mark.parametrize("file", module.IDX_FILES)
def test_a_damaged_idx_file_is_refused(tmp_path: Path, file: str) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / file
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(
        UserError, match=r"data MNIST: damaged in data.root=.*\nSet data.root.*train-im"
    ):
        TorchvisionImages("MNIST", root=str(tmp_path), **OPTIONS).setup()


@pytest.mark.usefixtures("small_sources")
def test_a_damaged_cifar_batch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, "CIFAR10", monkeypatch)
    (tmp_path / module.datasets.CIFAR10.filename).unlink()
    damage(tmp_path / "cifar-10-batches-py" / "data_batch_3")
    with pytest.raises(UserError, match="data CIFAR10: damaged in"):
        TorchvisionImages("CIFAR10", root=str(tmp_path), **OPTIONS).setup()


@pytest.mark.usefixtures("small_sources")
@pytest.mark.parametrize("missing", [True, False])
def test_a_missing_or_damaged_svhn_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: bool
) -> None:
    write_svhn(tmp_path, monkeypatch)
    if missing:
        (tmp_path / "train_32x32.mat").unlink()
        (tmp_path / "test_32x32.mat").unlink()
    else:
        damage(tmp_path / "test_32x32.mat")
    with pytest.raises(UserError) as told:
        TorchvisionImages("SVHN", root=str(tmp_path), **OPTIONS).setup()
    first, second = str(told.value).splitlines()
    assert first.startswith(
        f"data SVHN: {'not there' if missing else 'damaged'} in data.root={tmp_path}"
    )
    assert second == "Set data.root to a folder with train_32x32.mat and test_32x32.mat"


def test_a_data_set_of_the_wrong_size_is_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    with pytest.raises(UserError, match=r"the train split has 60 images and not 60,000"):
        TorchvisionImages("MNIST", root=str(tmp_path), **OPTIONS).setup()


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real images are not on this machine")
def test_real_digits_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):  # both splits have the test digits
        for kind in ("images-idx3", "labels-idx1"):
            packed = (SHARED_DATA / f"t10k-{kind}-ubyte.gz").read_bytes()
            (raw / f"{split}-{kind}-ubyte").write_bytes(gzip.decompress(packed))
    fewer = replace(module.SOURCES["MNIST"], sizes={"train": 10_000, "test": 10_000})
    monkeypatch.setitem(module.SOURCES, "MNIST", fewer)
    data = TorchvisionImages("MNIST", root=str(tmp_path), **OPTIONS)
    data.setup()
    assert torch.bincount(data.data.labels["test"]).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009
    ]  # fmt: skip
    assert data.data.images["test"].float().mean().item() == pytest.approx(33.79, abs=0.01)
