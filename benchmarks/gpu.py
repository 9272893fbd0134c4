"""All checks and benchmarks that need a GPU, within a given number of minutes.

    python benchmarks/gpu.py --minutes 8 --output FOLDER [--images cifar10.tar.xz]

Parts, each of which writes FOLDER/<part>.json as soon as it has something to write:

    tests      the tests marked `gpu`.
    speed      VGG-16 and ResNet-20 in bfloat16 against the bare step (see training.py), and how
               many times as fast 2, 4 and 8 cells are side by side as one after the other.
    metrics    our side of the suite and of best_k, and the epoch overhead (see metrics.py). Goals
               for an H100: suite at most 0.15 s, overhead at most 5 %.
    cifar10    the 8 runs of experiment=paper_cifar10 on the real images, with as many epochs as
               there is time for, and their tables. Goal for an H100: 30 epochs in 5 minutes.

A part that fails, or has no time left, says so in its file, and the others go on. It needs no
network and no wandb. --images is an image folder, or an archive of one. --device cpu tries the
script itself, with networks and data sets that are small enough for that.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lines import machine

REPOSITORY = Path(__file__).parents[1]
SIDE_BY_SIDE = (2, 4, 8)
EPOCHS = 30  # of experiment=paper_cifar10
MARGIN = 10  # seconds for the end
# Shares of the time until which a part may run; the parts are in this order.
UNTIL = {"tests": 0.22, "speed": 0.45, "metrics": 0.58, "cifar10": 1.0}


class PartFailed(Exception):
    """A command of a part failed, or had no time left."""


@dataclass(frozen=True)
class Bench:
    """Options that all parts share.

    Attributes:
        device: `cuda`, or `cpu` to try the script.
        output: Folder of the findings.
        images: Folder or archive of real images.
    """

    device: str
    output: Path
    images: Path

    @property
    def is_trial(self) -> bool:
        """Whether this is a trial of the script itself, without a GPU."""
        return self.device == "cpu"

    def run(self, name: str, until: float, *command: str, **environment: str) -> float:
        """Run Python with arguments, write its output to a log, and return the seconds it took.

        Raises:
            PartFailed: It failed, or there was no time.
        """
        limit = until - time.monotonic()
        if limit < 1:
            raise PartFailed(f"{name}: no time left")
        started = time.monotonic()
        log = self.output / f"{name}.log"
        with log.open("w") as file:
            try:
                done = subprocess.run(
                    [sys.executable, *command],
                    cwd=REPOSITORY,
                    env=os.environ | environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=limit,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise PartFailed(f"{name}: stopped after {limit:.0f} s; see {log}") from error
        if done.returncode:
            last = log.read_text().strip().splitlines()[-5:]
            raise PartFailed(f"{name}: exit status {done.returncode}\n" + "\n".join(last))
        return time.monotonic() - started

    def train(self, name: str, until: float, root: Path, *overrides: str) -> float:
        """Run a multirun with its records in a folder; return the seconds it took."""
        options = [f"trainer={'default' if self.is_trial else 'gpu'}", "logger=none", "-m"]
        command = ["-m", "bnstudy.train", *overrides, f"output_root={root}", *options]
        return self.run(name, until, *command)


Write = Callable[..., None]


def tests(bench: Bench, until: float, write: Write) -> None:
    """Run the tests marked `gpu`."""
    chosen = ("-k", "metrics or repeat") if bench.is_trial else ()
    options = ("-m", "gpu", "-n", "0", "-p", "no:cacheprovider", "-rfE", "--tb=short", *chosen)
    files = ("tests/test_gpu.py", "tests/test_measure.py")
    try:
        bench.run(
            "tests", until, "-m", "pytest", *files, *options, BNSTUDY_TEST_DEVICE=bench.device
        )
    finally:
        file = bench.output / "tests.log"
        log = file.read_text() if file.exists() else ""
        counted = re.findall(r"(\d+) (passed|failed|skipped|error)", log)
        write(
            **{what: int(count) for count, what in counted},
            failures=re.findall(r"^(?:FAILED|ERROR) (.*)", log, re.M),
        )


def speed(bench: Bench, until: float, write: Write) -> None:
    """Compare with the bare step, and cells side by side with one after the other."""
    file = bench.output / "training.json"
    rows = ("cnn_fp32_vs_bare",) if bench.is_trial else ("gpu_vgg16_bf16", "gpu_resnet20_bf16")
    rounds = 2 if bench.is_trial else 20
    half = time.monotonic() + (until - time.monotonic()) / 2
    try:
        bench.run(
            *("training", half, "benchmarks/training.py", "--device", bench.device),
            *("--only", *rows, "--rounds", str(rounds), "--json", str(file)),
        )
    finally:
        if file.exists():
            found = json.loads(file.read_text())
            write(**{row: found[row] for row in rows}, training=found["raw"])
        _side_by_side(bench, until, write)


def _side_by_side(bench: Bench, until: float, write: Write) -> None:
    epochs, per_group = (1, 4) if bench.is_trial else (8, 600)
    network = (
        *("data=planted", f"data.samples_per_group.train={per_group}", "metrics=none"),
        *("model=resnet", "model.depth=20", f"trainer.max_epochs={epochs}"),
        *("trainer.precision=bf16-mixed", f"model.width={0.125 if bench.is_trial else 1}"),
    )
    with tempfile.TemporaryDirectory() as folder:
        seconds: dict[int, float] = {}  # of a cell, without the start of its process
        for count in (1, *SIDE_BY_SIDE[: 1 if bench.is_trial else None]):
            root = Path(folder) / str(count)
            seeds = f"seed={','.join(map(str, range(count)))}"
            launcher = ("hydra/launcher=joblib", f"hydra.launcher.n_jobs={count}")
            bench.train(f"side_by_side_{count}", until, root, *network, seeds, *launcher)
            seconds[count] = median(timing["seconds"] for timing in timings(root))
            write(
                seconds_of_a_cell=seconds,
                speedup_by_cells={n: n * seconds[1] / each for n, each in seconds.items()},
            )


def timings(root: Path) -> list[dict[str, float]]:
    """Return the timing of each run in a folder: `seconds` and `measure_seconds`."""
    return [json.loads(path.read_text())["timing"] for path in root.rglob("run.json")]


def metrics(bench: Bench, until: float, write: Write) -> None:
    """Time our side of the suite and of best_k, and the overhead of an epoch."""
    import metrics as rows

    samples = 500 if bench.is_trial else 5000
    sides = {
        "suite_s": (rows.own_suite, rows.SUITE_SEPARATION),
        "best_k_s": (rows.own_best_k, rows.BEST_K_SEPARATION),
    }
    for name, (side, separation) in sides.items():
        activations, labels = rows.planted(samples, rows.CHANNELS, separation)
        on_device = activations.to(bench.device)
        run = partial(side, on_device, labels)
        seconds = [rows.timed(run)[0] for _ in range(6)]
        write(**{name: median(seconds[1:]), f"{name}_all": seconds})
    file = bench.output / "epoch.json"
    size = ("--samples", "200") if bench.is_trial else ()
    options = ("--device", bench.device, "--quick", *size, "--json", str(file))
    bench.run("epoch", until, "benchmarks/metrics.py", "--only", "epoch", *options)
    found = json.loads(file.read_text())
    write(epoch_overhead=found["epoch_overhead"], epoch=found["raw"]["epoch"])


def cifar10(bench: Bench, until: float, write: Write) -> None:
    """Run experiment=paper_cifar10 on real images, with its tables."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "multirun"
        try:
            _cifar10(bench, until, write, Path(folder), root)
        finally:  # checkpoints are left out for their size
            for path in (*root.glob("*/*/run.json"), *root.glob("*/*/metrics.parquet")):
                kept = bench.output / path.relative_to(folder)
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, kept)


