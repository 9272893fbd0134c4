"""Every experiment whole, in its fast form, on digits that need no download."""

import math
from itertools import product
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bnstudy.config import CONFIG_FOLDER
from tests.conftest import CommandLine, description

EXPERIMENTS = sorted(path.stem for path in (CONFIG_FOLDER / "experiment").glob("*.yaml"))
LARGE = ("anatomy", "depth_width", "learning_rate", "published_resnet", "published_vgg")  # grids
WIDTHS = {  # of experiments whose widths are factors
    "nf_resnet": 0.25,
    "paper_cifar10": 0.125,
    "published_resnet": 0.125,
    "published_vgg": 0.125,
}


def grid(experiment: str) -> dict[str, list[str]]:
    """Axes of an experiment: one seed, as in debug=fast, and the ends of an axis of numbers."""
    content = OmegaConf.load(CONFIG_FOLDER / "experiment" / f"{experiment}.yaml")
    params = OmegaConf.select(content, "hydra.sweeper.params", default={})
    axes = {key: str(values).replace(" ", "").split(",") for key, values in params.items()}
    for key, values in axes.items():
        if "." in key and len(values) > 2:
            axes[key] = [values[0], values[-1]]
    return axes | {"seed": ["0"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    "experiment",
    [pytest.param(name, marks=[pytest.mark.long] * (name in LARGE)) for name in EXPERIMENTS],
)
def test_an_experiment_runs_its_whole_grid(
    command_line: CommandLine, tmp_path: Path, experiment: str
) -> None:
    small = ["data=mnist5k", "metrics.names=[unit_sparsity]"]
    small += [f"model.width={WIDTHS[experiment]}"] if experiment in WIDTHS else []
    axes = grid(experiment)
    ends = [f"{key}={','.join(values)}" for key, values in axes.items() if "." in key]
    result = command_line(f"experiment={experiment}", "debug=fast", *small, *ends)
    assert result.returncode == 0, result.stderr
    runs = [description(path.parent) for path in tmp_path.glob("multirun/debug_*/*/run.json")]
    assert len(runs) == math.prod(map(len, axes.values()))
    assert {run["status"] for run in runs} <= {"completed", "diverged"}
    found = {
        tuple(
            str(run["choices"][key] if key in run["choices"] else _value(run["config"], key))
            for key in axes
        )
        for run in runs
    }
    assert found == set(product(*axes.values()))
    if len(runs) > 1:
        assert f"Cell 1 of {len(runs)}: " in result.stdout
    assert len({run["data"]["sha256"] for run in runs}) == 1


@pytest.mark.slow
def test_an_experiments_grid_gives_way_to_the_command_line(
    command_line: CommandLine, tmp_path: Path
) -> None:
    arguments = ("experiment=anatomy", "debug=fast", "data=mnist5k", "metrics=none")
    result = command_line(*arguments, "norm=none,affine", "seed=3", "model.width=4")
    assert result.returncode == 0, result.stderr
    assert "Cell 2 of 2: " in result.stdout
    cells = sorted(path.parent.name[:-9] for path in tmp_path.glob("multirun/debug_*/*/run.json"))
    assert cells == ["affine-depth4-width4-seed3", "none-depth4-width4-seed3"]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiments_file_names_its_paper_and_its_command(experiment: str) -> None:
    text = (CONFIG_FOLDER / "experiment" / f"{experiment}.yaml").read_text()
    comment = " ".join(line for line in text.splitlines() if line.startswith("#"))
    assert experiment == "quickstart" or ("paper" in comment or "Paper" in comment)
    assert experiment == "quickstart" or f"python -m bnstudy.train experiment={experiment}" in text


def _value(config: object, key: str) -> object:
    return OmegaConf.select(OmegaConf.create(config), key)
