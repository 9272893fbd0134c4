"""The class-clustering metrics of one layer, against scikit-learn's on the same arrays.

    python benchmarks/metrics.py [--samples 4000] [--width 16] [--json FILE]

Both compute silhouette, Davies-Bouldin, Calinski-Harabasz and the share of the 10 nearest
neighbours of the same class, in alternation in one process; ours starts from the activations.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn import metrics
from sklearn.neighbors import NearestNeighbors

from bnstudy.metrics import METRICS
from bnstudy.representations import Layer

NAMES = ("silhouette", "davies_bouldin", "calinski_harabasz", "knn_purity")


def ours(activations: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """From one Gram matrix."""
    layer = Layer(activations, labels)
    return [METRICS[name](layer) for name in NAMES]


def theirs(x: np.ndarray, y: np.ndarray) -> list[float]:
    """scikit-learn's."""
    neighbours = NearestNeighbors(n_neighbors=10).fit(x).kneighbors(return_distance=False)
    return [
        metrics.silhouette_score(x, y),
        metrics.davies_bouldin_score(x, y),
        metrics.calinski_harabasz_score(x, y),
        (y[neighbours] == y[:, None]).mean(),
    ]


def timed(function: Callable[..., list[float]], *arguments: object) -> tuple[float, list[float]]:
    """Seconds, and what came out."""
    started = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - started, result


def main() -> None:
    """Time both in alternation, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--width", type=int, default=16, help="channels, of 28x28")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (options.samples,), generator=generator)
    centres = torch.randn(10, options.width, 28, 28, generator=generator)
    noise = torch.randn(options.samples, options.width, 28, 28, generator=generator)
    activations = torch.relu(0.2 * centres[labels] + noise)
    x, y = activations.flatten(1).numpy(), labels.numpy()

    seconds: dict[str, list[float]] = {"ours": [], "scikit-learn": []}
    for _ in range(options.rounds):
        for name, (duration, values) in (
            ("ours", timed(ours, activations, labels)),
            ("scikit-learn", timed(theirs, x, y)),
        ):
            seconds[name].append(duration)
            print(name, f"{duration:.2f} s", [round(float(value), 5) for value in values])
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    result = {
        "shape": list(activations.shape),
        "threads": torch.get_num_threads(),
        "seconds": medians,
        "speedup": medians["scikit-learn"] / medians["ours"],
    }
    print(f"{result['speedup']:.1f} times as fast as scikit-learn")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
