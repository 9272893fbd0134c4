"""Every shipped configuration composes and runs."""

from itertools import groupby, zip_longest
from pathlib import Path

import pytest
import torch

from bnstudy import metrics
from bnstudy.config import CONFIG_FOLDER
from bnstudy.config.composition import resolve
from bnstudy.config.identity import compute_identity
from bnstudy.config.schema import validate
from bnstudy.metrics import METRICS
from tests.conftest import (
    SMALL,
    CommandLine,
    Compose,
    description,
    only_cell,
    read_rows,
    write_images,
)

FAST = ("debug=fast", "metrics.names=[unit_sparsity,silhouette]")
SMALLEST = {
    "model=convnext": ("model.depth=6", "model.width=0.1"),
    "model=cnn": ("model.depth=1", "model.width=4"),
    "model=vgg": ("model.depth=11", "model.width=0.0625"),
    "model=resnet": ("model.depth=8", "model.width=0.25"),
    "model=plain": ("model.depth=8", "model.width=0.25"),
    "model=torchvision": ("data=mnist5k",),
    "callbacks=hessian": (
        *("callbacks.hessian.num_samples=8", "callbacks.hessian.num_probes=2"),
        "callbacks.hessian.num_eigenvalues=1",
    ),
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
    # torchvision's data sets run in tests/data/test_torchvision_images.py, on files made there;
    # several processes in tests/test_ddp.py; experiments in test_experiments.py.
    if choice not in [f"data={name}" for name in DOWNLOADED]
    and choice != "trainer=ddp"
    and not choice.startswith("experiment=")
    and not choice.endswith("=own")
    and (choice != "trainer=gpu" or torch.cuda.is_available())
]


@pytest.mark.slow
@pytest.mark.parametrize("choice", [choice for choice in ALL if choice not in RUN_HERE])
def test_a_configuration_that_is_not_run_here_composes(composed: Compose, choice: str) -> None:
    group, _, option = choice.partition("=")
    target = [f"{group}._target_=mine.Own"] if option == "own" else []
    config = resolve(composed(choice, *target))
    validate(config)
    assert len(compute_identity(config)) == 64


NEW_FAMILY = """
from bnstudy.metrics.registry import metric

@metric(direction=None, bounds=(0, 1), source="none")
def metric_of_a_new_file(layer):
    return 0.5
"""


def test_full_is_every_metric_also_those_of_new_files(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = resolve(composed("metrics=full"))["metrics"]
    assert before["names"] == [*METRICS]
    assert (before["names"][0], before["names"][-1]) == ("unit_sparsity", "saturation")
    (tmp_path / "new_family.py").write_text(NEW_FAMILY)
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    try:
        metrics.register_all()
        after = resolve(composed("metrics=full"))["metrics"]["names"]
    finally:
        METRICS.pop("metric_of_a_new_file")
    assert after == [*before["names"], "metric_of_a_new_file"]


def together(choices: list[str]) -> list[str]:
    """Each choice in some run; in a run one of each group, of networks and norms one of either."""

    def group(choice: str) -> str:
        return choice.partition("=")[0].replace("norm", "model")

    groups = [list(some) for _, some in groupby(sorted(choices, key=group), key=group)]
    return [" ".join(filter(None, one)) for one in zip_longest(*groups)]


# Lanczos' vectors are as large as all weights: on torchvision's networks the Hessian takes minutes.
HESSIAN = "callbacks=hessian"


@pytest.mark.parametrize(
    "choices", [*together([one for one in RUN_HERE if one != HESSIAN]), HESSIAN]
)
@pytest.mark.slow
def test_a_configuration_runs(command_line: CommandLine, tmp_path: Path, choices: str) -> None:
    chosen = choices.split()
    network = next((one for one in chosen if one.startswith("model=")), "model=cnn")
    smallest = [SMALLEST.get(one, ()) for one in dict.fromkeys([network, *chosen])]
    extra = [word for words in smallest for word in words]
    if "regularizer=target_sparsity" in chosen:
        extra.append("regularizer.target=0.4")
    if "data=image_folder" in chosen:
        write_images(tmp_path / "images", seed=0)
        extra += [
            "data.root=images",
            f"data.cache={tmp_path}/cache",
            "probe.train=12",
            "probe.test=12",
        ]
    result = command_line(*FAST, *chosen, *extra)
    assert result.returncode == 0, result.stderr
    assert description(only_cell(tmp_path / "multirun"))["status"] == "completed"


@pytest.mark.slow
def test_a_run_in_bfloat16_is_measured_at_every_chosen_site(
    command_line: CommandLine, tmp_path: Path
) -> None:
    sites = "metrics.sites=[conv,norm,act]"
    result = command_line(*SMALL, "trainer.precision=bf16-mixed", sites, "norm=none")
    assert result.returncode == 0, result.stderr
    cell = only_cell(tmp_path / "multirun")
    assert description(cell)["status"] == "completed"
    assert {row["site"] for row in read_rows(cell)} == {None, "conv", "norm", "act"}


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
