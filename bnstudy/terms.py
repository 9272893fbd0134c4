"""Terms that several packages share; this module imports nothing from bnstudy."""

import difflib
import re
from collections.abc import Collection, Container
from typing import Literal

# Splits of every data set; representations are measured on both.
Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")

# Splits on which loss and accuracy are computed; `validation` only if samples are held out.
EvaluatedSplit = Literal["train", "validation", "test"]
EVALUATED_SPLITS: tuple[EvaluatedSplit, ...] = ("train", "validation", "test")

# Metrics of the whole model. `loss` and `accuracy` are those of whole splits, before training and
# after the last epoch; those of the probe sets are measured at each measured epoch.
PROBE_PERFORMANCE = ("probe_loss", "probe_accuracy")
PERFORMANCE = ("loss", "accuracy", *PROBE_PERFORMANCE)

# Metrics that are standard errors of others; they are not compared between runs.
STANDARD_ERRORS = ("hessian_trace_error",)

# Beginning of the reason why a metric has no value at a layer to which it does not apply.
NOT_APPLICABLE = "does not apply: "

# Options (group, key) that may have one value per norm, such as {batchnorm: 0.1, none: 0.01}.
PER_NORM_OPTIONS = (
    ("optim", "lr"),
    ("optim", "adaptive_clipping"),
    ("model", "residual_init"),
    ("model", "normalizer_free"),
)

# Sites of a layer where representations are read; `features` is the last linear layer's input.
SITES = ("conv", "norm", "act", "features")

# Norms that contain their own activation function; a ReLU follows all other norms.
FUSED_NORMS = ("evonorm_b0", "evonorm_s0")

# Metrics that count zero activations; they are meaningful only after a ReLU.
ZERO_METRICS = (
    *("unit_sparsity", "channel_sparsity", "unit_sparsity_channel_std"),
    *("dead_channels", "dead_units"),
)


def format_count(number: int, noun: str) -> str:
    """Format a number with its noun, such as 1 run or 2 runs."""
    return f"{number} {noun}{'s' if number != 1 else ''}"


def suggest(word: str, known: Collection[str], n: int = 3) -> str:
    """Suggest known words that are similar to an unknown word, ignoring case; "" if none are.

    Examples:
        >>> suggest("cnn", ["CNN", "ResNet"])
        'did you mean CNN?'
        >>> suggest("cka", ["silhouette"])
        ''
    """
    lower_names = {name.lower() for name in known}
    matches = difflib.get_close_matches(word.lower(), lower_names, n)
    names = [name for match in matches for name in known if name.lower() == match]
    choice = " or ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
    return f"did you mean {choice}?" if names else ""


def is_provided(target: object) -> bool:
    """Check whether bnstudy provides the class that a `_target_` names.

    A user's own class may give other meanings to the same keys.
    """
    return str(target).startswith("bnstudy.")


def natural_key(text: str) -> list[str | float]:
    """Return a sorting key by which numbers in a text are ordered by their value.

    Examples:
        >>> sorted(["width=16", "width=8", "lr=1e-05", "lr=0.1"], key=natural_key)
        ['lr=1e-05', 'lr=0.1', 'width=8', 'width=16']
    """
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", text)
    return [float(part) if number % 2 else part for number, part in enumerate(parts)]


def choose_curve(metric: str, measured: Container[str]) -> str:
    """Choose the metric that shows loss or accuracy at each epoch.

    That is the probe set's, if it was measured; version 0.1 did not measure it.

    Args:
        metric: `loss` or `accuracy`.
        measured: Names of the metrics that were measured.
    """
    return f"probe_{metric}" if f"probe_{metric}" in measured else metric


def layer_label(layer: str, site: str | None) -> str:
    """Label a layer's site: block01 at the activation, block01.conv at another site.

    Args:
        layer: Name of the layer.
        site: Site in the layer; None for the whole model.
    """
    return layer if site in ("act", None) else f"{layer}.{site}"
