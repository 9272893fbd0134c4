"""Networks that are trained already, measured as runs of a study."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models
from torchvision.transforms._presets import ImageClassification

import bnstudy
from bnstudy import measure, report
from bnstudy.data import ImageFolder
from bnstudy.data.preprocessed import with_transform
from bnstudy.errors import UserError
from bnstudy.trained.networks import load_networks
from tests.callbacks.training import noise
from tests.conftest import CommandLine, description, read_rows

HERE = "tests.trained.test_networks"
OPTIONS = ("probe.train=40", "probe.test=20", "metrics.names=[unit_sparsity]")


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 24 * 24, 10))


def with_batchnorm() -> nn.Module:
    conv, act, *others = plain()  # type: ignore[misc]
    return nn.Sequential(conv, nn.BatchNorm2d(4), act, *others)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """State dictionaries of small networks of torchvision's, with weights drawn at random."""
    written = {}
    for name in ("squeezenet1_1", "resnet18"):
        written[name] = str(tmp_path / f"{name}.pt")
        torch.save(models.get_model(name, num_classes=7).state_dict(), written[name])
    return written


def test_a_pair_is_measured_at_matching_layers(command_line: CommandLine, tmp_path: Path) -> None:
    command = ("network", f"{HERE}:plain", f"{HERE}:with_batchnorm", *OPTIONS, "study=pair")
    result = command_line(*command, main=measure.main)
    assert result.returncode == 0, result.stderr
    study = bnstudy.load(tmp_path / "multirun" / "pair")
    assert sorted(study.runs["norm"]) == ["batchnorm", "none"]
    assert study.runs["pair"].nunique() == 1
    for path in (tmp_path / "multirun" / "pair").glob("*/run.json"):
        found = read_rows(path.parent)
        assert {row["layer"] for row in found} == {"layer01", "model"}
        assert {row["metric"] for row in found} == {
            "unit_sparsity", "probe_loss", "probe_accuracy"
        }  # fmt: skip
        assert description(path.parent)["choices"]["model"].startswith(HERE)
    assert len(study.effects(baseline="none")) > 0
    text = command_line(str(tmp_path / "multirun" / "pair"), main=report.main).stdout
    assert "Test accuracy on the probe set is" in text
    assert "equal training" not in text

    again = command_line(*command, main=measure.main)
    assert again.stdout.count("all requested metrics are already recorded") == 2
    more = command_line(*command[:-2], "metrics.names=[hoyer]", "study=pair", main=measure.main)
    assert more.returncode == 0
    # What was measured before is kept, and other probe sets are measured again.
    assert {row["metric"] for row in read_rows(path.parent)} >= {"hoyer", "unit_sparsity"}
    other = command_line(*command, "probe.train=41", main=measure.main)
    assert "all requested metrics are already recorded" not in other.stdout
    assert description(path.parent)["data"]["probe"]["train"] == 41
    assert {row["metric"] for row in read_rows(path.parent)} >= {"unit_sparsity"}


