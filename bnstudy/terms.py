"""Words that several rooms share, in a room of their own that needs nothing."""

from typing import Literal

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")

# Where in a layer representations are read; `features` is what the last linear layer reads.
SITES = ("conv", "norm", "act", "features")
