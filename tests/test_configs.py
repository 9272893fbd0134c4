"""Every shipped configuration composes and runs."""

from collections.abc import Callable
from itertools import groupby, zip_longest
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from bnstudy.config import CONFIG_FOLDER
from bnstudy.config.composition import resolve
from bnstudy.config.identity import identity
from bnstudy.config.schema import RULES, validate
from bnstudy.terms import SPLITS
from tests.conftest import SMALL, CommandLine, description, only_cell

Compose = Callable[..., DictConfig]

FAST = ("debug=fast", "metrics.names=[unit_sparsity,silhouette]")
SMALLEST = {
    "model=cnn": ("model.depth=1", "model.width=4"),
    "model=vgg": ("model.depth=11", "model.width=0.0625"),
    "model=resnet": ("model.depth=8", "model.width=0.25"),
    "model=plain": ("model.depth=8", "model.width=0.25"),
    "model=torchvision": ("data=mnist5k",),
}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml"))


ALL = [
    f"{group.name}={option}"
    for group in sorted(CONFIG_FOLDER.iterdir())
    if group.is_dir() and group.name != "hydra"
    for option in options(group.name)
]
DOWNLOADED = ("mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "svhn")
RUN_HERE = [
    choice
    for choice in ALL
    # torchvision's data sets run in tests/data/test_torchvision.py, on files made there; several
    # processes in tests/test_ddp.py; experiments in tests/test_experiments.py.
    if choice not in [f"data={name}" for name in DOWNLOADED]
    and choice != "trainer=ddp"
    and not choice.startswith("experiment=")
    and (choice != "trainer=gpu" or torch.cuda.is_available())
]


@pytest.mark.parametrize("choice", [choice for choice in ALL if choice not in RUN_HERE])
def test_it_composes(composed: Compose, choice: str) -> None:
    config = resolve(composed(choice))
    validate(config)
    assert len(identity(config)) == 64


def together(choices: list[str]) -> list[str]:
    """Each choice in some run; in a run one of each group, of networks and norms one of either."""

    def group(choice: str) -> str:
        return choice.partition("=")[0].replace("norm", "model")

    groups = [list(some) for _, some in groupby(sorted(choices, key=group), key=group)]
    return [" ".join(filter(None, one)) for one in zip_longest(*groups)]


@pytest.mark.parametrize("choices", together(RUN_HERE))
def test_it_runs(command_line: CommandLine, tmp_path: Path, choices: str) -> None:
    chosen = choices.split()
    extra = next((list(more) for one, more in SMALLEST.items() if one in chosen), [])
    extra = extra or list(SMALLEST["model=cnn"])
    if "regularizer=target_sparsity" in chosen:
        extra.append("regularizer.target=0.4")
    if "data=image_folder" in chosen:
        for split in ("train", "test"):
            for shade in (0, 255):
                folder = tmp_path / "images" / split / str(shade)
                folder.mkdir(parents=True)
                for number in range(6):
                    Image.new("L", (8, 8), abs(shade - number)).save(folder / f"{number}.png")
        extra += [
            "data.root=images",
            f"data.cache={tmp_path}/cache",
            "probe.train=12",
            "probe.test=12",
        ]
    result = command_line(*FAST, *chosen, *extra)
    assert result.returncode == 0, result.stderr
    assert description(only_cell(tmp_path / "multirun"))["status"] == "completed"


def test_every_rule_is_about_a_key_that_exists() -> None:
    known: set[str] = set(OmegaConf.load(CONFIG_FOLDER / "train.yaml"))
    for path in CONFIG_FOLDER.glob("*/*.yaml"):
        group = path.parent.name
        content = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(content, dict)
        for key, value in content.items():
            known.add(f"{group}.{key}")
            if group == "callbacks" and key != "defaults":
                known |= {f"{group}.{key}.{option}" for option in value}
    known |= {f"probe.{split}" for split in SPLITS} | {
        "sweep.redo",
        "sweep.dry_run",
        "sweep.objective",
    }
    assert RULES.keys() <= known


def test_what_cannot_change_the_numbers_is_not_part_of_the_identity(composed: Compose) -> None:
    plain = identity(resolve(composed()))
    for same in (
        "logger=csv",
        "metrics=none",
        "callbacks=all",
        "data.root=elsewhere",
        "study=other",
        "trainer.accelerator=cpu",
        "optim.lr={batchnorm:0.01,none:0.5}",
        "checkpoint_epochs=all",
        "output_root=elsewhere",
        "experiment=quickstart",
        "optim.weight_decay=0",
        "trainer.devices=[1]",
    ):
        assert identity(resolve(composed(same))) == plain, same
    others = [
        "norm=none",
        "norm.momentum=0.2",
        "model.depth=2",
        "model.width=8",
        "optim=adam",
        "optim.lr=0.02",
        "data.batch_size=32",
        "data.flip=true",
        "data.validation=0.1",
        "trainer.max_epochs=7",
        "trainer.precision=bf16-mixed",
        "trainer.devices=2",
        "+trainer.accumulate_grad_batches=2",
        "trainer=ddp",
        "probe.train=1000",
        "seed=1",
    ]
    identities = {identity(resolve(composed(other))) for other in others}
    assert len(identities | {plain}) == len(others) + 1


def test_an_image_folder_is_told_apart_by_its_name_and_not_by_its_path(composed: Compose) -> None:
    def of(root: str) -> str:
        return identity(resolve(composed("data=image_folder", f"data.root={root}")))

    assert of("/here/cats") == of("/there/cats") != of("/here/dogs")


def test_a_sweep_over_precision_and_sites(command_line: CommandLine, tmp_path: Path) -> None:
    result = command_line(
        *SMALL, "trainer.precision=bf16-mixed", "metrics.sites=[conv,norm,act]", "norm=none"
    )
    assert result.returncode == 0, result.stderr
    assert description(only_cell(tmp_path / "multirun"))["status"] == "completed"


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("model=cnn", "torch"),
        ("experiment=paper_mnist", "torch"),
        ("model=vgg", "he"),
        ("model=resnet", "he"),
        ("model=plain", "he"),
        ("experiment=paper_cifar10", "he"),
        ("model=torchvision", "own"),
        ("~model.initialization", "own"),  # as where the file of a user's network says nothing
        ("model.initialization=orthogonal", "orthogonal"),
    ],
)
def test_the_initialization_is_said_in_every_configuration(
    composed: Compose, choice: str, expected: str
) -> None:
    assert resolve(composed(choice))["model"]["initialization"] == expected


def test_he_is_what_earlier_records_mean_by_saying_nothing(composed: Compose) -> None:
    he, torch_ = (resolve(composed(f"model.initialization={scheme}")) for scheme in ("he", "torch"))
    earlier = he | {"model": {k: v for k, v in he["model"].items() if k != "initialization"}}
    assert identity(earlier) == identity(he) != identity(torch_)
