"""Published findings, reproduced at a size that two cores can train.

    python benchmarks/validation.py rank_collapse
    python benchmarks/validation.py all --output FOLDER

Each finding is one grid of `bnstudy.train` and the numbers that the finding is about. A repeated
command only trains what is missing.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

import bnstudy

DISABLED = 0.01  # absolute value of a scale below which a feature counts as disabled


def train(folder: Path, study: str, *overrides: str) -> bnstudy.Study:
    """Train a grid, and read it."""
    words = [f"output_root={folder}", f"study={study}", "logger=none", *overrides, "-m"]
    command = [sys.executable, "-m", "bnstudy.train", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return bnstudy.load(folder / study)


def by_norm(table: pd.DataFrame) -> str:
    """Format means of values by treatment."""
    means = table.groupby("treatment")["value"].mean()
    return ", ".join(f"{name} {value:.3g}" for name, value in means.items())


def rank_collapse(folder: Path) -> str:
    """Daneshmand et al. 2020, arXiv 2003.01652: rank of the last layer before training."""
    study = train(
        folder,
        "rank_collapse",
        *("model=plain", "model.depth=32", "norm=batchnorm,none", "seed=0,1,2"),
        *("metrics.names=[soft_rank]", "probe.train=256", "probe.test=256"),
        *("trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1"),
    )
    ranks = study.metrics("soft_rank", split="train", every_epoch=True)
    ranks = ranks[(ranks["epoch"] == 0)]
    first, last = (
        ranks[ranks["layer_index"] == ranks["layer_index"].agg(end)] for end in ("min", "max")
    )
    return f"rank of 256 samples: first layer {by_norm(first)}; last layer {by_norm(last)}"


def separation_law(folder: Path) -> str:
    """He and Su 2023, arXiv 2210.17020: log separation fuzziness falls on a line over layers."""
    study = train(
        folder,
        "separation_law",
        *("model.depth=8", "model.width=8", "norm=batchnorm,none", "seed=0,1,2"),
        *("metrics.names=[nc1]", "metrics.every_n_epochs=10", "trainer.max_epochs=10"),
        # With PyTorch's initialization, two of three networks without norm stay near chance.
        *("model.initialization=he", "optim.lr=0.03", "probe.test=256"),
    )
    from bnstudy.study.depth_profile import compute_profile_numbers

    keys, values = compute_profile_numbers(study)
    found = []
    for name in ("separation_r_squared", "separation_slope"):
        column = keys[(keys["metric"] == name) & (keys["split"] == "train")].index[0]
        table = study.results.assign(value=values[:, column])
        found.append(f"{name} {by_norm(table)}")
    return "; ".join(found)


def training_only_norms(folder: Path) -> str:
    """Frankle et al. 2021, arXiv 2003.00152: BatchNorm's parameters alone can be trained."""
    study = train(
        folder,
        "training_only_norms",
        *("model=resnet", "model.depth=20", "norm=batchnorm", "optim.trainable=norm"),
        *("optim.lr=0.1", "metrics=none", "trainer.max_epochs=20", "optim.schedule=cosine"),
    )
    run = study.results.iloc[0]
    state = torch.load(study.folder / run["cell"] / "checkpoints" / "last.ckpt", weights_only=True)
    scales = torch.cat(
        [value for name, value in state["state_dict"].items() if name.endswith("norm.weight")]
    )
    share = (scales.abs() < DISABLED).double().mean().item()
    return f"test accuracy {run['test_accuracy']:.3f}; disabled features {share:.0%}"


def neural_collapse(folder: Path) -> str:
    """Pan and Cao 2023, arXiv 2309.04644: collapse is stronger with BatchNorm and weight decay."""
    study = train(
        folder,
        "neural_collapse",
        *("model.width=8", "norm=batchnorm,none", "optim.weight_decay=0,0.005", "optim.lr=0.03"),
        *("metrics.names=[nc1]", "metrics.sites=[features]", "metrics.every_n_epochs=30"),
        *("trainer.max_epochs=30", "optim.schedule=cosine", "probe.test=256"),
    )
    table = study.metrics("nc1", split="train").merge(
        study.results[["cell", "optim.weight_decay"]], on="cell"
    )
    found = [
        f"weight decay {decay}: nc1 {by_norm(some)}"
        for decay, some in table.groupby("optim.weight_decay")
    ]
    return "; ".join(found)


def fixup(folder: Path) -> str:
    """Zhang et al. 2019, arXiv 1901.09321: a deep residual network without norm can be trained."""
    study = train(
        folder,
        "fixup",
        *("model=resnet", "model.depth=56", "model.width=0.5", "norm=none", "optim.lr=0.05"),
        *("model.residual_init=he,fixup", "metrics=none", "trainer.max_epochs=5"),
    )
    runs = study.results.sort_values("status")
    described = [
        f"{run['model.residual_init']} {run['status']}, test accuracy {run['test_accuracy']:.3f}"
        for _, run in runs.iterrows()
    ]
    return "; ".join(described)


FINDINGS: dict[str, Callable[[Path], str]] = {
    found.__name__: found
    for found in (rank_collapse, separation_law, training_only_norms, neural_collapse, fixup)
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("finding", choices=[*FINDINGS, "all"])
    parser.add_argument("--output", type=Path, default=Path("multirun"), help="default: multirun")
    options = parser.parse_args()
    for name, found in FINDINGS.items():
        if options.finding in (name, "all"):
            print(f"{name}: {found(options.output.absolute())}", flush=True)


if __name__ == "__main__":
    main()
