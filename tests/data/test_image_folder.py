"""Any tree of images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bnstudy.data import ImageFolder
from bnstudy.errors import UserError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Ten images of each of three classes in train, four in test; red grows with the number."""
    for split, count in (("train", 10), ("test", 4)):
        for number, name in enumerate(("ant", "bee", "cat")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                colour = (10 * index, 50 * number, 200)
                Image.new("RGB", (12, 8), colour).save(folder / f"{index:02d}.png")
    return tmp_path / "images"


def load(tree: Path, **options: Any) -> ImageFolder:
    data = ImageFolder(
        **{"root": str(tree), "cache": str(tree.parent / "cache"), "batch_size": 4, "seed": 0}
        | {"probe": {"train": None, "test": None}}
        | options
    )
    data.setup()
    return data


def test_classes_are_folders(tree: Path) -> None:
    data = load(tree)
    assert data.data.class_names == ("ant", "bee", "cat")
    assert data.input_shape == (3, 8, 12)
    assert data.data.labels["train"].tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert data.data.images["test"][5, :, 0, 0].tolist() == [10, 50, 200]


def test_a_copy_is_used_until_a_file_changes(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = load(tree).facts()
    with monkeypatch.context() as patch:
        patch.setattr(ImageFolder, "_decode", None)
        assert load(tree).facts() == facts
    Image.new("RGB", (12, 8), (1, 2, 3)).save(tree / "train" / "ant" / "00.png")
    assert load(tree).facts()["sha256"] != facts["sha256"]


def test_other_sizes_are_resized_and_grey_becomes_colour(tree: Path) -> None:
    Image.new("L", (30, 20), 77).save(tree / "train" / "ant" / "03.png")
    assert load(tree).data.images["train"][3].unique().tolist() == [77]
    assert load(tree, image_size=5).input_shape == (3, 5, 5)


def test_grey_images_have_one_channel(tree: Path) -> None:
    for path in tree.glob("*/*/*.png"):
        Image.open(path).convert("L").save(path)
    assert load(tree).input_shape == (1, 8, 12)


def test_other_files_are_left_aside(tree: Path) -> None:
    (tree / "train" / "ant" / "notes.txt").write_text("not an image")
    (tree / "train" / ".DS_Store").write_text("")
    assert len(load(tree).data.labels["train"]) == 30


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_broken_image_is_named(tree: Path, content: bytes | None) -> None:
    path = tree / "test" / "cat" / "02.png"
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-2000] if content is None else content)
    with pytest.raises(UserError, match=r"test/cat/02.png: not a readable image"):
        load(tree)


def test_a_class_without_training_images_is_told(tree: Path) -> None:
    (tree / "test" / "dog").mkdir()
    Image.new("RGB", (12, 8)).save(tree / "test" / "dog" / "0.png")
    with pytest.raises(UserError, match="classes in test and not in train: dog"):
        load(tree)
