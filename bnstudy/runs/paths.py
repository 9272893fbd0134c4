"""Names of the files in a cell's folder.

    run.json                      identity, configuration, status, attempts, environment, timing
    metrics.parquet               the long table, once the run has ended
    metrics/epoch=0007.parquet    its parts while the run goes on, one for each measured epoch
    checkpoints/                  last.ckpt, and epoch=0007.ckpt for the epochs that were asked for;
                                  while the run goes on previous.ckpt, of the epoch before the last
    maps.parquet                  embeddings of samples in a plane, if they were asked for
    train.log, .hydra/            Hydra's log and configuration
    wandb/                        W&B's files
    .lease.1, .lease.2, ...       who works in the folder: see bnstudy.runs.lease

Every file is written under a temporary name and renamed, so it is whole or not there. A file that
is damaged all the same, by a disk for example, is renamed to *.damaged, and its content is made
again.
"""

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bnstudy.errors import UserError
from bnstudy.terminal import console

RECORD = "run.json"
TABLE = "metrics.parquet"
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
        """Long table of a run that has ended."""
        return self.folder / TABLE

    @property
    def embeddings(self) -> Path:
        """Embeddings of samples in a plane."""
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
        """Part of the long table that one epoch has."""
        return self._parts_folder / f"epoch={epoch:04d}.parquet"

    def parts(self) -> list[Path]:
        """List the parts of the long table, by epoch."""
        return sorted(self._parts_folder.glob("epoch=*.parquet"))

    @property
    def last_checkpoint(self) -> Path:
        """Checkpoint from which an interrupted run goes on."""
        return self._checkpoints_folder / "last.ckpt"

    @property
    def previous_checkpoint(self) -> Path:
        """Checkpoint of the epoch before the last; removed once the run has ended."""
        return self._checkpoints_folder / "previous.ckpt"

    def checkpoint(self, epoch: int) -> Path:
        """Weights kept of one epoch."""
        return self._checkpoints_folder / f"epoch={epoch:04d}.ckpt"

    def checkpoints(self) -> dict[int, Path]:
        """Find the weights that were kept, by epoch; last.ckpt is not among them."""
        return {
            int(path.stem.partition("=")[2]): path
            for path in sorted(self._checkpoints_folder.glob("epoch=*.ckpt"))
        }

    def wandb_runs(self) -> list[Path]:
        """List the folders of W&B runs, oldest first."""
        folders = [*self.wandb.glob("run-*-*"), *self.wandb.glob("offline-run-*-*")]
        return sorted(folders, key=lambda folder: folder.name.removeprefix("offline-"))

    def wandb_logs(self, run_id: str) -> list[Path]:
        """List the transaction logs of one W&B run, oldest first."""
        logs = self.wandb.glob(f"**/run-{run_id}.wandb")
        return sorted(logs, key=lambda log: log.parent.name.removeprefix("offline-"))

    def set_aside(self, path: Path, reason: str) -> None:
        """Rename a damaged file, and print that; do nothing if it is not there.

        Args:
            path: File of the cell.
            reason: What is wrong with it.
        """
        aside = self.folder / f"{path.name}.damaged"
        with suppress(FileNotFoundError):
            path.replace(aside)
            console.print(
                f"{path} is damaged ({reason}); set aside as {aside.name}, and made again",
                style="yellow",
            )

    def remove_leftovers(self) -> None:
        """Remove the temporary files of a process that was killed."""
        for leftover in self.folder.rglob(".*.tmp"):
            leftover.unlink()

    def remove_parts(self) -> None:
        """Remove the parts of the long table."""
        shutil.rmtree(self._parts_folder, ignore_errors=True)

    def remove_results(self) -> None:
        """Remove all that was measured, and the weights."""
        self.table.unlink(missing_ok=True)
        self.embeddings.unlink(missing_ok=True)
        shutil.rmtree(self._checkpoints_folder, ignore_errors=True)
        self.remove_parts()

    def remove_hydras(self) -> None:
        """Remove what Hydra writes at the beginning of a job."""
        shutil.rmtree(self.folder / ".hydra", ignore_errors=True)
        self.log.unlink(missing_ok=True)

    @property
    def _parts_folder(self) -> Path:
        return self.folder / "metrics"

    @property
    def _checkpoints_folder(self) -> Path:
        return self.folder / "checkpoints"


def cells_of(study: Path) -> list[Path]:
    """List the folders in a study's folder that have a run.json, by name."""
    return sorted(path.parent for path in study.glob(f"*/{RECORD}"))


def runs_below(folder: Path) -> list[Path]:
    """List the cells in a study's folder, or the one cell whose folder it is.

    Raises:
        UserError: There is none.
    """
    if CellPaths(folder).record.exists():
        return [folder]
    cells = cells_of(folder)
    if not cells:
        raise UserError(
            f"{folder}: no {RECORD} in it or in its folders; give the folder of a run or of a "
            "study, such as multirun/mnist5k_cnn"
        )
    return cells
