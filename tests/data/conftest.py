"""Small data sets."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from bnstudy.data import torchvision_images as module


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
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make data sets of 60 and 20 images valid, instead of 60,000 and 10,000."""
    for name, source in module.SOURCES.items():
        fewer = replace(source, sizes={"train": 60, "test": 20})
        monkeypatch.setitem(module.SOURCES, name, fewer)
