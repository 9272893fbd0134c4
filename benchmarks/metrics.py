"""Speed of bnstudy's measurements, each row against a named reference.

    python benchmarks/metrics.py [--json FILE] [--only ROW ...] [--plot FOLDER]

Rows:

    suite    silhouette, Davies-Bouldin, Calinski-Harabasz, 10 neighbours and k-means (k = 10, 10
             restarts) of 5,000 x 25,088 activations, against scikit-learn on the same arrays; ours
             begins with the raw activations. Goal: 25 times as fast.
    best_k   k-means for k = 2 to 30, 3 restarts each, and the silhouette of each, on as many,
             against scikit-learn; ours includes the products. Goal: 250 times. The reference takes
             about half an hour; with --quick it is timed for 5 of the ks and extrapolated.
    epoch    the `default` metrics of 2,000 samples of both splits and every layer of the 4-layer
             CNN of width 32, against training it for an epoch of 60,000 digits, batch 64. Goal: at
             most 10 %. Three thirds of the epoch (with --quick, three thirtieths) are run by
             Lightning, with evaluation; each is followed by a measurement. The epoch's time is
             three (thirty) times their median.
    full     the `full` metrics of one split, for the same network after a thirtieth of an epoch,
             against the bare products x @ x.T of the same layers. Goal: at most twice as long.
    default_run    the share of measuring in the wall time of `python -m bnstudy.train`, from the
             start of the process to its end. Goal: at most 0.5.
    memory   the peak of resident memory while `default` and `full` are measured, against
             metrics.memory_budget, for several networks, one with a layer that does not fit. Goal:
             at most 1.25 of the budget.

Ours and the reference alternate in one process and share its threads; times are medians, after a
warm-up; best_k's reference is run once. Agreement is the largest relative difference. --samples
makes every row smaller, to try things; --plot draws how time and memory grow (see plot.py).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import lightning as L
import reference
import sklearn
import torch
from footprint import footprint
from lines import Line, Row, console, load_of_others, machine, table
from reference import Answers
from sklearn.metrics import adjusted_rand_score
from subject import (
    CLASSES,
    TRAIN_IMAGES,
    RepeatedDigits,
    cnn,
    measuring,
    planted,
    probes,
    settings,
)
from torch import Tensor

from bnstudy.callbacks import RepresentationMetrics
from bnstudy.data.batches import Batches
from bnstudy.metrics import METRICS
from bnstudy.metrics.implicit_clustering import best_number_of_clusters
from bnstudy.metrics.kmeans import kmeans
from bnstudy.models import Classifier
from bnstudy.representations import Layer, capture
from bnstudy.training.build import build_trainer
from bnstudy.training.fit import quieten_lightning

S = TypeVar("S")
T = TypeVar("T")

CHANNELS = 32
SCORES = ("silhouette", "davies_bouldin", "calinski_harabasz", "knn_purity")
RESTARTS = 10
SUITE_SEPARATION = 1.0  # clusters overlap, and 10 restarts of either find them
BEST_K_SEPARATION = 2.0  # 3 restarts do
KS = range(2, 31)
QUICK_KS = (2, 10, 16, 22, 30)  # their mean is that of all; time grows with k about linearly
BATCH = 64
PARTS = 3  # of an epoch
NETWORKS = ((4, 32), (8, 32), (4, 64), (8, 64))  # depth, width


def suite(options: argparse.Namespace) -> Row:
    """Time scores, neighbours and k-means of one layer, against scikit-learn."""
    samples = options.samples or 5000
    activations, labels = planted(samples, CHANNELS, SUITE_SEPARATION)
    x, y = activations.flatten(1).numpy(), labels.numpy()
    on_device = activations.to(options.device)

    _warm_up(activations[:200], labels[:200], options.device)
    (own, found), (theirs, expected) = _alternated(
        lambda: own_suite(on_device, labels),
        lambda: reference.suite(x, y, CLASSES, RESTARTS),
        options.rounds,
    )
    for answers in (found, expected):
        answers.values["kmeans"] = _inertia(activations, torch.from_numpy(answers.clusters))
    agreement = adjusted_rand_score(expected.clusters, found.clusters)
    errors = _errors(found, expected)
    speedup = median(theirs) / median(own)
    lines = [
        Line(
            f"suite, {samples:,} × {x.shape[1]:,}",
            *(_seconds(median(theirs)), _seconds(median(own)), f"{speedup:.1f} ×", "≥ 25 ×"),
            f"{max(errors.values()):.0e}",
        )
    ]
    for name, error in errors.items():
        note = f", ARI {agreement:.4f}" if name == "kmeans" else ""
        lines.append(
            Line(f"  {name}", _seconds(expected.seconds[name]), agreement=f"{error:.0e}{note}")
        )
    raw = {
        "shape": list(x.shape),
        "reference": theirs,
        "ours": own,
        "reference_parts": expected.seconds,
        "values": {"reference": expected.values, "ours": found.values},
        "errors": errors,
        "kmeans_ari": agreement,
    }
    return Row(lines, {"suite_speedup": speedup}, raw, max(errors.values()))


def best_k(options: argparse.Namespace) -> Row:
    """Time the search of the best number of clusters, against scikit-learn."""
    samples = options.samples or 5000
    activations, labels = planted(samples, CHANNELS, BEST_K_SEPARATION)
    x = activations.flatten(1).numpy()
    on_device = activations.to(options.device)

    def ours() -> Answers:
        return own_best_k(on_device, labels)

    _warm_up(activations[:200], labels[:200], options.device)
    ks = QUICK_KS if options.quick else KS
    before, found = timed(ours)
    expected = reference.best_k(x, ks, restarts=3)
    own = [before, *(timed(ours)[0] for _ in range(options.rounds - 1))]
    theirs = sum(expected.seconds.values()) * len(KS) / len(ks)
    extrapolated = f", reference extrapolated from {len(ks)} of {len(KS)} ks" * options.quick
    errors = _errors(found, expected)
    speedup = theirs / median(own)
    lines = [
        Line(
            f"best_k, {samples:,} × {x.shape[1]:,}{extrapolated}",
            *(_seconds(theirs), _seconds(median(own)), f"{speedup:.0f} ×", "≥ 250 ×"),
            f"{max(errors.values()):.0e}, k = {found.values['best_k']:.0f}",
        )
    ]
    raw = {
        "shape": list(x.shape),
        "reference": theirs,
        "reference_is_extrapolated": options.quick,
        "reference_parts": expected.seconds,
        "ours": own,
        "values": {"reference": expected.values, "ours": found.values},
        "errors": errors,
    }
    return Row(lines, {"best_k_speedup": speedup}, raw, max(errors.values()))


def own_suite(activations: Tensor, labels: Tensor) -> Answers:
    """Compute our side of `suite`, from activations on any device."""
    layer = Layer(activations, labels, precision="auto")
    answers = Answers({name: METRICS[name](layer) for name in SCORES})
    (clusters,) = kmeans(layer.squared_distances, [CLASSES], RESTARTS)
    answers.clusters = clusters.cpu().numpy()
    return answers


def own_best_k(activations: Tensor, labels: Tensor) -> Answers:
    """Compute our side of `best_k`, from activations on any device."""
    layer = Layer(activations, labels, precision="auto")
    best = best_number_of_clusters(layer.squared_distances, layer.distances, max(KS))
    return Answers(dict(zip(("best_k", "best_k_silhouette"), best, strict=True)))


def epoch(options: argparse.Namespace) -> Row:
    """Time the default metrics, against an epoch of training."""
    samples = options.samples or 2000
    classifier = cnn(depth=4, width=32)
    metrics = measuring("default", probes(samples, options.device))
    watch = Watch(metrics)
    share = 1 / (30 if options.quick else PARTS)
    _fit(classifier, [watch], options.device, epochs=PARTS, share=share)
    training = median(watch.training) / watch.training_steps * -(-TRAIN_IMAGES // BATCH)
    evaluation = median(watch.evaluation) / share
    ours = median(watch.measuring)
    overhead = {
        "epoch_overhead": ours / training,
        "epoch_overhead_with_evaluation": ours / (training + evaluation),
    }
    timed = f", {PARTS * share:.0%} of it timed" if options.quick else ""
    lines = [
        Line(
            f"default metrics, 2 × {samples:,} / training epoch{timed}",
            *(_seconds(training), _seconds(ours)),
            *(f"{overhead['epoch_overhead']:.1%}", "≤ 10 %"),
        ),
        Line(
            "  … / training and evaluation of both splits",
            *(_seconds(training + evaluation), _seconds(ours)),
            f"{overhead['epoch_overhead_with_evaluation']:.1%}",
        ),
    ]
    raw = {
        "samples": samples,
        "training_parts": watch.training,
        "evaluation_parts": watch.evaluation,
        "steps_of_a_part": watch.training_steps,
        "training": training,
        "evaluation": evaluation,
        "ours": watch.measuring,
    }
    return Row(lines, overhead, raw)


class Watch(L.Callback):
    """Callback that times training, evaluation and measurement of each epoch.

    Args:
        metrics: Measurement, made once as a warm-up, then after each epoch.
    """

    def __init__(self, metrics: RepresentationMetrics) -> None:
        self.metrics = metrics
        self.training: list[float] = []
        self.evaluation: list[float] = []
        self.measuring: list[float] = []
        self.training_steps = 0
        self._last = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warm up."""
        self.metrics.measure(pl_module, epoch=0, step=0)
        self.training_steps = int(trainer.num_training_batches)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Training begins."""
        self._lap()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Training ends, evaluation begins."""
        self.training.append(self._lap())

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluation ends."""
        self.evaluation.append(self._lap())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure."""
        self._lap()
        self.metrics.measure(pl_module, epoch=0, step=0)
        self.measuring.append(self._lap())

    def _lap(self) -> float:
        _wait()
        before, self._last = self._last, time.perf_counter()
        return self._last - before


