"""Terms that several packages share; this module imports nothing from bnstudy."""

from typing import Literal

# Splits of every data set; representations are measured on both.
Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")

# Splits on which loss and accuracy are computed; `validation` only if samples are held out.
EvaluatedSplit = Literal["train", "validation", "test"]
EVALUATED_SPLITS: tuple[EvaluatedSplit, ...] = ("train", "validation", "test")

# Sites of a layer where representations are read; `features` is the last linear layer's input.
SITES = ("conv", "norm", "act", "features")
