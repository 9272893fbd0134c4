"""Record of a run: its description, its long table and the lease of its cell's folder."""

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, Self

from bnstudy.errors import DamagedFile, UserError
from bnstudy.files import replacing
from bnstudy.runs.description import RunDescription
from bnstudy.runs.lease import CellInUse, Lease, hold_lease, remove_leases
from bnstudy.runs.long_table import LongTable
from bnstudy.runs.parts import FINISHED, Attempt, DataFacts, Environment
from bnstudy.runs.paths import PATCHES, CellPaths, list_cells
from bnstudy.runs.version import VERSION

RECOVERY = "Repeat the training command to continue from the last checkpoint, or restore the file"


class Record:
    """Record of a run in its cell's folder.

    Args:
        folder: Folder of the cell.
        description: Content of run.json.

    Attributes:
        paths: Files of the cell.
        lease: Lease of the folder, which excludes writes of other processes; None for reading only.
        has_unreplaced_result: Whether `bnstudy.Run` has opened the folder of a finished run to
            overwrite it, and has not written a value yet. Until then the old result stays, and
            `save` does nothing.
    """

    def __init__(self, folder: Path, description: RunDescription) -> None:
        self.folder = folder
        self.paths = CellPaths(folder)
        self.description = description
        self.lease: Lease | None = None
        self.has_unreplaced_result = False
        self._began = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Exclude the lease from pickling, because it belongs to this process."""
        return self.__dict__ | {"lease": None}

    @classmethod
    @contextmanager
    def open(cls, folder: Path, run: RunDescription | None = None) -> Iterator[Self]:
        """Hold a cell's lease in the body, remove leftover temporary files, and read the record.

        Args:
            folder: Folder of the cell.
            run: Description of the run that the folder should contain. If the record is missing or
                damaged, a new one is started from this description. A damaged run.json is renamed,
                and so is a damaged table of a finished run. If None, a readable record must exist,
                and may be that of any run.

        Raises:
            CellInUse: Another process is working in the cell.
            UserError: There is no record, it cannot be read, or it belongs to another run.
        """
        with hold_lease(folder) as lease:
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
            DamagedFile: The record is damaged.
            UserError: There is no record, or it cannot be read.
        """
        path = CellPaths(folder).record
        try:
            return cls(folder, RunDescription.from_json(path.read_bytes(), path))
        except (IsADirectoryError, ValueError) as error:
            raise DamagedFile(path, getattr(error, "strerror", str(error)), RECOVERY) from error
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error})\n{RECOVERY}") from error

    @property
    def table(self) -> LongTable:
        """Long table of the run; each write verifies the lease."""
        return LongTable(self.paths, self.replacing)

    @property
    def is_finished(self) -> bool:
        """Whether the run has been trained to its end and its table is intact."""
        return self.description.status in FINISHED and self.table.find_damage() is None

    def describe_table_damage(self) -> str | None:
        """Describe the damage of a run's table and how to recreate it.

        Returns:
            Description; None if the table is intact, or if the run was not trained to its end.
        """
        if self.description.status not in FINISHED or (damage := self.table.find_damage()) is None:
            return None
        state = f"damaged ({damage})" if self.paths.table.exists() else "not there"
        return (
            f"{self.paths.table.name} is {state}; bnstudy.measure recreates it from the "
            "saved checkpoints, bnstudy.train trains the run again"
        )

    def require_finished(self) -> None:
        """Verify that the run is finished.

        Raises:
            UserError: The run is not finished, or its table is damaged.
        """
        if not self.is_finished:
            unfinished = f"{self.description.status}; train it to its end first"
            reason = self.describe_table_damage() or unfinished
            raise UserError(f"{self.folder}: {reason}")

    @property
    def has_altered_config(self) -> bool:
        """Whether the configuration no longer matches the identity: it was edited or damaged.

        Only records of this version are checked, because other versions may have other options.
        """
        description = self.description
        return description.version == VERSION and not description.matches_identity

    def require_this_version(self) -> None:
        """Verify that this version of bnstudy may add numbers to the run's record.

        Raises:
            UserError: Another version of bnstudy trained the run.
        """
        version = self.description.version
        if version != VERSION:
            raise UserError(
                f"{self.folder}: this run was trained by bnstudy {version}; with measurements of "
                f"{VERSION}, the record would mix both versions\n"
                "Train it again with sweep.redo=all -m or in another study=NAME, or measure it "
                f"with bnstudy {version}"
            )

    @property
    def last_epoch(self) -> int:
        """Last epoch of a finished run."""
        last = self.description.final.epoch
        assert last is not None  # `RunDescription.from_json` verifies it
        return last

    @property
    def data(self) -> DataFacts:
        """Facts about the data of a run that has loaded them.

        Raises:
            DamagedFile: The record has none.
        """
        if self.description.data is None:
            raise DamagedFile(self.paths.record, "data: missing", RECOVERY)
        return self.description.data

    def checkpoints(self) -> dict[int, Path]:
        """Find the saved weights by epoch; for a finished run, with those of the last epoch."""
        kept = self.paths.checkpoints()
        # The user's own training loop saves no last.ckpt.
        if self.is_finished and self.paths.last_checkpoint.exists():
            kept.setdefault(self.last_epoch, self.paths.last_checkpoint)
        return kept

    @contextmanager
    def attempt(self, environment: Environment) -> Iterator[Attempt]:
        """Record that the body attempts to build and train the run, and the outcome.

        If the body raises a UserError before it has recorded an epoch, the attempt is not recorded,
        and the description is restored.

        Args:
            environment: Software and hardware of this process.

        Yields:
            Attempt, in which the body sets `resumed_from_epoch` and `diverged`.
        """
        before = self.description.model_copy(deep=True)
        description = self.description
        attempt = description.start_attempt(environment)
        self._began = time.monotonic()
        self.save()
        try:
            yield attempt
        except UserError as error:
            if attempt.diverged is None:  # no epoch is recorded: a mistake that the user corrects
                self.description = before
            else:  # arose during training, such as a full disk
                description.fail(error, self._seconds())
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
            if self.description.status is None:  # the only attempt was not recorded
                self.paths.record.unlink()
            else:
                self.save()

    def save_progress(self, measure_seconds: float, diverged: bool) -> None:
        """Save the progress of the running attempt, in case its process is killed.

        Args:
            measure_seconds: Time that was spent on measuring.
            diverged: Whether training has diverged.
        """
        self.description.update_progress(self._seconds(), measure_seconds, diverged)
        self.save()

    def verify_parts(self, epochs: Iterable[int]) -> bool:
        """Rename the damaged parts of some epochs; return whether all parts are intact."""
        damages = {epoch: self.table.find_part_damage(epoch) for epoch in epochs}
        for epoch, damage in damages.items():
            if damage:
                self.set_aside(self.paths.part(epoch), damage)
        return not any(damages.values())

    def join_parts(self) -> None:
        """Write the long table from its parts, and set the final numbers from its last epoch."""
        self.description.final = self.table.join_parts()

    def recreate_table(self, step: int) -> None:
        """Replace a missing or damaged table by one that contains only the final numbers.

        They are read from run.json. A damaged file is renamed. Measurements from checkpoints are
        removed from the description, because their rows are lost.

        Args:
            step: Total number of optimizer steps.
        """
        if (damage := self.table.find_damage()) is not None:
            self.set_aside(self.paths.table, damage)
        self.table.write_final(self.description.final, step)
        self.description.measured_later = []
        self.save()

    def remove_intermediate_files(self) -> None:
        """Remove the table's parts and the previous checkpoint of a finished run."""
        self.paths.remove_parts()
        self.paths.previous_checkpoint.unlink(missing_ok=True)

    def start_over(self) -> None:
        """Remove all results of the run; the list of its attempts is kept."""
        self.description.start_over()
        self.save()
        self.paths.remove_results()

    def set_aside(self, path: Path, reason: str) -> None:
        """Rename a damaged file of the cell.

        Args:
            path: Damaged file.
            reason: Description of the damage.
        """
        self.paths.set_aside(path, reason)

    def save(self) -> None:
        """Write run.json, unless `has_unreplaced_result` is true."""
        if not self.has_unreplaced_result:
            with self.replacing(self.paths.record) as temporary:
                temporary.write_text(self.description.to_json())

    def replacing(self, path: Path) -> AbstractContextManager[Path]:
        """Verify the lease, then write a file by `bnstudy.files.replacing`.

        Raises:
            CellInUse: Another process has taken over the cell.
        """
        if self.lease is not None:
            self.lease.check()
        return replacing(path)

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    @classmethod
    def _read_or_begin(cls, paths: CellPaths, run: RunDescription) -> Self:
        """Read the record of a run; create it if it does not exist or is damaged."""
        if not paths.record.exists():
            return cls(paths.folder, run)
        try:
            record = cls.read(paths.folder)
        except DamagedFile as error:
            record = cls(paths.folder, run)
            record.set_aside(paths.record, error.reason)
        if record.description.identity != run.identity:
            raise UserError(
                f"{paths.folder} holds another run: identity {record.description.identity[:8]}, "
                f"not {run.identity[:8]}\nMove that folder away, or choose another study=NAME"
            )
        return record

    def _repair_table(self) -> None:
        """Rename a damaged table of a finished run, or of one whose run.json was lost.

        If run.json was lost, an intact table is split into its parts, from which the run resumes.
        """
        status = self.description.status  # None: the run is new, or run.json was lost
        if status not in (None, *FINISHED):
            return
        if damage := self.table.find_damage():
            self.set_aside(self.paths.table, damage)
        elif status is None:
            self.table.split_into_parts()


