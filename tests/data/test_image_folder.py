"""Tests of data sets of image files."""

import errno
import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import ExifTags, Image
from torchvision import datasets

from bnstudy.data import ImageFolder, decoding
from bnstudy.data.image_tree import EXTENSIONS, ImageTree
from bnstudy.errors import UserError
from bnstudy.files import CannotWrite


def load(tree: Path, **options: Any) -> ImageFolder:
    """Load a tree. Copy its class a as b first if it is the only one: one class is refused."""
    for split in ("train", "test"):
        if [path.name for path in (tree / split).iterdir()] == ["a"]:
            shutil.copytree(tree / split / "a", tree / split / "b")
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


def write(path: Path, values: object, dtype: type = np.uint16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype)).save(path)


def first_of(data: ImageFolder, split: Literal["train", "test"] = "train") -> list[object]:
    """Return the top left pixels of the first class."""
    images = data.data.images[split][data.data.labels[split] == 0]
    pixels: list[object] = images[:, :, 0, 0].squeeze(1).tolist()
    return pixels


@pytest.mark.parametrize("extension", ["png", "tif", "pgm"])
def test_grey_images_of_16_bits_are_scaled_by_their_range(tmp_path: Path, extension: str) -> None:
    values = [0, 300, 20_000, 40_000, 65_535]
    for number, value in enumerate(values):
        for split in ("train", "test"):
            write(tmp_path / "i" / split / "a" / f"{number}.{extension}", np.full((4, 4), value))
    data = load(tmp_path / "i")
    assert data.input_shape == (1, 4, 4)
    assert first_of(data) == pytest.approx([255 * value / 65_535 for value in values], abs=1)


def test_a_gradient_of_16_bits_is_that_of_8_bits(tmp_path: Path) -> None:
    wide = np.arange(65_536).reshape(256, 256)
    for split in ("train", "test"):
        write(tmp_path / "i" / split / "a" / "0.png", wide)
    data = load(tmp_path / "i")
    assert np.array_equal(data.data.images["train"][0, 0], wide // 256)
    assert load(tmp_path / "i", image_size=32).data.images["train"].unique().numel() > 50


def test_data_of_12_bits_use_the_whole_range(tmp_path: Path, capsys: Any) -> None:
    for split, values in (("train", [0, 1000, 2047]), ("test", [4095])):
        for value in values:
            write(tmp_path / "i" / split / "a" / f"{value:04d}.png", np.full((4, 4), value))
    data = load(tmp_path / "i")  # the largest value is in the test split
    assert first_of(data) == [0, 62, 127]
    assert first_of(data, "test") == [255]
    assert "values up to 4095, divided by 16" in capsys.readouterr().out


def test_data_of_8_bits_in_images_of_16_stay_what_they_are(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / "i" / split / "a" / "0.png", np.array([[0, 1], [200, 255]]))
    data = load(tmp_path / "i")
    assert data.data.images["train"][0].flatten().tolist() == [0, 1, 200, 255]


def test_a_pgm_states_its_range(tmp_path: Path) -> None:
    for split in ("train", "test"):
        path = tmp_path / "i" / split / "a" / "0.pgm"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"P5 2 1 1000\n" + np.array([1000, 250], ">u2").tobytes())
    assert load(tmp_path / "i").data.images["train"][0].flatten().tolist() == [255, 64]


def test_8_and_16_bits_may_be_in_one_data_set(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / "i" / split / "a" / "0.png", np.full((4, 4), 200), np.uint8)
        write(tmp_path / "i" / split / "a" / "1.png", np.full((4, 4), 200 * 257))
        write(tmp_path / "i" / split / "b" / "2.png", np.full((4, 4, 3), [1, 2, 3]), np.uint8)
    images = load(tmp_path / "i").data.images["train"]
    assert images[:, :, 0, 0].tolist() == [[200] * 3, [200] * 3, [1, 2, 3]]


