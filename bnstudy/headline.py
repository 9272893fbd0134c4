"""Metrics that stand for a study's question, wherever there is room for few.

The verdict, the first figures, the table in the terminal, the LaTeX tables and W&B take them from
here: of each family the first that was measured, or all that were measured, in this order.
"""

from collections.abc import Container, Iterable

SPARSITY = ("unit_sparsity", "channel_sparsity", "hoyer")
CLUSTERING = (
    *("silhouette", "kmeans_nmi", "knn_purity", "within_between_ratio", "kmeans_purity"),
    "davies_bouldin",
)

FAMILIES = {"sparsity": SPARSITY, "clustering": CLUSTERING}
METRICS = (*SPARSITY, *CLUSTERING)


def choose_measured(metrics: Iterable[str], measured: Container[str]) -> list[str]:
    """Choose the metrics that were measured, in their order of preference.

    Args:
        metrics: Metrics of a family, or `METRICS`.
        measured: Names of the metrics that were measured.

    Examples:
        >>> choose_measured(METRICS, {"silhouette", "nc1", "unit_sparsity"})
        ['unit_sparsity', 'silhouette']
    """
    return [metric for metric in metrics if metric in measured]
