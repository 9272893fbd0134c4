"""Headline metrics of a study, in order of preference, and names of norms for readers.

The verdict, the first figures, the table in the terminal, the LaTeX tables and W&B show these
metrics: either the first of each family that was measured, or all that were measured.
"""

from collections.abc import Container, Iterable

SPARSITY = ("unit_sparsity", "channel_sparsity", "hoyer")
CLUSTERING = (
    *("silhouette", "kmeans_nmi", "knn_purity", "within_between_ratio", "kmeans_purity"),
    "davies_bouldin",
)

# Names of norms in sentences and figures; a norm that is missing here keeps its own name.
NORM_NAMES = {
    "affine": "scale and shift alone",
    "batch_renorm": "Batch Renormalization",
    "batchnorm": "BatchNorm",
    "batchnorm_centering": "BatchNorm (centering only)",
    "batchnorm_frozen": "BatchNorm (frozen statistics)",
    "batchnorm_noaffine": "BatchNorm (no scale and shift)",
    "batchnorm_scaling": "BatchNorm (scaling only)",
    "derf": "Derf",
    "dyt": "dynamic tanh",
    "evonorm_b0": "EvoNorm-B0",
    "evonorm_s0": "EvoNorm-S0",
    "filterresponse": "filter response normalization",
    "ghostbatchnorm": "Ghost BatchNorm",
    "groupnorm": "GroupNorm",
    "instancenorm": "InstanceNorm",
    "layernorm": "LayerNorm",
    "layernorm_channels": "LayerNorm over channels",
    "none": "no normalization",
    "rmsnorm": "RMSNorm",
    "weightstandardization": "weight standardization",
}

FAMILIES = {"sparsity": SPARSITY, "clustering": CLUSTERING}
HEADLINE_METRICS = (*SPARSITY, *CLUSTERING)


def in_words(treatment: str) -> str:
    """Name a treatment in words, for sentences and figures.

    Args:
        treatment: Norm, followed by its swept options and regularizer.

    Examples:
        >>> in_words("none + activation_l1"), in_words("groupnorm num_groups=2")
        ('no normalization + activation_l1', 'GroupNorm num_groups=2')
    """
    norm, space, rest = treatment.partition(" ")
    return f"{NORM_NAMES.get(norm, norm)}{space}{rest}"


def choose_measured(metrics: Iterable[str], measured: Container[str]) -> list[str]:
    """Choose the metrics that were measured, in their order of preference.

    Args:
        metrics: Metrics of a family, or `HEADLINE_METRICS`.
        measured: Names of the metrics that were measured.

    Examples:
        >>> choose_measured(HEADLINE_METRICS, {"silhouette", "nc1", "unit_sparsity"})
        ['unit_sparsity', 'silhouette']
    """
    return [metric for metric in metrics if metric in measured]