def full(options: argparse.Namespace) -> Row:
    """Time all metrics, against the bare products of the layers."""
    samples = options.samples or 2000
    classifier = cnn(depth=4, width=32)
    _fit(classifier, [], options.device, epochs=1, share=1 / 30)
    classifier.to(options.device)
    batches = probes(samples, options.device)["train"]
    metrics = measuring("full", {"train": batches})
    flat = _flat_layers(classifier, batches, metrics.sites)

    def products() -> None:
        for x in flat:
            x @ x.T

    products()
    metrics.measure(classifier, epoch=0, step=0)
    (own, _), (bare, _) = _alternated(
        lambda: metrics.measure(classifier, epoch=0, step=0), products, options.rounds
    )
    ratio = median(own) / median(bare)
    lines = [
        Line(
            f"full metrics ({len(metrics.metrics)}), {samples:,} / bare products",
            *(_seconds(median(bare)), _seconds(median(own)), f"{ratio:.2f} ×", "≤ 2 ×"),
        )
    ]
    raw = {"samples": samples, "units": [x.shape[1] for x in flat], "reference": bare, "ours": own}
    return Row(lines, {"full_over_gram": ratio}, raw)


def default_run(options: argparse.Namespace) -> Row:
    """Compute the share of measuring in a run with the default options."""
    walls, measuring = [], []
    accelerator = "gpu" if options.device == "cuda" else "cpu"
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            subprocess.run(
                [
                    *(sys.executable, "-m", "bnstudy.train", "logger=none"),
                    *(f"output_root={folder}", f"trainer.accelerator={accelerator}"),
                ],
                stdout=subprocess.DEVNULL,
                check=True,
            )
            walls.append(time.perf_counter() - started)
            (record,) = Path(folder).glob("*/*/run.json")
            measuring.append(json.loads(record.read_text())["timing"]["measure_seconds"])
    share = median(part / whole for part, whole in zip(measuring, walls, strict=True))
    line = Line(
        "measuring / wall time of a default run",
        *(_seconds(median(walls)), _seconds(median(measuring)), f"{share:.2f}", "≤ 0.5"),
    )
    return Row([line], {"default_run_share": share}, {"wall": walls, "measuring": measuring})


