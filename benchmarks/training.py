"""Speed of bnstudy's training, each row against the bare step or the usual pipeline.

    python benchmarks/training.py [--json FILE] [--only ROW ...] [--device cuda]

Rows:

    cnn_fp32_vs_bare, cnn_bf16_vs_bare    images a second of `python -m bnstudy.train` (CNN of depth
             4 and width 16, on 28x28 digits), against a bare loop of zero_grad, forward,
             cross-entropy, backward and step over one batch: the same network, initial weights,
             optimizer, precision (autocast's bfloat16), memory format and threads. Goal: 0.95.
    vgg_fp32_vs_bare, vgg_bf16_vs_bare    the same of VGG-11 of width 0.25, on random images of
             32x32x3.
    cnn_fp32_vs_template    the same CNN against the pipeline of the widely used Lightning-Hydra
             templates: PIL images, transformed one by one in two processes of a `DataLoader`,
             torchmetrics in the training step, channels first (see template.py). Goal: above 1.
    startup_s    seconds from the start of the process to its first training step, evaluation before
             training included; the data set has been parsed before. Goal: at most 8.
    next_job_s    seconds from the end of one job's record in a multirun to the first training step
             of the next job, evaluation before training included. Goal: at most 0.5.
    gpu_vgg16_bf16, gpu_resnet20_bf16    with --device cuda, and alone there: VGG-16 and ResNet-20
             on random 32x32x3 images, against the bare step.

Every row runs the command line with metrics=none, logger=csv and a callback that measures time (see
inside_training.py). The callback alternates epochs of the run with as many steps of the reference,
in the same process. Timed are all steps of an epoch but the first few and the smaller last one,
without evaluation. Batches are of 128. An epoch of the run is compared with the mean of the
reference's before and after it, so that a machine that gets slower or faster cancels out. A ratio
is the median of --rounds such comparisons, after one to warm up, with its 95 % interval.
startup_s and next_job_s are medians of 3 starts, after one to warm up.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from inside_training import SKIPPED
from lines import Line, Row, console, load_of_others, machine, table
from scipy.stats import binom

BATCH = 128
STEPS = 27  # timed in an epoch: what 4,000 digits have room for
STARTS = 3
CNN = ("model=cnn", "model.depth=4", "model.width=16", "data=mnist5k")
SMALL_CNN = ("model=cnn", "model.depth=2", "model.width=8", "data=mnist5k", "trainer.max_epochs=1")
RANDOM_IMAGES = (
    "data=cifar10",  # for the options that all data sets have; the others are removed below
    "data._target_=inside_training.RandomImages",
    f"+data.count={BATCH * (SKIPPED + STEPS) + BATCH // 2}",
    "~data.dataset",
    "~data.root",
)
VGG = ("model=vgg", "model.depth=11", "model.width=0.25", *RANDOM_IMAGES)
FP32, BF16 = "32-true", "bf16-mixed"


def against(
    name: str, clock: str, goal: str, precision: str, *overrides: str
) -> Callable[[argparse.Namespace], Row]:
    """Make the row that compares the speed of a run with a reference.

    Args:
        name: Name of the row and of its headline.
        clock: Callback that contains the reference.
        goal: Goal of the ratio.
        precision: Precision of both.
        overrides: Further options of the run.
    """

    def row(options: argparse.Namespace) -> Row:
        with tempfile.TemporaryDirectory() as folder:
            train(
                Path(folder),
                clock,
                *overrides,
                f"trainer.precision={precision}",
                f"trainer.max_epochs={options.rounds + 1}",
                "trainer.limit_val_batches=1",
                f"data.batch_size={BATCH}",
            )
            found = json.loads(clock_file(Path(folder)).read_text())
        images = found["batch_size"] * found["steps"]
        around = [(before + after) / 2 for before, after in pairwise(found["reference"])]
        ratios = sorted(other / own for own, other in zip(found["ours"], around, strict=True))
        ratio, interval = median(ratios), _interval_of_median(ratios)
        line = Line(
            name,
            *(_speed(images / median(found[side])) for side in ("reference", "ours")),
            *(f"{ratio:.3f}", goal, f"95 %: {interval[0]:.3f} to {interval[1]:.3f}"),
        )
        return Row([line], {name: ratio}, found | {"ratios": ratios, "interval": interval})

    return row


def _interval_of_median(values: Sequence[float]) -> tuple[float, float]:
    """Compute a 95 % confidence interval of the median of sorted values, from their order alone."""
    below = int(max(0, binom.ppf(0.025, len(values), 0.5) - 1))
    return values[below], values[-1 - below]


def startup(options: argparse.Namespace) -> Row:
    """Time the way from the start of the process to the first step."""
    stages = ("built", "evaluated", "stepped")
    seconds: dict[str, list[float]] = {stage: [] for stage in stages}
    for number in range(STARTS + 1):
        with tempfile.TemporaryDirectory() as folder:
            started = time.time()
            train(Path(folder), "Stamps", *CNN, "trainer.max_epochs=1")
            events = stamps(Path(folder))
        for event, when in events:
            if number > 0:
                seconds[event].append(when - started)
    return _seconds_of_stages("startup_s", "≤ 8 s", seconds)


def next_job(options: argparse.Namespace) -> Row:
    """Time the way from the end of a job's record to the first step of the next job."""
    stages = ("built", "evaluated", "stepped")
    seconds: dict[str, list[float]] = {stage: [] for stage in stages}
    with tempfile.TemporaryDirectory() as folder:
        jobs = ",".join(map(str, range(STARTS + 2)))
        train(Path(folder), "Stamps", *SMALL_CNN, f"seed={jobs}", "-m")
        events = stamps(Path(folder))
        # run.json is written for the last time when the record ends; jobs run one after the other.
        ends = sorted(path.stat().st_mtime for path in Path(folder).glob("*/*/run.json"))
    for number, ended in enumerate(ends[1:-1], start=2):
        for event, when in events[number * len(stages) : (number + 1) * len(stages)]:
            seconds[event].append(when - ended)
    return _seconds_of_stages("next_job_s", "≤ 0.5 s", seconds)


