"""The record of a run: its description, its long table, and the lease of its cell's folder."""

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from bnstudy.errors import UserError
from bnstudy.files import replacing
from bnstudy.runs.description import ENDED, Attempt, DataFacts, Environment, RunDescription
from bnstudy.runs.lease import CellInUse, Lease, forget, held
from bnstudy.runs.long_table import LongTable
from bnstudy.runs.paths import CellPaths
from bnstudy.runs.version import VERSION


class DamagedRecord(UserError):
    """A run.json that is no description of a run.

    Args:
        path: The file.
        reason: What is wrong with it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(_unreadable(path, reason))
        self.reason = reason


class Record:
    """The record in one cell's folder.

    Args:
        folder: Folder of the cell.
        description: Content of run.json.
        lease: Lease of the folder, without which another process may write to it as well; None to
            read only.

    Attributes:
        paths: Files of the cell.
        table: The long table.
    """

    def __init__(
        self, folder: Path, description: RunDescription, lease: Lease | None = None
    ) -> None:
        self.folder = folder
        self.paths = CellPaths(folder)
        self.description = description
        self.lease = lease
        self._began = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the lease, which is this process's: a launcher brings the record to another."""
        return self.__dict__ | {"lease": None}

    @classmethod
    @contextmanager
    def held(cls, folder: Path, run: RunDescription | None = None) -> Iterator[Self]:
        """Take a cell's lease, remove what a killed process left, and read the record.

        Args:
            folder: Folder of the cell.
            run: Description of the run that is expected, as it is before its first attempt: it is
                taken where the folder has no record, or a damaged one, which is set aside. None:
                whichever run is there.

        Raises:
            CellInUse: Another process works in the cell.
            UserError: There is no record, it cannot be read, or it is that of another run.
        """
        with held(folder) as lease:
            paths = CellPaths(folder)
            paths.remove_leftovers()
            record = cls.read(folder) if run is None else cls._read_or_begin(paths, run)
            record.lease = lease
            if run is not None:
                record._repair_table()
            yield record

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the record in a folder.

        Raises:
            DamagedRecord: It is damaged.
            UserError: There is none, or it cannot be read.
        """
        path = CellPaths(folder).record
        try:
            return cls(folder, RunDescription.from_json(path.read_bytes(), path))
        except OSError as error:
            raise UserError(_unreadable(path, str(error))) from error
        except ValueError as error:
            raise DamagedRecord(path, str(error)) from error

    @property
    def table(self) -> LongTable:
        """The long table, written to under the lease."""
        return LongTable(self.paths, self.replacing)

    @property
    def has_ended(self) -> bool:
        """Whether the run has been trained to its end, and its table is there."""
        return self.description.status in ENDED and self.table.damage() is None

    def require_end(self) -> None:
        """Make sure that the run has ended.

        Raises:
            UserError: It has not ended.
        """
        if not self.has_ended:
            raise UserError(f"{self.folder}: {self.description.status}; train it to its end first")

    def require_this_version(self) -> None:
        """Make sure that numbers of this bnstudy may be added to the run's.

        Raises:
            UserError: The run is of another version.
        """
        version = self.description.version
        if version != VERSION:
            raise UserError(
                f"{self.folder}: trained by bnstudy {version}; measured by {VERSION}, it "
                "would have numbers of both\n"
                "Train it again with sweep.redo=all -m or in another study=NAME, or measure it "
                f"with bnstudy {version}"
            )

    @property
    def last_epoch(self) -> int:
        """Last epoch of a run that has ended."""
        last = self.description.final.epoch
        assert last is not None
        return last

    @property
    def data(self) -> DataFacts:
        """Facts about the data of a run that has loaded them."""
        data = self.description.data
        assert data is not None
        return data

    def checkpoints(self) -> dict[int, Path]:
        """Find the weights that were kept, by epoch, those of the last epoch among them."""
        kept = self.paths.checkpoints()
        if self.has_ended:
            kept.setdefault(self.last_epoch, self.paths.last_checkpoint)
        return kept

    @contextmanager
    def attempt(self, environment: Environment) -> Iterator[Attempt]:
        """Build and train in the body, and record how it went, whatever happens.

        A mistake of the user's, found before training, is no attempt: nothing is recorded of it.

        Args:
            environment: Software and hardware of this process.

        Yields:
            The attempt, to be told what it goes on from and whether it has diverged.
        """
        description = self.description
        before = description.status, description.environment
        attempt = description.start_attempt(environment)
        self._began = time.monotonic()
        self.save()
        try:
            yield attempt
        except UserError as error:
            if self.paths.part(0).exists():  # it was trained, so it counts: the disk is full, say
                description.fail(error, self._seconds())
            else:
                description.withdraw_attempt(*before)
            raise
        except Exception as error:
            description.fail(error, self._seconds())
            raise
        except BaseException:  # SIGINT and SIGTERM
            description.interrupt(self._seconds())
            raise
        else:
            description.finish(self._seconds())
        finally:
            if description.status is None:  # nothing has come of it
                self.paths.record.unlink()
            else:
                self.save()

    def note(self, measure_seconds: float, diverged: bool) -> None:
        """Record the progress of the attempt that goes on: it may yet be killed.

        Args:
            measure_seconds: Time that was spent on measuring.
            diverged: Whether training has diverged.
        """
        self.description.note(self._seconds(), measure_seconds, diverged)
        self.save()

    def has_parts(self, epochs: Iterable[int]) -> bool:
        """Whether the parts of some epochs are there; damaged ones are set aside."""
        missing = False
        for epoch in epochs:
            if damage := self.table.part_damage(epoch):
                self.set_aside(self.paths.part(epoch), damage)
                missing = True
        return not missing

    def join_parts(self) -> None:
        """Make the long table of its parts, and set the final numbers from its last epoch."""
        self.description.final = self.table.join_parts()

    def remove_parts(self) -> None:
        """Remove what a run that has ended needs no more."""
        self.paths.remove_parts()
        self.paths.previous_checkpoint.unlink(missing_ok=True)

    def start_over(self) -> None:
        """Remove what the run had come to, except for the story of its attempts."""
        self.description.start_over()
        self.save()
        self.paths.remove_results()

    def set_aside(self, path: Path, reason: str) -> None:
        """Rename a damaged file of the cell.

        Args:
            path: The file.
            reason: What is wrong with it.
        """
        self.paths.set_aside(path, reason)

    def save(self) -> None:
        """Write run.json."""
        with self.replacing(self.paths.record) as temporary:
            temporary.write_text(self.description.to_json())

    def replacing(self, path: Path) -> AbstractContextManager[Path]:
        """Write a file as `bnstudy.files.replacing` does, as long as the cell is this process's.

        Raises:
            CellInUse: Another process has taken it over.
        """
        if self.lease is not None:
            self.lease.check()
        return replacing(path)

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    @classmethod
    def _read_or_begin(cls, paths: CellPaths, run: RunDescription) -> Self:
        """Read the record of a run, or begin one where there is none or a damaged one."""
        if not paths.record.exists():
            return cls(paths.folder, run)
        try:
            record = cls.read(paths.folder)
        except DamagedRecord as error:
            record = cls(paths.folder, run)
            record.set_aside(paths.record, error.reason)
        if record.description.identity != run.identity:
            raise UserError(
                f"{paths.folder} holds another run: identity {record.description.identity[:8]}, "
                f"not {run.identity[:8]}\nMove that folder away, or choose another study=NAME"
            )
        return record

    def _repair_table(self) -> None:
        """Make of the files what the description says: a table, or else its parts."""
        if self.description.status is None:  # a table without its run.json
            damage = self.table.damage()
            if damage is None:
                self.table.take_apart()
            else:
                self.set_aside(self.paths.table, damage)
        elif self.description.status in ENDED and (damage := self.table.damage()):
            self.set_aside(self.paths.table, damage)


class Observer(Record):
    """The record as seen by a distributed run's other processes, which write none of it."""

    @classmethod
    @contextmanager
    def held(cls, folder: Path, run: RunDescription | None = None) -> Iterator[Self]:
        """Read the record, without a lease.

        Args:
            folder: Folder of the cell.
            run: Description of the run that is expected, taken where there is no record.

        Raises:
            UserError: There is no record, it cannot be read, or it is that of another run.
        """
        paths = CellPaths(folder)
        yield cls.read(folder) if run is None else cls._read_or_begin(paths, run)

    @contextmanager
    def attempt(self, environment: Environment) -> Iterator[Attempt]:
        """Build and train in the body, of which the first process records how it went."""
        yield Attempt(status="running")

    def join_parts(self) -> None:
        """Leave the long table to the first process."""

    def set_aside(self, path: Path, reason: str) -> None:
        """Leave a damaged file to the first process."""

    def save(self) -> None:
        """Leave run.json to the first process."""


def discard_if_empty(folder: Path, root: Path) -> None:
    """Remove the folder that Hydra made for a cell of which nothing came, up to the output root."""
    paths = CellPaths(folder)
    with suppress(CellInUse):
        with held(folder):
            nothing = not paths.record.exists()
            if nothing:
                paths.remove_hydras()
        if nothing:
            forget(folder)
    with suppress(OSError):  # something is in it
        for empty in (folder, *folder.parents):
            if empty.absolute() == root.absolute():
                break
            empty.rmdir()


def _unreadable(path: Path, reason: str) -> str:
    return (
        f"{path} cannot be read ({reason})\n"
        "Train the cell again: it goes on from its last checkpoint; or put the file back"
    )
