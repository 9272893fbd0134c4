"""Speed of sweeps: recognition of complete cells, and cells side by side.

    python benchmarks/sweeps.py [--json FILE] [--quick]

    recognize_10k_s    seconds that `python -m bnstudy.train ... -m` takes, as a process, to say
                       that all of 10,000 cells are complete. Goal: below 10.
    joblib_vs_basic    cells an hour with hydra/launcher=joblib over cells an hour with the default
                       launcher, on all cores of this machine, for the same new cells, in
                       alternation; the median of the ratios. Goal: above 1.

The 10,000 cells are records as a run writes them, made of one that was trained.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bnstudy.config.identity import compute_identity, name_cell_folder
from bnstudy.runs.record import Record

SMALL = ("model.depth=2", "model.width=8", "trainer.max_epochs=3", "logger=none", "metrics=fast")
NORMS = ("batchnorm", "none", "layernorm", "groupnorm")

console = Console(highlight=False)


def train(folder: Path, *arguments: str) -> tuple[float, str]:
    """Run a multirun; return its seconds and its output."""
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-m", "bnstudy.train", *SMALL, *arguments, "-m"],
        cwd=folder, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return time.monotonic() - began, result.stdout


def make_records(study: Path, seeds: int) -> None:
    """Copy the four trained cells of seed 0 to those of other seeds."""
    for path in list(study.glob("*/run.json")):
        trained = Record.read(path.parent)
        for seed in range(1, seeds):
            config = trained.description.config | {"seed": seed}
            config["cell"] = config["cell"].replace("seed0", f"seed{seed}")
            mark = compute_identity(config)
            facts = {"identity": mark, "id": mark[:8], "config": config, "seed": seed}
            described = trained.description.model_copy(update=facts | {"cell": config["cell"]})
            folder = study / name_cell_folder(config)
            folder.mkdir()
            Record(folder, described).save()
            shutil.copy(trained.paths.table, folder)


def recognize(cells: int) -> float:
    """Measure the seconds to recognize a number of complete cells."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        norms, seeds = f"norm={','.join(NORMS)}", cells // len(NORMS)
        train(folder, norms, "study=many")
        make_records(folder / "multirun" / "many", seeds)
        # As a dry run: the table of a study at the end of a sweep is not part of it.
        seconds, output = train(
            folder, norms, f"seed=range({seeds})", "study=many", "sweep.dry_run=true"
        )
        assert f"{cells} of {cells} cells complete, 0 to resume, 0 to run" in output, output
        return seconds


def side_by_side(pairs: int) -> list[dict[str, float]]:
    """Measure the seconds of each launcher for the same eight cells, pair by pair."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(folder, "study=warm")
        timed = []
        for pair in range(pairs):
            launchers = ["basic", "joblib"] if pair % 2 else ["joblib", "basic"]
            timed.append(
                {
                    launcher: train(
                        folder,
                        *(f"norm={','.join(NORMS)}", "seed=0,1"),
                        *(f"study={launcher}{pair}", f"hydra/launcher={launcher}"),
                    )[0]
                    for launcher in launchers
                }
            )
        return timed


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="1,000 cells, one pair")
    options = parser.parse_args()
    cells, pairs = (1_000, 1) if options.quick else (10_000, 3)
    recognized = [recognize(cells) for _ in range(pairs)]
    timed = side_by_side(pairs)
    ratio = statistics.median(one["basic"] / one["joblib"] for one in timed)

    table = Table("", "seconds", "", "goal")
    seconds = statistics.median(recognized)
    table.add_row(f"recognize {cells:,} cells", f"{seconds:.1f}", "", "< 10")
    for launcher in ("basic", "joblib"):
        of_launcher = statistics.median(one[launcher] for one in timed)
        table.add_row(
            f"8 cells, {launcher}", f"{of_launcher:.1f}", f"{28_800 / of_launcher:.0f}/h", ""
        )
    table.add_row("joblib over basic", "", f"{ratio:.2f}", "> 1")
    console.print(table)
    if options.json:
        options.json.write_text(
            json.dumps(
                {
                    "joblib_vs_basic": ratio,
                    "recognize_10k_s" if cells == 10_000 else "recognize_1k_s": seconds,
                    "cores": len(os.sched_getaffinity(0)),
                    "raw": {"recognize_s": recognized, "eight_cells_s": timed},
                },
                indent=2,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