@pytest.mark.parametrize(
    ("dtype", "kind"), [(np.int32, "signed or 32-bit integer"), (np.float32, "floating-point")]
)
def test_values_without_a_range_are_refused_by_name(tree: Path, dtype: type, kind: str) -> None:
    write(tree / "test" / "bee" / "00.tif", np.full((4, 4), 77), dtype)
    with pytest.raises(UserError, match=rf"test/bee/00.tif: {kind} image.*\nConvert") as told:
        load(tree)
    assert len(str(told.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("mode", "extension", "expected"),
    [("LA", "png", [77]), ("1", "png", [255]), ("P", "png", [77] * 3), ("CMYK", "jpg", [178] * 3)],
)
def test_images_of_other_modes_are_converted(
    tmp_path: Path, mode: str, extension: str, expected: list[int]
) -> None:
    colour: Any = {"LA": (77, 255), "CMYK": (77, 77, 77, 0)}.get(mode, 77)
    image = Image.new(mode, (8, 8), colour)
    if mode == "P":
        image.putpalette([level for level in range(256) for _ in range(3)])
    for split in ("train", "test"):
        path = tmp_path / "i" / split / "a" / f"0.{extension}"
        path.parent.mkdir(parents=True)
        image.save(path)
    assert load(tmp_path / "i").data.images["train"][0, :, 0, 0].tolist() == expected


def test_folders_are_read_as_torchvision_reads_them(tree: Path) -> None:
    nested = tree / "train" / "cat" / "site2" / "day 1"
    nested.mkdir(parents=True)
    for name in ("z.PNG", "a.jpeg"):
        Image.new("RGB", (12, 8)).save(nested / name)
    elsewhere = tree.parent / "elsewhere"
    (tree / "train" / "bee").rename(elsewhere)
    (tree / "train" / "bee").symlink_to(elsewhere, target_is_directory=True)
    theirs = datasets.ImageFolder(tree / "train")
    data = load(tree)
    assert list(data.data.class_names) == theirs.classes
    assert data.data.labels["train"].tolist() == theirs.targets
    scanned = ImageTree.scan(tree).paths("train")
    assert {str(path) for path in scanned} == {path for path, _ in theirs.samples}


def test_what_is_hidden_is_ignored_and_all_that_is_ignored_is_reported(
    tree: Path, capsys: Any
) -> None:
    before = load(tree, cache=str(tree.parent / "before")).facts()
    assert "ignored" not in capsys.readouterr().out
    for hidden in (".ipynb_checkpoints", "__MACOSX", "ant/.thumbnails"):
        shutil.copytree(tree / "train" / "cat", tree / "train" / hidden)
    for name in ("._00.png", ".DS_Store", "Thumbs.db", "notes.txt"):
        (tree / "train" / "ant" / name).write_bytes(b"no image")
    (tree / "test" / "dog").mkdir()
    (tree / "test" / "dog" / "film.gif").write_bytes(b"")
    shutil.copy(tree / "test" / "cat" / "00.png", tree / "test")
    (tree / "train" / "cat" / "again").symlink_to(tree / "train", target_is_directory=True)
    data = load(tree)
    assert data.data.class_names == ("ant", "bee", "cat")
    assert data.facts() == before
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line]
    for reason in (
        "5 hidden files or folders (.DS_Store, ",
        "3 files that are not images (.db, .gif, .txt)",
        "1 class folders without images (dog)",
        "1 images outside of a class folder (00.png)",
        "1 links to a folder above them (again)",
    ):
        assert reason in line
    load(tree)
    assert capsys.readouterr().out.strip() == ""  # reported only when the images are decoded


@pytest.mark.parametrize("link", ["train/ant/11.png", "train/dog", "test/cat/a.png"])
def test_a_link_to_nothing_is_named(tree: Path, link: str) -> None:
    (tree / link).symlink_to(tree / "lost.png")
    with pytest.raises(UserError, match=rf"{link}: cannot be read \(No such file.*\n"):
        load(tree)


def test_a_link_to_itself_and_a_pipe_are_named(tree: Path) -> None:
    (tree / "train" / "ant" / "11.png").symlink_to("11.png")
    with pytest.raises(UserError, match=r"train/ant/11.png: cannot be read \(Too many levels"):
        load(tree)
    (tree / "train" / "ant" / "11.png").unlink()
    os.mkfifo(tree / "train" / "ant" / "11.png")
    with pytest.raises(UserError, match=r"train/ant/11.png: cannot be read \(neither a file"):
        load(tree)


@pytest.mark.parametrize("place", ["train/ant/", "test/b"])
def test_a_name_that_is_not_unicode_is_named(tree: Path, place: str) -> None:
    Path(os.fsdecode(os.fsencode(tree / place) + b"/\xff.png")).parent.mkdir(exist_ok=True)
    shutil.copy(tree / "test" / "ant" / "00.png", os.fsencode(tree / place) + b"/\xff.png")
    with pytest.raises(UserError, match=r"udcff.png': not a name in UTF-8\n") as told:
        load(tree)
    str(told.value).encode()  # it can be printed


