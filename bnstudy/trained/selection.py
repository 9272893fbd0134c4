"""The part of a finished run's representations that is read."""

from dataclasses import dataclass

from bnstudy.terms import Split

MIN_SAMPLES = 4  # debiased CKA needs as many


@dataclass(frozen=True)
class Selection:
    """Part of a run's representations that is read.

    Attributes:
        split: Split whose probe set is read.
        samples: Number of samples, class-balanced; the same ones for every run of a data set.
        sites: Sites in a layer, as in `bnstudy.terms.SITES`.
        memory_budget: GiB for activations and the distances between samples; None: as in training.
    """

    split: Split
    samples: int
    sites: tuple[str, ...]
    memory_budget: float | None = None
