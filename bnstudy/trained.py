"""A run that has been trained, with the weights of one of its epochs."""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bnstudy.build import build, load_weights
from bnstudy.errors import UserError
from bnstudy.representations import Layer, capture
from bnstudy.runs.record import Record
from bnstudy.terms import SITES, SPLITS, Split

FEWEST = 4  # samples: of fewer there is no debiased CKA


@dataclass(frozen=True)
class Trained:
    """A run that has ended, at an epoch whose weights it kept.

    Attributes:
        record: Of the run.
        epoch: Whose weights.
    """

    record: Record
    epoch: int

    @classmethod
    def of(cls, folder: Path, epoch: int | None) -> "Trained":
        """The run in a folder, at an epoch or, where that is None, at its last one.

        Raises:
            UserError: It has not ended, or has not kept the weights of that epoch.
        """
        if not (folder / "run.json").exists():
            raise UserError(f"{folder}: no run.json in it; give the folder of one run")
        record = Record.read(folder)
        record.require_end()
        kept = record.checkpoints()
        chosen = record.description["final"]["epoch"] if epoch is None else epoch
        if chosen not in kept:
            raise UserError(
                f"--epoch {epoch}: {folder} has the weights of epochs {', '.join(map(str, kept))}; "
                "checkpoint_epochs=all makes bnstudy.train keep every epoch's"
            )
        return cls(record, chosen)

    @property
    def name(self) -> str:
        """The cell's."""
        return self.record.folder.resolve().name

    def layers(
        self,
        split: Split,
        samples: int,
        sites: Sequence[str],
        memory_budget: float | None = None,
    ) -> Iterator[Layer]:
        """The layers; let go of one before the next is asked for, and they take little memory.

        Args:
            split: Of whose probe set.
            samples: Of that set, class-balanced; the same ones for every run of a data set.
            sites: Where in a layer.
            memory_budget: GiB that activations and the distances between samples may take; None:
                as when it was trained.

        Raises:
            UserError: The data cannot be had, are fewer than that, or do not fit into the budget.
        """
        config = self.record.description["config"]
        there = self.record.description["data"][split]
        if samples > there:
            raise UserError(f"--samples {samples}: the {split} split has {there}")
        probe = config["probe"] | {split: samples}
        data, classifier = build(config | {"probe": probe}, self.record)
        load_weights(classifier, self.record.checkpoints()[self.epoch], data)
        budget = memory_budget or config["metrics"]["memory_budget"]
        return capture(classifier, data.probe(split), sites=sites, memory_budget=budget)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a command line that say what is read of a run: `epoch`, and of `layers`.

    Args:
        parser: Of the command line.
    """
    parser.add_argument("--epoch", type=int, metavar="N", help="whose weights; the last one's")
    parser.add_argument("--split", choices=SPLITS, default="test", help="whose samples; test")
    parser.add_argument(
        "--samples", type=_samples, default=1000, metavar="N", help="of the split, how many; 1000"
    )
    parser.add_argument(
        "--sites", nargs="+", choices=SITES, default=["act"], help="where in a layer; act"
    )
    parser.add_argument(
        "--memory-budget",
        type=_gibibytes,
        metavar="GIB",
        help="as metrics.memory_budget; the run's",
    )


def _samples(text: str) -> int:
    if not text.isdecimal() or int(text) < FEWEST:
        raise argparse.ArgumentTypeError(f"{text}: it takes an integer of at least {FEWEST}")
    return int(text)


def _gibibytes(text: str) -> float:
    try:
        budget = float(text)
    except ValueError:
        budget = 0
    if not 0 < budget < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: it takes a number above 0")
    return budget
