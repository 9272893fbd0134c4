"""Names of metrics and layers in words, and ranges of metrics, for figures, cards and tables."""

import math
import re
from typing import NamedTuple


class Label(NamedTuple):
    """Words for a metric, with its unit, and its smallest and largest possible value."""

    words: str
    low: float = -math.inf
    high: float = math.inf


# Labels of the metrics of layers, then of other numbers. The ranges of metrics are those of the
# registry, repeated here because the registry imports torch.
LABELS = {
    "unit_sparsity": Label("share of zero activations", 0, 1),
    "channel_sparsity": Label("share of all-zero channels in a sample", 0, 1),
    "unit_sparsity_channel_std": Label("SD over channels of the share of zeros", 0, 0.5),
    "dead_channels": Label("share of dead channels", 0, 1),
    "dead_units": Label("share of dead units", 0, 1),
    "hoyer": Label("Hoyer sparsity", 0, 1),
    "population_sparseness": Label("population sparseness", 0, 1),
    "lifetime_sparseness": Label("lifetime sparseness", 0, 1),
    "silhouette": Label("silhouette of the classes", -1, 1),
    "davies_bouldin": Label("Davies-Bouldin index of the classes", 0),
    "calinski_harabasz": Label("Calinski-Harabasz index of the classes", 0),
    "dunn": Label("Dunn index of the classes", 0),
    "within_between_ratio": Label("distance within / between classes", 0),
    "knn_purity": Label("share of 10 nearest neighbours of the class", 0, 1),
    "kmeans_purity": Label("purity of k-means clusters", 0, 1),
    "kmeans_nmi": Label("NMI of k-means clusters and classes", 0, 1),
    "kmeans_ari": Label("ARI of k-means clusters and classes", -0.5, 1),
    "best_k": Label("best number of k-means clusters", 2, 30),
    "best_k_silhouette": Label("silhouette of the best k-means clusters", -1, 1),
    "intraclass_silhouette": Label("silhouette of clusters within classes", -1, 1),
    "mixup_accuracy": Label("accuracy after mixing within classes", 0, 1),
    "margin_mean": Label("mean distance to the decision boundary"),
    "margin_normalized": Label("normalized margin"),
    "participation_ratio": Label("participation ratio (dimensions)", 1),
    "effective_rank": Label("effective rank (dimensions)", 1),
    "stable_rank": Label("stable rank (dimensions)", 1),
    "soft_rank": Label("soft rank (dimensions)", 1),
    "intrinsic_dimension": Label("intrinsic dimension (TwoNN)", 0),
    "intrinsic_dimension_error": Label("standard error of the intrinsic dimension", 0),
    "anisotropy": Label("mean cosine between samples", -1, 1),
    "norm_mean": Label("mean Euclidean norm of samples", 0),
    "norm_cv": Label("coefficient of variation of sample norms", 0),
    "nc1": Label("separation fuzziness (NC1)", 0),
    "nc2_norm": Label("variation of class-mean norms (NC2)", 0),
    "nc2_angle": Label("deviation from equal angles (NC2)", 0, 2),
    "nc3": Label("distance of weights and class means (NC3)", 0, 2),
    "ncc_agreement": Label("agreement with the nearest class mean", 0, 1),
    "linear_probe": Label("accuracy of a linear probe", 0, 1),
    "mean": Label("mean activation"),
    "variance": Label("variance of activations", 0),
    "skewness": Label("skewness of activations"),
    "kurtosis": Label("excess kurtosis of activations", -2),
    "saturation": Label("share of activations ≤ 0", 0, 1),
    "accuracy": Label("accuracy", 0, 1),
    "probe_accuracy": Label("accuracy on the probe set", 0, 1),
    "loss": Label("loss", 0),
    "probe_loss": Label("loss on the probe set", 0),
    "recalibrated_loss": Label("loss with recomputed running statistics", 0),
    "recalibrated_accuracy": Label("accuracy with recomputed running statistics", 0, 1),
    "batch_statistics_loss": Label("loss with the statistics of each batch", 0),
    "batch_statistics_accuracy": Label("accuracy with the statistics of each batch", 0, 1),
    "running_mean_error": Label("error of the running mean", 0),
    "running_variance_error": Label("error of the running variance", 0),
    "loss_range": Label("range of the loss along the gradient", 0),
    "first_order_error": Label("error of the linear prediction of the loss", 0),
    "gradient_change": Label("change of the gradient along its direction", 0),
    "beta_smoothness": Label("smoothness constant along the gradient", 0),
    "gradient_norm": Label("norm of the weights' gradient", 0),
    "mean_drift": Label("shift of channel means since the last epoch", 0),
    "std_drift": Label("shift of channel SDs since the last epoch", 0),
    "weight_norm": Label("norm of the weights", 0),
    "gamma_norm": Label("norm of the scale parameters", 0),
    "beta_norm": Label("norm of the shift parameters", 0),
    "effective_lr": Label("effective learning rate", 0),
    "hessian_trace": Label("trace of the Hessian"),
    "hessian_trace_error": Label("standard error of the Hessian's trace", 0),
    "separation_slope": Label("change of log separation fuzziness per layer"),
    "separation_r_squared": Label("R² of the separation law", 0, 1),
    "tunnel_start": Label("start of the tunnel (relative depth)", 0, 1),
    "initial_rank": Label("soft rank before training (dimensions)", 1),
    "initial_orthogonality_gap": Label("orthogonality gap before training", 0),
}


EIGENVALUE = re.compile(r"hessian_eigenvalue_(\d+)")  # 1 is the largest
SUFFIXES = {"1": "st", "2": "nd", "3": "rd"}  # of ordinal numbers


def label_of(metric: str) -> Label:
    """Find the label of a metric; a name without one is split into words.

    Args:
        metric: Name in the records.

    Examples:
        >>> label_of("unit_sparsity").words, label_of("my_metric")
        ('share of zero activations', Label(words='my metric', low=-inf, high=inf))
        >>> label_of("hessian_eigenvalue_2").words
        '2nd largest eigenvalue of the Hessian'
    """
    if eigenvalue := EIGENVALUE.fullmatch(metric):
        number = eigenvalue[1]
        suffix = "th" if number[-2:-1] == "1" else SUFFIXES.get(number[-1], "th")
        ordinal = "" if number == "1" else f"{number}{suffix} "
        return Label(f"{ordinal}largest eigenvalue of the Hessian")
    return LABELS.get(metric) or Label(metric.replace("_", " "))


def name_layer(place: str) -> str:
    """Name a layer or relative depth; "layer" is put before a name that begins with a digit.

    Layers of nn.Sequential have such names.

    Examples:
        >>> name_layer("block04"), name_layer("2"), name_layer("2 / 3")
        ('block04', 'layer 2', 'layer 2 / layer 3')
    """
    return " / ".join(
        f"layer {name}" if name[:1].isdigit() else name for name in place.split(" / ")
    )


def layer_in_words(place: str) -> str:
    """Name a layer or relative depth in words.

    Args:
        place: Name in the records.

    Examples:
        >>> layer_in_words("block04"), layer_in_words("block01.conv"), layer_in_words("depth 25 %")
        ('block 4', 'block 1.conv', 'depth 25 %')
        >>> layer_in_words("2"), layer_in_words("2 / 3")  # layers of nn.Sequential
        ('layer 2', 'layer 2 / layer 3')
    """
    return re.sub(r"\bblock0*(\d+)\b", r"block \1", name_layer(place))