def test_networks_have_the_weights_of_their_files(
    command_line: CommandLine, tmp_path: Path, files: dict[str, str]
) -> None:
    (one,) = load_networks(["torchvision:resnet18"], [f"resnet18={files['resnet18']}"])
    assert (one.family, one.norm, one.transform) == ("resnet18", "batchnorm", None)
    state = torch.load(files["resnet18"], weights_only=True)
    assert all(torch.equal(state[name], value) for name, value in one.module.state_dict().items())
    wrapped = {f"module.{name}": value for name, value in state.items()}
    torch.save({"state_dict": wrapped}, tmp_path / "wrapped.pt")
    (same,) = load_networks(["torchvision:resnet18"], [f"resnet18={tmp_path / 'wrapped.pt'}"])
    assert same.weights_sha256 == one.weights_sha256

    name = "squeezenet1_1"
    command = ("network", f"torchvision:{name}", *OPTIONS, "--weights", "study=files")
    assert command_line(*command, f"{name}={files[name]}", main=measure.main).returncode == 0
    (cell,) = (tmp_path / "multirun" / "files").glob("none-*")
    assert {row["layer_index"] for row in read_rows(cell)} == set(
        range(26)
    )  # no accuracy: 7 classes
    torch.save(models.get_model(name, num_classes=7).state_dict(), files[name])
    other = command_line(*command, f"{name}={files[name]}", main=measure.main)
    assert other.returncode == 1
    assert "was measured with other weights\nAdd --overwrite" in other.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["torchvision:vgg16"], "torchvision:vgg16: no weights\nAdd --weights DEFAULT"),
        (["torchvision:vgg17", "--weights", "DEFAULT"], "torchvision:vgg17: Unknown model"),
        (["torchvision:vgg16", "--weights", "vgg11=x"], "--weights vgg11=x: expected DEFAULT"),
        (
            ["torchvision:vgg16", "--weights", "vgg16=x.pt"],
            "--weights x.pt: No such file or directory",
        ),
        ([f"{HERE}:nothing"], "has no nothing; it has "),
        ([f"{HERE}:OPTIONS"], "is neither a class nor a function"),
        ([f"{HERE}:plain", f"{HERE}:plain"], "two networks have family plain and norm"),
        ([f"{HERE}:plain", "seed=1"], "seed=1: networks that are trained already take data"),
    ],
)
def test_mistakes_are_told(command_line: CommandLine, arguments: list[str], words: str) -> None:
    result = command_line("network", *arguments, main=measure.main)
    assert result.returncode == 1
    assert words in result.stderr
    assert len(result.stderr.splitlines()) <= 2


def test_weights_are_never_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "called",))

    torch.save({"weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="weights_only=True"):
        load_networks(["torchvision:vgg11"], [f"vgg11={tmp_path / 'evil.pt'}"])
    assert not (tmp_path / "called").exists()


def test_files_are_preprocessed_from_their_own_size(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("a", "b"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for size in ((40, 30), (60, 80)):
                noise = torch.randint(0, 255, (size[1], size[0], 3), dtype=torch.uint8)
                Image.fromarray(noise.numpy()).save(folder / f"{size[0]}.png")
    data = ImageFolder(
        root=str(tmp_path / "images"), cache=str(tmp_path / "cache"), batch_size=2, seed=0,
        probe={"train": None, "test": None},
    )  # fmt: skip
    transform = ImageClassification(crop_size=16, resize_size=20)
    found = with_transform(data, transform)
    assert not (tmp_path / "cache").exists()  # nothing is decoded that is not needed
    assert found.input_shape == (3, 16, 16)
    assert list(found.class_names) == ["a", "b"]
    images, labels = next(iter(found.probe("test")))
    assert labels.tolist() == [0, 0, 1, 1]
    expected = transform(Image.open(tmp_path / "images" / "test" / "b" / "60.png"))
    assert torch.equal(images[3], expected)
    assert json.dumps(found.facts())  # as a record has them


def test_other_preprocessing_keeps_the_samples_and_their_labels() -> None:
    options = {"validation": 0.25, "samples_per_class": 4, "label_noise": 0.5}
    data = noise(**options, probe={"train": 6, "test": None})
    found = with_transform(data, lambda image: image.float())
    for split in ("train", "validation"):
        assert torch.equal(found.indices[split], data.indices[split])  # type: ignore[index]
    ours, theirs = ([*one.probe("train")] for one in (found, data))
    assert torch.equal(ours[0][1], theirs[0][1])
    true = data.true_labels["train"][data.probe_indices["train"]]
    assert not torch.equal(ours[0][1], true)


def test_preprocessing_is_told(
    tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "squeezenet1_1"
    monkeypatch.setattr("bnstudy.trained.networks.IMAGENET_CLASSES", 7)
    (other,) = load_networks([f"torchvision:{name}"], [f"{name}={files[name]}"])
    assert other.preprocessing_note.startswith(
        "that of SqueezeNet1_1_Weights.IMAGENET1K_V1; if this file needs other preprocessing"
    )
    weights = models.get_model_weights("resnet18").IMAGENET1K_V1
    published = Path(files["resnet18"]).rename(tmp_path / Path(weights.url).name)
    (known,) = load_networks(["torchvision:resnet18"], [f"resnet18={published}"])
    assert known.preprocessing_note == "that of ResNet18_Weights.IMAGENET1K_V1"
