"""Words that several rooms share, in a room of their own that needs nothing."""

from typing import Literal

# What every data set comes with; the representations of both are measured.
Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")

# What loss and accuracy are of: `validation` where some of the training samples are held out.
EvaluatedSplit = Literal["train", "validation", "test"]
EVALUATED_SPLITS: tuple[EvaluatedSplit, ...] = ("train", "validation", "test")

# Groups and keys of options that may have a value of each norm, as {batchnorm: 0.1, none: 0.01}.
PER_NORM_OPTIONS = (("optim", "lr"), ("model", "residual_init"))

# Where in a layer representations are read; `features` is what the last linear layer reads.
SITES = ("conv", "norm", "act", "features")


def layer_label(layer: str, site: str | None) -> str:
    """Label a layer's site: block01 at the activation, block01.conv at another site.

    Args:
        layer: Name of the layer.
        site: Site in the layer; None for the whole model.
    """
    return layer if site in ("act", None) else f"{layer}.{site}"