class Observer(Record):
    """Record in those processes of a distributed run that write no files: all but the first."""

    @classmethod
    @contextmanager
    def open(cls, folder: Path, run: RunDescription | None = None) -> Iterator[Self]:
        """Read the record without a lease.

        Args:
            folder: Folder of the cell.
            run: Description of the expected run, used if there is no record or a damaged one. None:
                any run is accepted, and a readable record is required.

        Raises:
            UserError: There is no readable record and `run` is None, or it belongs to another run.
        """
        paths = CellPaths(folder)
        yield cls.read(folder) if run is None else cls._read_or_begin(paths, run)

    @contextmanager
    def attempt(self, environment: Environment) -> Iterator[Attempt]:
        """Yield an attempt that is not recorded; the first process records the attempt."""
        yield Attempt(status="running")

    def join_parts(self) -> None:
        """Do nothing; the first process writes the long table."""

    def set_aside(self, path: Path, reason: str) -> None:
        """Do nothing; the first process renames damaged files."""

    def replacing(self, path: Path) -> NoReturn:
        """Refuse to write a file.

        Raises:
            RuntimeError: Always; a write by this process is a bug.
        """
        raise RuntimeError(f"{path}: only the first process of a run writes its files")


def remove_unused_folder(folder: Path, root: Path) -> None:
    """Remove Hydra's files and the leases of a cell that has no record.

    If the study has no cells, its patches of uncommitted code are removed. The folder and its
    parents below the root are removed if they are then empty.

    Args:
        folder: Folder that Hydra created for the cell.
        root: Output root, which is kept.
    """
    paths = CellPaths(folder)
    with suppress(CellInUse):
        with hold_lease(folder):
            is_unused = not paths.record.exists()
            if is_unused:
                paths.remove_hydra_files()
        if is_unused:
            remove_leases(folder)
    if not list_cells(folder.parent):
        shutil.rmtree(folder.parent / PATCHES, ignore_errors=True)
    with suppress(OSError):  # the folder is not empty
        for empty in (folder, *folder.parents):
            if empty.absolute() == root.absolute():
                break
            empty.rmdir()
