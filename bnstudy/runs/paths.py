"""Names of the files in a cell's folder.

    run.json                      identity, configuration, status, attempts, environment, timing
    metrics.parquet               the long table, once the run is finished
    metrics/epoch=0007.parquet    parts of the long table during training, one per measured epoch
    folds.parquet                 values of the last epoch on parts of the probe sets
    steps.parquet                 rows that were measured within epochs, as in the long table
    checkpoints/                  last.ckpt; epoch=0007.ckpt for each epoch in checkpoint_epochs;
                                  during training previous.ckpt, of the epoch before the last
    maps.parquet                  two-dimensional embeddings, written by bnstudy.measure map
    train.log, .hydra/            Hydra's log and configuration
    wandb/                        W&B's files
    .lease.1, .lease.2, ...       workers of the folder: see bnstudy.runs.lease

run.json, the tables and the checkpoints are written under a temporary name and then renamed, so
that they are never incomplete. If run.json, the long table, one of its parts, last.ckpt or
previous.ckpt is damaged nevertheless, for example by a disk error, it is renamed to *.damaged and
created again.
"""

import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from bnstudy.errors import UserError
from bnstudy.terminal import console

RECORD = "run.json"
TABLE = "metrics.parquet"
STEPS = "steps.parquet"
FOLDS = "folds.parquet"
PATCHES = "patches"  # folder of a study with the uncommitted changes of source code
EMBEDDINGS = "maps.parquet"
WANDB = "wandb"
LOG = "train.log"


@dataclass(frozen=True)
class CellPaths:
    """Files of one cell.

    Attributes:
        folder: Folder of the cell.
    """

    folder: Path

    @property
    def record(self) -> Path:
        """Description of the run."""
        return self.folder / RECORD

    @property
    def table(self) -> Path:
        """Long table of a finished run."""
        return self.folder / TABLE

    @property
    def steps(self) -> Path:
        """Rows that were measured within epochs."""
        return self.folder / STEPS

    @property
    def folds(self) -> Path:
        """Values of the last epoch on parts of the probe sets."""
        return self.folder / FOLDS

    @property
    def embeddings(self) -> Path:
        """Two-dimensional embeddings of samples."""
        return self.folder / EMBEDDINGS

    @property
    def log(self) -> Path:
        """Log of Python's loggers, with the traceback of a failure."""
        return self.folder / LOG

    @property
    def wandb(self) -> Path:
        """Folder of W&B's files."""
        return self.folder / WANDB

    def part(self, epoch: int) -> Path:
        """Return the path of an epoch's part of the long table."""
        return self._parts_folder / f"epoch={epoch:04d}.parquet"

    def parts(self) -> dict[int, Path]:
        """Find the parts of the long table by epoch, in order."""
        return _by_epoch(self._parts_folder.glob("epoch=*.parquet"))

    @property
    def last_checkpoint(self) -> Path:
        """Checkpoint from which an interrupted run resumes."""
        return self._checkpoints_folder / "last.ckpt"

    @property
    def previous_checkpoint(self) -> Path:
        """Checkpoint of the epoch before the last; removed once the run is finished."""
        return self._checkpoints_folder / "previous.ckpt"

    def checkpoint(self, epoch: int) -> Path:
        """Return the path of an epoch's weights."""
        return self._checkpoints_folder / f"epoch={epoch:04d}.ckpt"

    def checkpoints(self) -> dict[int, Path]:
        """Find the saved weights by epoch, without last.ckpt."""
        return _by_epoch(self._checkpoints_folder.glob("epoch=*.ckpt"))

    def wandb_runs(self) -> list[Path]:
        """List the folders of W&B runs, oldest first."""
        folders = [*self.wandb.glob("run-*-*"), *self.wandb.glob("offline-run-*-*")]
        return sorted(folders, key=lambda folder: folder.name.removeprefix("offline-"))

    def wandb_logs(self, run_id: str) -> list[Path]:
        """List the transaction logs of one W&B run, oldest first."""
        logs = self.wandb.glob(f"**/run-{run_id}.wandb")
        return sorted(logs, key=lambda log: log.parent.name.removeprefix("offline-"))

    def set_aside(self, path: Path, reason: str) -> None:
        """Rename a damaged file and print a warning; do nothing if the file does not exist.

        Files that were set aside before are kept.

        Args:
            path: File of the cell.
            reason: Description of the damage.
        """
        names = (f"{path.name}.damaged{number or ''}" for number in count())
        aside = next(free for name in names if not (free := self.folder / name).exists())
        with suppress(FileNotFoundError):
            path.replace(aside)
            console.print(
                f"{path} is damaged ({reason}); set aside as {aside.name}, and made again",
                style="yellow",
            )

    def remove_leftovers(self) -> None:
        """Remove temporary files of killed processes."""
        for leftover in self.folder.rglob(".*.tmp"):
            leftover.unlink()

    def remove_parts(self, after: int | None = None) -> None:
        """Remove the parts of the long table.

        Args:
            after: Last epoch whose part is kept; None: all parts are removed.
        """
        if after is None:
            shutil.rmtree(self._parts_folder, ignore_errors=True)
            return
        for epoch, path in self.parts().items():
            if epoch > after:
                path.unlink()

    def remove_results(self) -> None:
        """Remove all measurements, embeddings and checkpoints."""
        for path in (self.table, self.embeddings, self.steps, self.folds):
            path.unlink(missing_ok=True)
        shutil.rmtree(self._checkpoints_folder, ignore_errors=True)
        self.remove_parts()

    def remove_hydra_files(self) -> None:
        """Remove the files that Hydra writes at the start of a job."""
        shutil.rmtree(self.folder / ".hydra", ignore_errors=True)
        self.log.unlink(missing_ok=True)

    @property
    def _parts_folder(self) -> Path:
        return self.folder / "metrics"

    @property
    def _checkpoints_folder(self) -> Path:
        return self.folder / "checkpoints"


def _by_epoch(paths: Iterable[Path]) -> dict[int, Path]:
    return dict(sorted((int(path.stem.partition("=")[2]), path) for path in paths))


def list_cells(study: Path) -> list[Path]:
    """List the cells in a study's folder, sorted by name; a cell has a run.json."""
    return sorted(path.parent for path in study.glob(f"*/{RECORD}"))


def find_cells(folder: Path) -> list[Path]:
    """List the cells in a study's folder, or the folder itself if it is a cell.

    Raises:
        UserError: There is no cell.
    """
    if CellPaths(folder).record.exists():
        return [folder]
    cells = list_cells(folder)
    if not cells:
        raise UserError(
            f"{folder}: no {RECORD} in it or in its folders; give the folder of a run or of a "
            "study, such as multirun/mnist5k_cnn"
        )
    return cells