def memory(options: argparse.Namespace) -> Row:
    """Compare the peak of memory with the budget."""
    samples = options.samples or 2000
    lines, cases = [], []
    for budget in options.budgets:
        for depth, width in NETWORKS:
            for group in ("default", "full"):
                case = {"metrics": group, "depth": depth, "width": width, "budget": budget}
                found = footprint(**case, samples=samples, device=options.device)
                ratio = found["peak"] / 2**30 / budget
                largest = samples * width * 28 * 28 * 4 / 2**30
                cases.append(case | found | {"ratio": ratio, "largest_layer": largest})
                lines.append(
                    Line(
                        f"memory: {group}, {depth} layers, the largest {largest:.2f} GiB",
                        f"{budget:.2f} GiB",
                        f"{found['peak'] / 2**30:.2f} GiB",
                        f"{ratio:.2f}",
                        "≤ 1.25",
                    )
                )
    worst = max(case["ratio"] for case in cases)
    return Row(lines, {"peak_over_budget": worst}, {"samples": samples, "cases": cases})


ROWS: dict[str, Callable[[argparse.Namespace], Row]] = {
    "suite": suite,
    "best_k": best_k,
    "epoch": epoch,
    "full": full,
    "default_run": default_run,
    "memory": memory,
}
HEADLINES = (
    *("suite_speedup", "best_k_speedup", "epoch_overhead", "epoch_overhead_with_evaluation"),
    *("full_over_gram", "default_run_share", "max_rel_error", "peak_over_budget"),
)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="run no rows unless --only")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of our side")
    parser.add_argument("--samples", type=int, help="of every row; default: as above")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 2], help="GiB")
    parser.add_argument("--quick", action="store_true", help="less of the slow references")
    options = parser.parse_args()
    options.only = options.only or ([] if options.plot else list(ROWS))
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU here")
    quieten_lightning()
    warnings.filterwarnings("ignore", module="lightning|torch")
    shown = console()
    load = load_of_others(shown)

    rows = {}
    for name in options.only:
        with shown.status(f"{name} …"):
            started = time.perf_counter()
            rows[name] = ROWS[name](options)
        shown.print(f"{name}: {time.perf_counter() - started:.0f} s", style="dim")
        if options.json:
            options.json.write_text(json.dumps(_summary(rows, options, load), indent=2) + "\n")
    if rows:
        shown.print(table(rows.values(), _machine(options)))
    if options.plot:
        from plot import draw

        draw(options.plot, options.device, _machine(options))