def _cifar10(bench: Bench, until: float, write: Write, folder: Path, root: Path) -> None:
    images = _image_folder(bench.images, folder / "images", 20 if bench.is_trial else inf)
    experiment = [
        *("experiment=paper_cifar10", "data=image_folder", f"data.root={images}"),
        *(f"data.cache={folder / 'cache'}", "trainer.precision=bf16-mixed"),
        *("hydra/launcher=joblib", f"hydra.launcher.n_jobs={1 if bench.is_trial else 8}"),
    ]
    if bench.is_trial:
        experiment += ["model.depth=11", "model.width=0.0625", "trainer.limit_train_batches=2"]
        experiment += ["trainer.limit_val_batches=1", "probe.train=100", "probe.test=100"]
        experiment += ["seed=0", "metrics.names=[unit_sparsity]"]
    # Images are read once; then two epochs tell how many there is time for.
    first = ("study=first", "seed=0", "norm=batchnorm", "trainer.max_epochs=1")
    write(first_seconds=bench.train("cifar10_first", until, root, *experiment, *first))
    trial = ("study=trial", "trainer.max_epochs=2", "metrics.every_n_epochs=2")
    took = bench.train("cifar10_trial", until, root, *experiment, *trial)
    trained = [each["seconds"] - each["measure_seconds"] for each in timings(root / "trial")]
    an_epoch = max(trained) / 2
    left = until - time.monotonic() - (took - 2 * an_epoch) - MARGIN
    epochs = 2 if bench.is_trial else max(1, min(EPOCHS, int(0.8 * left / an_epoch)))
    write(trial_seconds=took, epoch_seconds=an_epoch, epochs=epochs)
    options = (f"trainer.max_epochs={epochs}", f"metrics.every_n_epochs={max(1, epochs // 3)}")
    took = bench.train("cifar10_runs", until, root, *experiment, *options)
    log = (bench.output / "cifar10_runs.log").read_text()
    write(seconds=took, table=log[log.index("mean ± standard deviation") :].splitlines())


