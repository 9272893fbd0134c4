"""A finished run, loaded with the weights of one of its epochs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnstudy.config.schema import validate
from bnstudy.config.targets import require_trusted
from bnstudy.data import DataModule
from bnstudy.data.contents import locate
from bnstudy.errors import DamagedFile, UserError
from bnstudy.models import Classifier
from bnstudy.representations import Layer, capture
from bnstudy.runs.paths import RECORD, CellPaths
from bnstudy.runs.record import Record
from bnstudy.terms import Split
from bnstudy.trained.selection import Selection
from bnstudy.training.build import build_classifier, load_data, load_weights
from bnstudy.training.data_check import note_data
from bnstudy.training.twin import with_target_sparsity

REBUILT_GROUPS = ("model", "norm", "regularizer", "optim", "data", "probe")


def rebuild(
    record: Record, data_folders: Mapping[str, Any], probe: Mapping[Split, int] | None = None
) -> tuple[DataModule, Classifier]:
    """Build a finished run's data and network again, with its initial weights.

    Args:
        record: Record of the run.
        data_folders: Current `root` and `cache` of the data, in case the data have moved; see
            `bnstudy.data.contents.locate`.
        probe: Number of measured samples by split, where it differs from the one in training.

    Raises:
        UserError: The record's configuration is not allowed or names code that is not trusted; or
            the data cannot be loaded, or differ from those that the run was trained on.
    """
    config = _check_config(record)
    config = config | {
        "data": locate(config["data"], data_folders),
        "probe": config["probe"] | dict(probe or {}),
    }
    data = load_data(config)
    note_data(record, config, data.facts())
    return data, build_classifier(with_target_sparsity(record, config), data)


def _check_config(record: Record) -> dict[str, Any]:
    """Verify that it is safe to build a run from its recorded configuration, and return this."""
    config = record.description.config
    if record.has_altered_config:
        raise DamagedFile(
            record.paths.record,
            "its options do not match its identity",
            "Restore the original file",
        )
    try:
        groups = {name: config[name] for name in REBUILT_GROUPS}
        require_trusted(groups)
        validate(groups)
    except UserError as error:
        raise UserError(f"{record.paths.record}: {error}") from error
    return config


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
        """Open the run in a folder for reading, without taking its lease.

        Args:
            folder: Folder of the run.
            epoch: Epoch of the weights; None: the last epoch.

        Raises:
            UserError: The folder has no run, the run is not finished, or the weights of that epoch
                were not saved.
        """
        if not CellPaths(folder).record.exists():
            raise UserError(f"{folder}: no {RECORD} in it; give the folder of one run")
        return cls.from_record(Record.read(folder), epoch)

    @classmethod
    def from_record(cls, record: Record, epoch: int | None) -> "FinishedRun":
        """Select an epoch of a run.

        Args:
            record: Record of the run.
            epoch: Epoch of the weights; None: the last epoch.

        Raises:
            UserError: The run is not finished, or the weights of that epoch were not saved.
        """
        record.require_finished()
        checkpoints = record.checkpoints()
        selected = record.last_epoch if epoch is None else epoch
        if not checkpoints:
            raise UserError(
                f"{record.folder}: it has no weights\n"
                "They may have been deleted, or not downloaded. bnstudy does not save weights in "
                "your own training loop (Run.measure)"
            )
        if selected not in checkpoints:
            raise UserError(
                f"--epoch {selected}: {record.folder} has the weights of epochs "
                f"{', '.join(map(str, checkpoints))}; "
                "checkpoint_epochs=all makes bnstudy.train keep every epoch's"
            )
        return cls(record, selected)

    @property
    def name(self) -> str:
        """Name of the cell's folder."""
        return self.record.folder.resolve().name

    def read_layers(self, selection: Selection) -> Iterator[Layer]:
        """Read the layers one by one; to save memory, release each before requesting the next.

        Args:
            selection: Samples and sites to read.

        Raises:
            UserError: The data cannot be loaded, have too few samples, or exceed the memory budget.
        """
        split, samples = selection.split, selection.samples
        available = self.record.data.num_samples(split)
        if samples > available:
            raise UserError(f"--samples {samples}: the {split} split has {available}")
        data, classifier = rebuild(self.record, selection.data_folders, {split: samples})
        load_weights(classifier, self.record.checkpoints()[self.epoch], data)
        budget = (
            selection.memory_budget or self.record.description.config["metrics"]["memory_budget"]
        )
        return capture(classifier, data.probe(split), sites=selection.sites, memory_budget=budget)
