"""Description of the software and hardware of this process, for a run's record."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

from bnstudy import __version__
from bnstudy.files import replacing
from bnstudy.redaction import REMOVED, redact
from bnstudy.runs.parts import Environment, Git
from bnstudy.runs.paths import PATCHES

# Options of `git diff` that override the user's configuration.
DIFF_OPTIONS = (
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--src-prefix=a/",
    "--dst-prefix=b/",
)
PROGRAM_SUFFIXES = (".py", ".pyi", ".c", ".cpp", ".cu")
# Files whose uncommitted changes are recorded.
SOURCES = tuple(
    f"*{suffix}" for suffix in (*PROGRAM_SUFFIXES, ".yaml", ".yml", ".toml", ".cfg", ".sh")
)
PACKAGES = (
    "hydra-core",
    "lightning",
    "numpy",
    "torch",
    "torchmetrics",
    "torchvision",
    "wandb",
)


def describe_environment(folder: Path) -> Environment:
    """Describe the software and hardware of this process.

    Args:
        folder: Folder to which uncommitted changes of source code are written, such as the study's.
    """
    import torch

    checkout, own = _find_repositories()
    git = _describe_repository(checkout, folder) if checkout else None
    # Untracked files may be the studies themselves.
    own_git = _describe_repository(own, folder, "--untracked-files=no") if own else None
    return Environment(
        git=git,
        own_git=own_git,
        packages=_find_versions(),
        python=platform.python_version(),
        platform=platform.platform(),
        processor=_find_processor(),
        gpus=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        threads=torch.get_num_threads(),
    )


@cache
def _find_versions() -> dict[str, str]:
    versions = {"bnstudy": __version__}  # metadata of an editable install may be outdated
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):  # wandb is optional
            versions[name] = importlib.metadata.version(name)
    return versions


def _describe_repository(repository: Path, folder: Path, *status_options: str) -> Git | None:
    """Describe a repository; None if git cannot read it, or if it has no commit.

    Uncommitted changes of tracked source files are written to a patch, without what may be a
    credential. Processes with the same changes share one patch.

    Args:
        repository: Folder in the repository.
        folder: Folder with the folder of patches.
        status_options: Options of `git status`, which decides whether files differ.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(repository), *words]
        output = subprocess.run(command, capture_output=True, check=True).stdout
        return output.decode(errors="surrogateescape")  # line ends and bytes stay as they are

    try:
        commit = git("rev-parse", "HEAD").strip()
        dirty = git("status", "--porcelain", *status_options) != ""
        difference = git("diff", *DIFF_OPTIONS, "HEAD", "--", *SOURCES) if dirty else ""
    except (OSError, subprocess.CalledProcessError):
        return None
    if not difference:
        return Git(commit=commit, dirty=dirty)
    raw = _redact_patch(difference).encode(errors="surrogateescape")
    name = hashlib.sha256(commit.encode() + raw).hexdigest()[:16]
    patch = Path(PATCHES, f"{name}.patch")
    if not (folder / patch).exists():
        with replacing(folder / patch) as temporary:
            temporary.write_bytes(raw)
    return Git(commit=commit, dirty=dirty, patch=str(patch))


def _redact_patch(difference: str) -> str:
    """Remove what may be a credential from a difference; the first line then says so."""
    lines = difference.split("\n")
    is_program = False
    for number, line in enumerate(lines):
        if line.startswith("diff --git "):
            is_program = line.rstrip('"').endswith(PROGRAM_SUFFIXES)
        elif line.startswith(("+", "-", " ")):
            lines[number] = redact(line, is_program)
    redacted = "\n".join(lines)
    if redacted == difference:
        return difference
    return (
        f"Values that may be credentials were replaced by {REMOVED} in this patch; where they are "
        f"in removed or unchanged lines, it does not apply to the commit\n{redacted}"
    )


def _find_repositories() -> tuple[Path | None, Path | None]:
    """Return the repository of bnstudy's checkout, and another one that this process runs in."""
    root = Path(__file__).resolve().parents[2]
    checkout = root if (root / ".git").exists() else None
    folders = (Path.cwd(), *Path.cwd().parents)
    here = next((folder for folder in folders if (folder / ".git").exists()), None)
    return checkout, None if here == checkout else here


def _find_processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
