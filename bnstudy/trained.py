"""A run that has been trained, with the weights of one of its epochs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bnstudy.build import build, load_weights
from bnstudy.errors import UserError
from bnstudy.representations import Layer, capture
from bnstudy.runs.record import Record
from bnstudy.terms import SPLITS, Split


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
        if not record.has_ended:
            raise UserError(f"{folder}: {record.status}; train it to its end first")
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

    def layers(self, split: Split, samples: int, sites: Sequence[str]) -> Iterator[Layer]:
        """The layers; let go of one before the next is asked for, and they take little memory.

        Args:
            split: Of whose probe set.
            samples: Of that set, class-balanced; the same ones for every run of a data set.
            sites: Where in a layer.

        Raises:
            UserError: The data cannot be had, or are fewer than that.
        """
        probe = {one: samples if one == split else 1 for one in SPLITS}
        data, classifier = build(self.record.description["config"] | {"probe": probe}, self.record)
        load_weights(classifier, self.record.checkpoints()[self.epoch])
        return capture(classifier, data.probe(split), sites=sites)
