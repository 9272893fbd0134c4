"""Time that W&B takes in a run.

    python benchmarks/weights_and_biases.py [--json FILE] [--quick]

    overhead    wall time of the quickstart, `python -m bnstudy.train norm=batchnorm,none -m`, with
                logger=wandb (offline) over that with logger=none, less 1: the median over pairs
                that alternate. Goal: at most 0.03.

    share       share of the time of such a run with logger=wandb that its main thread spends in the
                logger and in W&B, by cProfile. On a busy machine the times of two runs differ by
                more than W&B takes; the share hardly does.

Each run is a process of its own, in an empty folder. This file is not called wandb.py, because it
would then be imported in place of the package.
"""

import argparse
import json
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

LOGGERS = ("none", "wandb")
GOAL = 0.03

console = Console(highlight=False)


def quickstart(logger: str, epochs: int, *profiler: str) -> float:
    """Run the quickstart; return the seconds it takes."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        subprocess.run(
            [
                *(sys.executable, *profiler, "-m", "bnstudy.train", "norm=batchnorm,none", "-m"),
                *(f"logger={logger}", f"trainer.max_epochs={epochs}"),
            ],
            cwd=folder,
            env=os.environ | {"WANDB_MODE": "offline"},
            check=True,
            capture_output=True,
        )
        return time.monotonic() - began


def share(epochs: int) -> float:
    """Compute the share of the quickstart's time, in [0, 1], in the logger: begin, rows, end."""
    with tempfile.NamedTemporaryFile() as file:
        quickstart("wandb", epochs, "-m", "cProfile", "-o", file.name)
        profile = pstats.Stats(file.name)
    functions = profile.stats  # type: ignore[attr-defined]  # of (file, line, name)
    logger = sum(
        cumulative
        for (path, _, name), (_, _, _, cumulative, _) in functions.items()
        if (Path(path).name, name) in (("loggers.py", "wandb_run"), ("wandb_run.py", "save"))
    )
    return float(logger / profile.total_tt)  # type: ignore[attr-defined]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="one epoch, one pair")
    options = parser.parse_args()
    pairs, epochs = (1, 1) if options.quick else (3, 5)
    timed = []
    for pair in range(pairs):
        order = LOGGERS if pair % 2 else LOGGERS[::-1]
        seconds = {logger: quickstart(logger, epochs) for logger in order}
        timed.append([seconds[logger] for logger in LOGGERS])
    overheads = [wandb / none - 1 for none, wandb in timed]
    overhead = statistics.median(overheads)
    inside = share(epochs)

    table = Table("pair", *(f"logger={logger}" for logger in LOGGERS), "overhead")
    for number, ((none, wandb), one) in enumerate(zip(timed, overheads, strict=True), start=1):
        table.add_row(str(number), f"{none:.1f} s", f"{wandb:.1f} s", f"{one:+.1%}")
    table.add_row("median", "", "", f"{overhead:+.1%} (goal: at most {GOAL:.0%})")
    table.add_row("share", "", "", f"{inside:.1%}")
    console.print(table)
    if options.json:
        found = {"overhead": overhead, "share": inside, "pairs": timed, "epochs": epochs}
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