def _seconds_of_stages(name: str, goal: str, seconds: Mapping[str, list[float]]) -> Row:
    built, evaluated, stepped = (median(of_stage) for of_stage in seconds.values())
    lines = [
        Line(name, ours=f"{stepped:.2f} s", goal=goal),
        Line("  until data, network and trainer are built", ours=f"{built:.2f} s"),
        Line("  evaluation before training", ours=f"{evaluated - built:.2f} s"),
        Line("  until the first step is done", ours=f"{stepped - evaluated:.2f} s"),
    ]
    return Row(lines, {name: stepped}, {"seconds": dict(seconds)})


def train(folder: Path, clock: str, *overrides: str) -> None:
    """Run `python -m bnstudy.train` with a clock, and with its records in a folder.

    Raises:
        SystemExit: It failed; the message is its output.
    """
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "bnstudy.train", "metrics=none", "logger=csv"]
    command += [f"output_root={folder}", f"+callbacks.clock._target_=inside_training.{clock}"]
    command += [f"+callbacks.clock.file={clock_file(folder)}", *overrides]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}")


def clock_file(folder: Path) -> Path:
    """Return the path of the clock's findings."""
    return folder / "clock"


def stamps(folder: Path) -> list[tuple[str, float]]:
    """Read the events that `Stamps` noted, with their times."""
    lines = map(str.split, clock_file(folder).read_text().splitlines())
    return [(event, float(when)) for event, when in lines]


CPU_ROWS: dict[str, Callable[[argparse.Namespace], Row]] = {
    **{
        name: against(name, "AgainstBare", "≥ 0.95", precision, *network)
        for name, precision, network in (
            ("cnn_fp32_vs_bare", FP32, CNN),
            ("cnn_bf16_vs_bare", BF16, CNN),
            ("vgg_fp32_vs_bare", FP32, VGG),
            ("vgg_bf16_vs_bare", BF16, VGG),
        )
    },
    "cnn_fp32_vs_template": against("cnn_fp32_vs_template", "AgainstTemplate", "> 1", FP32, *CNN),
    "startup_s": startup,
    "next_job_s": next_job,
}
GPU_ROWS = {
    name: against(name, "AgainstBare", "≥ 0.95", BF16, *network, "trainer=gpu", *RANDOM_IMAGES)
    for name, network in (
        ("gpu_vgg16_bf16", ("model=vgg", "model.depth=16", "model.width=1")),
        ("gpu_resnet20_bf16", ("model=resnet", "model.depth=20", "model.width=1")),
    )
}
ROWS = {"cpu": CPU_ROWS, "cuda": GPU_ROWS}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=CPU_ROWS | GPU_ROWS, metavar="ROW")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--device", choices=ROWS, default="cpu")
    parser.add_argument("--rounds", type=int, help="default: 40, with --quick 5")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    options = parser.parse_args()
    options.rounds = options.rounds or (5 if options.quick else 40)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU here")
    available = ROWS[options.device]
    options.only = options.only or list(available)
    if others := set(options.only) - available.keys():
        parser.error(f"not with --device {options.device}: {', '.join(others)}")
    shown = console()
    load = load_of_others(shown)

    rows = {}
    for name in options.only:
        with shown.status(f"{name} …"):
            started = time.perf_counter()
            rows[name] = available[name](options)
        shown.print(f"{name}: {time.perf_counter() - started:.0f} s", style="dim")
        if options.json:
            options.json.write_text(json.dumps(_summary(rows, options, load), indent=2) + "\n")
    shown.print(table(rows.values(), machine(options.device)))


def _speed(value: float) -> str:
    return f"{value:,.0f} images/s"


def _summary(rows: Mapping[str, Row], options: argparse.Namespace, load: float) -> dict[str, Any]:
    """Make the content of the JSON file; a headline is null if its row was not run."""
    found = {name: value for row in rows.values() for name, value in row.headline.items()}
    return {
        **{name: found.get(name) for name in ROWS[options.device]},
        "machine": machine(options.device),
        "device": options.device,
        "threads": torch.get_num_threads(),
        "load_before": load,
        "rounds": options.rounds,
        "raw": {name: row.raw for name, row in rows.items()},
    }


if __name__ == "__main__":
    main()