def _image_folder(images: Path, folder: Path, per_class: float) -> Path:
    """Return the folder that contains the split `train`; unpack an archive first."""
    if images.is_file():
        count: Counter[str] = Counter()
        with tarfile.open(images) as archive:
            for member in archive:
                count[str(Path(member.name).parent)] += member.isfile()
                if count[str(Path(member.name).parent)] <= per_class:
                    archive.extract(member, folder, filter="data")
        images = folder
    train = next(images.rglob("train"), None)
    if train is None:
        raise PartFailed(f"--images {images}: no folder train in it, nor an archive of one")
    return train.parent


PARTS: dict[str, Callable[[Bench, float, Write], None]] = {
    "tests": tests,
    "speed": speed,
    "metrics": metrics,
    "cifar10": cifar10,
}


def main() -> None:
    """Run the parts; exit with status 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", type=Path, default=REPOSITORY / ".gpu/cifar10-jpeg.tar.xz")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU here")
    options.output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    seconds = options.minutes * 60 - MARGIN
    bench = Bench(options.device, options.output.resolve(), options.images.resolve())
    failed = []
    for name in options.only:
        found: dict[str, Any] = {"machine": machine(bench.device), "error": None}

        def write(name: str = name, found: dict[str, Any] = found, **more: Any) -> None:
            found |= more
            file = bench.output / f"{name}.json"
            file.write_text(json.dumps(found, indent=2, default=str) + "\n")

        began = time.monotonic()
        try:
            PARTS[name](bench, started + UNTIL[name] * seconds, write)
        except Exception as error:
            if not isinstance(error, PartFailed):
                traceback.print_exc()
            print(error)
            failed.append(name)
            write(error=str(error))
        write(part_seconds=time.monotonic() - began)
        print(f"{name}: {'failed' if name in failed else 'done'}, {found['part_seconds']:.0f} s")
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
