"""Where a run ran, for its record."""

import importlib.metadata
import platform
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

from bnstudy import __version__
from bnstudy.runs.description import Environment, Git

PACKAGES = (
    "hydra-core",
    "lightning",
    "numpy",
    "torch",
    "torchmetrics",
    "torchvision",
    "wandb",
)


def environment() -> Environment:
    """Describe the software and hardware of this process."""
    import torch

    return Environment(
        git=_git(),
        packages=_versions(),
        python=platform.python_version(),
        platform=platform.platform(),
        processor=_processor(),
        gpus=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        threads=torch.get_num_threads(),
    )


@cache
def _versions() -> dict[str, str]:
    versions = {"bnstudy": __version__}  # an editable installation keeps the version it was made of
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):  # wandb: logger=none needs it not
            versions[name] = importlib.metadata.version(name)
    return versions


def _git() -> Git | None:
    """The commit of the checkout the package runs from; None where it is installed."""
    repository = Path(__file__).parents[2]
    if not (repository / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(repository), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return Git(commit=git("rev-parse", "HEAD"), dirty=git("status", "--porcelain") != "")
    except (OSError, subprocess.CalledProcessError):  # no git, or no commit yet
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