def test_names_that_look_the_same_are_one_class(tree: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    (tree / "train" / "bee").rename(tree / "train" / decomposed)
    shutil.copytree(tree / "train" / "cat", tree / "train" / composed)
    (tree / "test" / "bee").rename(tree / "test" / composed)
    data = load(tree).data
    assert data.class_names == ("ant", composed, "cat")
    assert data.labels["train"].tolist() == [0] * 10 + [1] * 20 + [2] * 10
    assert data.labels["test"].bincount().tolist() == [4, 4, 4]


def test_an_orientation_is_applied(tree: Path) -> None:
    upright = np.random.default_rng(0).integers(256, size=(12, 8, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by 90° to the right
    Image.fromarray(upright).save(tree / "train" / "ant" / "00.png", exif=exif)
    image = load(tree).data.images["train"][0].permute(1, 2, 0)
    assert np.array_equal(image, np.rot90(upright, -1))


@pytest.mark.parametrize(
    ("size", "is_stretched"), [((24, 16), False), ((25, 17), False), ((24, 4), True)]
)
def test_an_image_that_is_stretched_is_reported(
    tree: Path, capsys: Any, size: tuple[int, int], is_stretched: bool
) -> None:
    path = tree / "train" / "ant" / "other.png"
    Image.new("RGB", size).save(path)
    assert load(tree).data.images["train"].shape[2:] == (8, 12)
    message = f"{path}: with another ratio of height to width, stretched"
    assert (message in capsys.readouterr().out) == is_stretched


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L", "RGB"])
def test_what_is_transparent_is_white(tree: Path, capsys: Any, mode: str) -> None:
    ending = "tif" if mode == "PA" else "png"
    path = tree / "train" / "ant" / f"-.{ending}"  # "-" sorts before the other names
    if mode in ("P", "L", "RGB"):  # one colour is transparent
        image = Image.new(mode, (12, 8))
        if mode == "P":
            image.putpalette([level for level in range(256) for _ in range(3)])
        image.putpixel((0, 0), (7, 7, 7) if mode == "RGB" else 7)
        image.save(path, transparency=(7, 7, 7) if mode == "RGB" else 7)
    else:
        image = Image.new("RGBA", (12, 8), (0, 0, 0, 255))
        image.putpixel((0, 0), (0, 0, 0, 0))
        image.convert(mode).save(path)
    shutil.copy(path, tree / "test" / "cat")
    pixels = load(tree).data.images["train"][0]
    assert pixels[:, 0, 0].tolist() == [255] * 3
    assert not pixels[:, 1:].any()
    assert f"{path} and 1 more: with transparency" in capsys.readouterr().out
    Image.new("RGBA", (12, 8), (10, 20, 30, 102)).save(path.with_name("-.png"))
    # 255 - 0.4 x (255 - 10), and so on
    assert load(tree).data.images["train"][0, :, 0, 0].tolist() == [157, 161, 165]


def test_alpha_without_transparency_changes_nothing(tree: Path, capsys: Any) -> None:
    facts = load(tree).facts()
    for path in tree.rglob("*.png"):
        Image.open(path).convert("RGBA").save(path)
    assert load(tree).facts() == facts
    assert "transparency" not in capsys.readouterr().out


def test_grey_images_of_any_mode_have_one_channel(tree: Path) -> None:
    for number, path in enumerate(sorted(tree.rglob("*.png"))):
        grey = Image.open(path).convert("L")
        grey.convert(("L", "LA", "RGB", "P", "RGBA", "1")[number % 6]).save(path)
    assert load(tree).input_shape == (1, 8, 12)
    Image.new("RGB", (12, 8), (1, 1, 2)).save(tree / "test" / "cat" / "00.png")
    assert load(tree).input_shape == (3, 8, 12)


def test_one_class_only_is_refused(tree: Path) -> None:
    for name in ("bee", "cat"):
        for split in ("train", "test"):
            shutil.rmtree(tree / split / name)
    with pytest.raises(UserError, match=r"data.root=.*: one class only \(ant\).*\nExpected"):
        load(tree)


@pytest.mark.parametrize("place", ["train/ant/00.png", "train/ant/03.png"])
def test_images_of_too_many_pixels_are_named(
    tree: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    Image.new("L", (300, 200)).save(tree / place)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 29_000)
    with pytest.raises(UserError, match=rf"{place}: more than 58,000 pixels\nMake it smaller"):
        load(tree, image_size=8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31_000)  # Pillow would warn
    assert load(tree, image_size=8).input_shape == (3, 8, 8)
    assert decoding.read_colour(tree / place).size == (300, 200)


def test_the_first_of_several_frames_is_read(tree: Path, capsys: Any) -> None:
    frames = [Image.new("RGB", (12, 8), (50 * number, 0, 0)) for number in range(3)]
    path = tree / "train" / "ant" / "-.tif"  # "-" sorts before the other names
    frames[1].save(path, save_all=True, append_images=frames)
    assert load(tree).data.images["train"][0, :, 0, 0].tolist() == [50, 0, 0]
    assert f"{path}: with several frames" in capsys.readouterr().out


def test_the_extensions_are_torchvisions() -> None:
    assert EXTENSIONS == datasets.folder.IMG_EXTENSIONS


def test_a_byte_that_flips_in_the_copy_is_noticed(tree: Path) -> None:
    facts = load(tree).facts()
    (pixels,) = (tree.parent / "cache").glob("*.uint8")
    content = bytearray(pixels.read_bytes())
    for damaged in (content[:-1], bytes([content[0] ^ 255]) + content[1:]):
        pixels.write_bytes(damaged)
        assert load(tree).facts() == facts
        assert pixels.read_bytes() == content


def test_what_a_killed_process_left_is_removed(tree: Path) -> None:
    load(tree)
    (pixels,) = (tree.parent / "cache").glob("*.uint8")
    pixels.unlink()
    left = pixels.with_name(f".{pixels.name}.0123abcd.tmp")
    another = pixels.with_name(".other.uint8.0123abcd.tmp")
    for file in (left, another):
        file.write_bytes(b"half")
    load(tree)
    assert pixels.exists()
    assert not left.exists()
    assert another.exists()  # of other data, which another process may be decoding


def test_processes_decode_as_one_process_does(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (30, 20), 77).save(tree / "train" / "ant" / "03.png")
    Image.fromarray(np.full((8, 12), 300, np.uint16)).save(tree / "train" / "bee" / "04.png")
    facts = load(tree).facts()
    shutil.rmtree(tree.parent / "cache")
    monkeypatch.setattr(decoding, "MAX_CHUNK_IMAGES", 7)
    monkeypatch.setattr(decoding, "MIN_IMAGES_PER_PROCESS", 10)
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    assert load(tree).facts() == facts


def test_the_pixels_are_mapped_and_not_read(tree: Path) -> None:
    data = load(tree)
    (pixels,) = (tree.parent / "cache").glob("*.uint8")
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(pixels) in maps.read_text()
    data.data.images["train"][0] = 0  # changes only the memory of this process
    assert load(tree).data.images["train"][0].any()


def test_a_full_disk_is_told(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    paths = sorted(tree.rglob("*.png"))
    with pytest.raises(OSError, match="No space left") as error:
        decoding.decode_files(paths, (8, 12), full)
    assert error.value.errno == errno.ENOSPC

    def decode_to_full(paths: Any, size: Any, pixels: Path) -> Any:
        pixels.symlink_to(full)
        return decoding.decode_files(paths, size, pixels)

    monkeypatch.setattr("bnstudy.data.image_folder.decode_files", decode_to_full)
    with pytest.raises(CannotWrite, match=r"\.uint8: No space left on device\nCheck") as told:
        load(tree)
    assert len(str(told.value).splitlines()) == 2
    assert not list((tree.parent / "cache").glob(".*.tmp"))


def test_images_that_are_too_large_are_told(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in "ab":
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            Image.new("1", (4, 4)).save(folder / "1.png")
    Image.new("1", (20_000, 6_000)).save(tmp_path / "images" / "train" / "a" / "0.png")
    with pytest.raises(UserError, match=r"images of 6000 x 20000 pixels, the size of .*0.png, are"):
        load(tmp_path / "images")
    with pytest.raises(UserError, match=r"data.image_size=20000: .*\nSet data.image_size to at mo"):
        load(tmp_path / "images", image_size=20_000)


def test_a_chunk_contains_few_images_if_they_are_large() -> None:
    assert [len(some) for _, some in decoding._chunks(range(900), (32, 32))] == [500, 400]
    assert [len(some) for _, some in decoding._chunks(range(5), (6_000, 6_000))] == [2, 2, 1]