def _machine(options: argparse.Namespace) -> str:
    return f"{machine(options.device)}, scikit-learn {sklearn.__version__}"


def _summary(rows: Mapping[str, Row], options: argparse.Namespace, load: float) -> dict[str, Any]:
    """Make the content of the JSON file; a headline is null if its row was not run."""
    found = {name: value for row in rows.values() for name, value in row.headline.items()}
    errors = [row.error for row in rows.values() if row.error is not None]
    found["max_rel_error"] = max(errors) if errors else None
    return {
        **{name: found.get(name) for name in HEADLINES},
        "machine": _machine(options),
        "device": options.device,
        "threads": torch.get_num_threads(),
        "load_before": load,
        "quick": options.quick,
        "raw": {name: row.raw for name, row in rows.items()},
    }


def timed(run: Callable[[], T]) -> tuple[float, T]:
    """Run a function; return the seconds it took, and its result."""
    _wait()
    started = time.perf_counter()
    result = run()
    _wait()
    return time.perf_counter() - started, result


def _alternated(
    ours: Callable[[], T], theirs: Callable[[], S], rounds: int
) -> tuple[tuple[list[float], T], tuple[list[float], S]]:
    """Run both sides in turn; return the seconds of each, and its last result."""
    own, others = [], []
    for _ in range(rounds):
        seconds, found = timed(ours)
        own.append(seconds)
        seconds, expected = timed(theirs)
        others.append(seconds)
    return (own, found), (others, expected)


def _wait() -> None:
    """Wait until a GPU has finished."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _warm_up(activations: Tensor, labels: Tensor, device: str) -> None:
    """Run both sides once, on few samples."""
    layer = Layer(activations.to(device), labels)
    for name in SCORES:
        METRICS[name](layer)
    best_number_of_clusters(layer.squared_distances, layer.distances, 5)
    reference.suite(activations.flatten(1).numpy(), labels.numpy(), CLASSES, 1)


def _inertia(activations: Tensor, clusters: Tensor) -> float:
    """Compute the sum of the squared distances to the clusters' means."""
    total = 0.0
    for cluster in clusters.unique():
        members = activations[clusters == cluster].flatten(1)
        total += (members - members.mean(0)).square_().sum(dtype=torch.float64).item()
    return total


def _errors(found: Answers, expected: Answers) -> dict[str, float]:
    """Compute the relative difference of each number."""
    return {
        name: abs(found.values[name] - value) / abs(value)
        for name, value in expected.values.items()
    }


def _fit(
    classifier: Classifier, callbacks: list[L.Callback], device: str, epochs: int, share: float
) -> None:
    """Train with bnstudy's trainer; each epoch has only a share of its steps."""
    options = settings("trainer", "default") | {
        "accelerator": device if device == "cuda" else "cpu",
        "max_epochs": epochs,
        "limit_train_batches": share,
        "limit_val_batches": share,
    }
    data = settings("data", "mnist5k") | {"batch_size": BATCH, "seed": 0}
    data["probe"] = {"train": None, "test": None}
    del data["_target_"], data["root"]
    trainer = build_trainer({"trainer": options}, callbacks)
    trainer.fit(classifier, datamodule=RepeatedDigits(**data))


def _flat_layers(classifier: Classifier, batches: Batches, sites: Sequence[str]) -> list[Tensor]:
    """Read the activations of all layers, each samples x units."""
    layers = capture(classifier, batches, sites=sites, memory_budget=1000, distances=False)
    return [layer.activations.flatten(1) for layer in layers if layer.activations is not None]


def _seconds(value: float) -> str:
    return f"{value:,.0f} s" if value >= 100 else f"{value:.2f} s"


if __name__ == "__main__":
    main()
