"""Small data sets."""

import errno
import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bnstudy.data import torchvision_images as module

OPTIONS: dict[str, Any] = {"batch_size": 8, "seed": 0, "probe": {"train": None, "test": None}}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Write images of three classes, ten each in train and four in test, in growing red."""
    for split, count in (("train", 10), ("test", 4)):
        for number, name in enumerate(("ant", "bee", "cat")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                colour = (10 * index, 50 * number, 200)
                Image.new("RGB", (12, 8), colour).save(folder / f"{index:02d}.png")
    return tmp_path / "images"


@pytest.fixture
def small_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make data sets of 60 and 20 images valid, instead of 60,000 and 10,000."""
    for name, source in module.SOURCES.items():
        fewer = replace(source, sizes={"train": 60, "test": 20})
        monkeypatch.setitem(module.SOURCES, name, fewer)


ReadOnly = Callable[[Path], None]


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> ReadOnly:
    """Return a function that makes a folder read-only, also for root: system calls then fail."""
    folders: list[Path] = []

    def refuse(path: Any, writes: bool) -> None:
        inside = isinstance(path, str | os.PathLike) and any(
            Path(path).absolute().is_relative_to(folder) for folder in folders
        )
        if inside and writes:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def guard(owner: Any, name: str, writes: Callable[..., bool]) -> None:
        original = getattr(owner, name)

        def guarded(path: Any, *arguments: Any, **options: Any) -> Any:
            refuse(path, writes(*arguments, **options))
            return original(path, *arguments, **options)

        monkeypatch.setattr(owner, name, guarded)

    guard(io, "open", lambda mode="r", *rest, **options: bool(set(mode) & set("wax+")))
    guard(os, "open", lambda flags, *rest, **options: bool(flags & (os.O_WRONLY | os.O_RDWR)))
    guard(os, "mkdir", lambda *rest, **options: True)
    accessible = os.access

    def access(path: Any, mode: int, **options: Any) -> bool:
        try:
            refuse(path, bool(mode & os.W_OK))
        except PermissionError:
            return False
        return accessible(path, mode, **options)

    monkeypatch.setattr(os, "access", access)
    return lambda folder: folders.append(folder.absolute())
