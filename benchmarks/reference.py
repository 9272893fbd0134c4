"""Reference implementations with scikit-learn, as a competent user would write them."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score, silhouette_score
from sklearn.neighbors import NearestNeighbors

Array = np.ndarray[Any, np.dtype[Any]]

NEIGHBOURS = 10


@dataclass
class Answers:
    """Numbers by name, clusters, and the seconds of each part."""

    values: dict[str, float] = field(default_factory=dict)
    clusters: Array | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def part(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return `compute()`, and note the seconds it took."""
        started = time.perf_counter()
        result = compute()
        self.seconds[name] = time.perf_counter() - started
        return result


def suite(x: Array, y: Array, k: int, restarts: int) -> Answers:
    """Score the classes as clusters, find the nearest neighbours, and run k-means.

    Args:
        x: Float32, N x D.
        y: Labels, N.
        k: Number of clusters of k-means.
        restarts: Number of restarts of k-means.
    """
    answers = Answers()
    values = answers.values
    values["silhouette"] = answers.part("silhouette", lambda: silhouette_score(x, y))
    values["davies_bouldin"] = answers.part("davies_bouldin", lambda: davies_bouldin_score(x, y))
    values["calinski_harabasz"] = answers.part(
        "calinski_harabasz", lambda: calinski_harabasz_score(x, y)
    )
    near = answers.part(
        "knn_purity",
        lambda: NearestNeighbors(n_neighbors=NEIGHBOURS).fit(x).kneighbors(return_distance=False),
    )
    values["knn_purity"] = float((y[near] == y[:, None]).mean())
    answers.clusters = answers.part(
        "kmeans", lambda: KMeans(k, n_init=restarts, random_state=0).fit_predict(x)
    )
    return answers


def best_k(x: Array, ks: Iterable[int], restarts: int) -> Answers:
    """Find the number of clusters with the highest silhouette.

    Args:
        x: Float32, N x D.
        ks: Numbers of clusters to try.
        restarts: Number of restarts of k-means for each of them.
    """
    answers = Answers()
    scores: dict[int, float] = {}
    for k in ks:

        def try_it(k: int = k) -> float:
            clusters = KMeans(k, n_init=restarts, random_state=0).fit_predict(x)
            return float(silhouette_score(x, clusters))

        scores[k] = answers.part(f"k={k}", try_it)
    best = max(scores, key=lambda k: scores[k])
    answers.values = {"best_k": best, "best_k_silhouette": scores[best]}
    return answers
