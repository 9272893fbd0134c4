"""Time and memory of the report of a large study.

    python benchmarks/report.py --json report.json      10,000 runs, 52 million rows of layers
    python benchmarks/report.py --quick                 200 runs

Makes a study in a temporary folder: 5 norms x 4 widths x 5 learning rates x 100 seeds. Each run has
values of 20 metrics in 13 layers at 20 epochs, and loss and accuracy. All values are drawn from
normal distributions, with a planted effect: with BatchNorm the first metric is higher by 0.5
standard deviations in the last layer, and accuracy depends on it. Then `python -m bnstudy.report`
is timed in a process of its own. Its peak of memory is that of its resident set, without those of
the processes that draw the figures (some 200 MiB each).
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hydra import compose, initialize_config_dir
from rich.progress import track

from bnstudy.config import CONFIG_FOLDER
from bnstudy.config.composition import resolve
from bnstudy.config.identity import compute_identity, name_cell_folder
from bnstudy.runs.long_table import SCHEMA, WHOLE_MODEL
from bnstudy.runs.parquet_file import write_table

NORMS = ("batchnorm", "none", "layernorm", "groupnorm", "instancenorm")
WIDTHS = (8, 16, 32, 64)
RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
SEEDS = 100
EPOCHS, LAYERS, METRICS = 20, 13, 20  # the metrics are the first ones of metrics=full
PLANTED = 0.5  # standard deviations


def make_study(folder: Path, seeds: int) -> int:
    """Write the study's records; return the number of runs."""
    grid = list(product(range(seeds), NORMS, WIDTHS, RATES))
    configs = {norm: _config(norm) for norm in NORMS}
    metrics = configs["none"]["metrics"]["names"][:METRICS]
    keys = _keys(metrics)
    generator = np.random.default_rng(0)
    for seed, norm, width, rate in track(grid, "writing records", transient=True):
        config = copy.deepcopy(configs[norm]) | {"seed": seed}
        config["model"]["width"], config["optim"]["lr"] = width, rate
        config["cell"] = f"{norm}-width{width}-lr{rate}-seed{seed}"
        cell = folder / name_cell_folder(config)
        cell.mkdir(parents=True)
        values, final = _values(norm, generator)
        table = keys.append_column("value", pa.array(values)).append_column(
            "reason", pa.nulls(len(values), pa.string())
        )
        write_table(table.cast(SCHEMA), cell / "metrics.parquet")
        (cell / "run.json").write_text(json.dumps(_description(config, cell, final)))
    return len(grid)


def _config(norm: str) -> dict[str, Any]:
    words = [f"norm={norm}", "model=vgg", "metrics=full", "study=large", "cell=x"]
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return resolve(compose("train", overrides=[*words, f"trainer.max_epochs={EPOCHS}"]))


def _keys(names: list[str]) -> pa.Table:
    """Make all columns of a run's table except value and reason."""
    layers = [
        (epoch, "train", layer, f"block{layer + 1:02d}", "act", metric)
        for epoch in range(1, EPOCHS + 1)
        for layer in range(LAYERS)
        for metric in names
    ]
    performance = [
        (epoch, split, -1, WHOLE_MODEL, None, metric)
        for epoch in range(1, EPOCHS + 1)
        for split in ("train", "test")
        for metric in ("loss", "accuracy")
    ]
    epochs, splits, indices, names, sites, metrics = zip(*layers, *performance, strict=True)
    steps = [100 * epoch for epoch in epochs]
    return pa.table(
        [epochs, steps, splits, indices, names, sites, metrics], schema=pa.schema(list(SCHEMA)[:-2])
    )


def _values(norm: str, generator: np.random.Generator) -> tuple[np.ndarray, dict[str, float]]:
    layers = generator.normal(size=(EPOCHS, LAYERS, METRICS))
    layers[:, -1, 0] += PLANTED * (norm == "batchnorm")
    better = layers[-1, -1, 0] + generator.normal()
    curve = np.linspace(0.5, 1, EPOCHS)
    accuracy = 0.9 + 0.01 * better
    performance = np.stack([2 - curve, 0.99 * curve, 2.1 - curve, accuracy * curve], axis=1)
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    final = dict(zip(names, performance[-1].tolist(), strict=True)) | {"epoch": EPOCHS}
    return np.concatenate([layers.ravel(), performance.ravel()]), final


def _description(config: dict[str, Any], cell: Path, final: dict[str, float]) -> dict[str, Any]:
    mark = compute_identity(config)
    return {
        "identity": mark,
        "id": mark[:8],
        "study": config["study"],
        "cell": cell.name,
        "choices": {"norm": config["norm"]["name"], "model": "vgg", "data": "mnist5k"},
        "overrides": [f"norm={config['norm']['name']}", f"seed={config['seed']}"],
        "seed": config["seed"],
        "status": "completed",
        "attempts": [{"started": "2026-01-01T00:00:00+00:00", "status": "completed"}],
        "config": config,
        "metrics": dict.fromkeys(config["metrics"]["names"][:METRICS]),
        "final": final,
        "timing": {"seconds": 60.0, "measure_seconds": 10.0},
        "environment": {"packages": {"bnstudy": "0.1.0"}, "gpus": []},
        "data": {"sha256": "0" * 64, "probe": {"train": 4000, "test": 1000}},
    }


def measure(command: list[str]) -> tuple[float, float]:
    """Run a command; return its seconds, and the peak of its resident set in GiB."""
    started = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"{' '.join(command)} ended with exit status {code}")
    return seconds, usage.ru_maxrss / 2**20


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 seeds instead of 100")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the numbers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        study = Path(temporary) / "large"
        runs = make_study(study, 2 if options.quick else SEEDS)
        seconds, peak = measure([sys.executable, "-m", "bnstudy.report", str(study)])
        pages = sum(path.stat().st_size for path in study.rglob("*.html"))
    result = {
        "runs": runs,
        "rows": runs * EPOCHS * LAYERS * METRICS,
        "seconds": round(seconds, 1),
        "peak_gib": round(peak, 2),
        "html_mb": round(pages / 1e6, 2),
    }
    print(json.dumps(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
