"""Selection of a finished run's representations: split, samples and sites."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bnstudy.terms import Split

MIN_SAMPLES = 4  # debiased CKA is undefined for fewer


@dataclass(frozen=True)
class Selection:
    """Selection of a run's representations.

    Attributes:
        split: Split whose probe set is read.
        samples: Number of samples, class-balanced; they are the same for every norm and seed.
        sites: Sites in a layer, as in `bnstudy.terms.SITES`.
        memory_budget: Memory limit for activations and the distances between samples, in GiB; None:
            that of the run's configuration.
        data_folders: Current `root` and `cache` of the data, in case the data have moved.
    """

    split: Split
    samples: int
    sites: tuple[str, ...]
    memory_budget: float | None = None
    data_folders: Mapping[str, Any] = field(default_factory=dict)
