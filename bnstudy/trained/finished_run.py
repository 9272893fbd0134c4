"""A finished run, read again with the weights of one of its epochs."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bnstudy.errors import UserError
from bnstudy.representations import Layer, capture
from bnstudy.runs.record import Record
from bnstudy.trained.selection import Selection
from bnstudy.training.build import build, load_weights


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, with the weights of one epoch.

    Attributes:
        record: Record of the run.
        epoch: Epoch of the weights.
    """

    record: Record
    epoch: int

    @classmethod
    def open(cls, folder: Path, epoch: int | None) -> "FinishedRun":
        """Open the run in a folder, at an epoch or, where that is None, at its last one.

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
        """Name of the cell."""
        return self.record.folder.resolve().name

    def layers(self, selection: Selection) -> Iterator[Layer]:
        """Read the layers; release each before the next is asked for, to save memory.

        Raises:
            UserError: The data cannot be had, are fewer than that, or do not fit into the budget.
        """
        split, samples = selection.split, selection.samples
        config = self.record.description["config"]
        there = self.record.description["data"][split]
        if samples > there:
            raise UserError(f"--samples {samples}: the {split} split has {there}")
        probe = config["probe"] | {split: samples}
        data, classifier = build(config | {"probe": probe}, self.record)
        load_weights(classifier, self.record.checkpoints()[self.epoch], data)
        budget = selection.memory_budget or config["metrics"]["memory_budget"]
        return capture(classifier, data.probe(split), sites=selection.sites, memory_budget=budget)
