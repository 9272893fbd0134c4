"""Detached SLURM jobs, which a sweep submits without waiting for them."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.plugins.launcher import Launcher

from bnstudy.adapters.submitit_internals import get_max_jobs, without_waiting
from bnstudy.errors import UserError
from bnstudy.files import locked, replacing
from bnstudy.sweeps.grid import Cell
from bnstudy.terminal import console
from bnstudy.terms import format_count

JOBS = Path(".sweeps", "jobs.json")  # in a study's folder: the id of each cell's job
# Options of the cells' jobs that also apply to the job that makes the page.
SHARED_OPTIONS = ("partition", "account", "qos", "constraint", "mem_gb")


def is_detached(launcher: Launcher) -> bool:
    """Check whether a launcher only submits its jobs, without waiting for them."""
    return bool(getattr(launcher, "detach", False))


def submit(cells: Sequence[Cell], launcher: Launcher) -> None:
    """Submit a job for each cell, and for each study a job that makes its page at the end.

    If SLURM does not take the job of a page, a warning is printed; the cells' jobs run
    nevertheless.

    Args:
        cells: Cells to run.
        launcher: SLURM launcher.

    Raises:
        UserError: SLURM does not take the cells' jobs.
    """
    size = get_max_jobs(launcher, len(cells))
    try:
        with without_waiting():
            for first in range(0, len(cells), size):
                chunk = cells[first : first + size]
                ids: Any = launcher.launch([list(cell.overrides) for cell in chunk], first)
                for study, jobs in _group_by_study(chunk, ids).items():
                    _add_jobs(study, jobs)
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:  # raised by submitit
        raise UserError(
            f"SLURM does not take the jobs ({_format_reason(error)})\n"
            "Look at the launcher's options with --cfg hydra"
        ) from error
    num_pages = 0
    for study in {cell.folder.parent: None for cell in cells}:
        try:
            _submit_page(study, launcher.params)  # type: ignore[attr-defined]
            num_pages += 1
        except (OSError, subprocess.CalledProcessError) as error:
            console.print(
                f"{study}: SLURM does not take the job of the page ({_format_reason(error)})\n"
                "The cells' jobs are submitted; when they have ended, make the page with "
                f"python -m bnstudy.report {shlex.quote(str(study))}",
                style="yellow",
            )
    console.print(
        f"Submitted {format_count(len(cells), 'job')} for cells and {num_pages} for pages"
    )


def print_next_steps(studies: Iterable[Path]) -> None:
    """Print how to look at detached jobs, and how to collect their results."""
    for study in studies:
        folder = shlex.quote(str(study))
        console.print(f"Progress  python -m bnstudy.sweep status {folder} --watch")
        console.print(f"Collect   the same command, or python -m bnstudy.report {folder}")


def find_queued(cells: Sequence[Cell]) -> set[Path]:
    """Find the cells whose detached jobs are still in SLURM's queue: waiting, running or requeued.

    Args:
        cells: Cells of any studies.

    Returns:
        Folders of the cells found; an empty set if SLURM cannot be asked.
    """
    jobs = {
        study / name: job
        for study in {cell.folder.parent for cell in cells}
        for name, job in _read_jobs(study).items()
    }
    submitted = [cell.folder for cell in cells if cell.folder in jobs]
    if not submitted:
        return set()
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):  # no SLURM here, or it does not answer now
        return set()
    in_queue = set(result.stdout.split())
    return {folder for folder in submitted if jobs[folder] in in_queue}


def _group_by_study(cells: Sequence[Cell], jobs: Sequence[str]) -> dict[Path, dict[str, str]]:
    """Return the job of each cell, by the cell's study and by the name of its folder."""
    jobs_of_study: dict[Path, dict[str, str]] = {}
    for cell, job in zip(cells, jobs, strict=True):
        jobs_of_study.setdefault(cell.folder.parent, {})[cell.folder.name] = job
    return jobs_of_study


def _format_reason(error: Exception) -> str:
    """Format an error in one line; for a command that failed, its output on stderr."""
    return " ".join(str(getattr(error, "stderr", None) or error).split())


def _add_jobs(study: Path, jobs: Mapping[str, str]) -> None:
    """Add jobs to the file of a study's jobs, which other commands may write at the same time."""
    path = study / JOBS
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")), replacing(path) as temporary:
        temporary.write_text(json.dumps(_read_jobs(study) | dict(jobs), indent=1))


def _read_jobs(study: Path) -> dict[str, str]:
    """Read the id of each cell's job, by the name of the cell's folder."""
    try:
        content = json.loads((study / JOBS).read_text())
    except (OSError, ValueError):  # no job was submitted, or the file is damaged
        return {}
    return content if isinstance(content, dict) else {}


def _submit_page(study: Path, options: Mapping[str, Any]) -> None:
    """Submit a job that makes a study's page once all its other jobs have succeeded or failed.

    Args:
        study: Folder of the study.
        options: Options of the cells' launcher.
    """
    arrays = sorted({job.partition("_")[0] for job in _read_jobs(study).values()})
    folder = study.absolute()
    command = [
        "sbatch",
        f"--job-name={study.name}-page",
        f"--dependency=afterany:{':'.join(arrays)}",
        f"--output={folder / '.slurm' / 'page_%j.log'}",
        f"--wrap={shlex.join([sys.executable, '-m', 'bnstudy.report', str(study)])}",
    ]
    for name in SHARED_OPTIONS:
        if (value := options.get(name)) is not None:
            key, unit = ("mem", "G") if name == "mem_gb" else (name, "")
            command.append(f"--{key}={value}{unit}")
    (folder / ".slurm").mkdir(parents=True, exist_ok=True)
    subprocess.run(command, capture_output=True, text=True, check=True)
