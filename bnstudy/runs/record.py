"""The record of a run: what it is, how it went, and the long table of everything measured.

In the cell's folder:

    run.json                      identity, configuration, status, attempts, environment, timing
    metrics.parquet               the long table, once the run has ended
    metrics/epoch=0007.parquet    its parts while the run goes on, one a measured epoch
    checkpoints/                  last.ckpt, and epoch=0007.ckpt for the epochs that were asked for

Every file is written under another name and renamed: it is whole or not there.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from bnstudy.errors import UserError
from bnstudy.files import replacing
from bnstudy.runs.identity import identity
from bnstudy.terms import SPLITS

ENDED = ("completed", "diverged")  # a diverged run is a result as well

WHOLE_MODEL = "model"  # the layer of numbers such as the loss; its index is -1


class Row(NamedTuple):
    """One number of the long table.

    Attributes:
        epoch: Epochs of training before it was measured; 0 is before training.
        step: Batches of training before it was measured.
        split: train, validation or test.
        layer_index: In the order of computation, from 0; -1 for the whole model.
        layer: The layer's name.
        site: conv, norm, act, features or linear; None for the whole model.
        metric: Its name.
        value: NaN where it is undefined.
        reason: Why it is undefined; None where it is not.
    """

    epoch: int
    step: int
    split: str
    layer_index: int
    layer: str
    site: str | None
    metric: str
    value: float
    reason: str | None


SCHEMA = pa.schema(
    [
        ("epoch", pa.int32()),
        ("step", pa.int64()),
        ("split", pa.string()),
        ("layer_index", pa.int32()),
        ("layer", pa.string()),
        ("site", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("reason", pa.string()),
    ]
)


class CellInUse(UserError):
    """Another process works in this cell."""


@contextmanager
def cell_lock(folder: Path) -> Iterator[None]:
    """Keep other processes out of a cell's folder, as long as this one lives.

    Raises:
        CellInUse: One is in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise CellInUse(
            f"{folder}: another process works in this cell; wait for it, or stop it"
        ) from error


def discard_if_empty(folder: Path, root: Path) -> None:
    """Remove the folder that Hydra made for a cell of which nothing came, up to the output root."""
    with suppress(CellInUse), cell_lock(folder):
        if not (folder / "run.json").exists():
            shutil.rmtree(folder / ".hydra", ignore_errors=True)
            for name in (".lock", "train.log"):
                (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # something is in it
        for empty in (folder, *folder.parents):
            if empty.absolute() == root.absolute():
                break
            empty.rmdir()


class Record:
    """The record in one cell's folder.

    Args:
        folder: The cell's folder.
        description: What run.json holds.
    """

    def __init__(self, folder: Path, description: dict[str, Any]) -> None:
        self.folder = folder
        self.description = description

    @classmethod
    def open(
        cls,
        folder: Path,
        config: dict[str, Any],
        choices: dict[str, str],
        overrides: Sequence[str],
    ) -> Self:
        """The record of the run that `config` describes: the one that is there, or a new one.

        Args:
            folder: The cell's folder.
            config: The resolved configuration.
            choices: The option chosen of each configuration group.
            overrides: The command line's.

        Raises:
            UserError: The record that is there is not this run's, or cannot be read.
        """
        mark = identity(config)
        if (folder / "run.json").exists():
            record = cls.read(folder)
            if record.description["identity"] != mark:
                raise UserError(
                    f"{folder} holds another run: identity {record.description['identity'][:8]}, "
                    f"not {mark[:8]}\nMove that folder away, or choose another study=NAME"
                )
            return record
        return cls(
            folder,
            {
                "identity": mark,
                "id": mark[:8],
                "study": config["study"],
                "cell": folder.name,
                "choices": choices,
                "overrides": list(overrides),
                "seed": config["seed"],
                "status": None,
                "attempts": [],
                "config": config,
                "metrics": {},  # by name, which values are better
                "final": {},
                "timing": {},
                "environment": {},
            },
        )

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The record in a folder.

        Raises:
            UserError: There is none, or it cannot be read.
        """
        path = folder / "run.json"
        try:
            description = json.loads(path.read_text())
            if not isinstance(description, dict) or "identity" not in description:
                raise ValueError("it is not a run's")
            return cls(folder, description)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read ({error})\n"
                "Remove the cell's folder to train it anew, or put the file back"
            ) from error

    @property
    def status(self) -> str | None:
        """One of running, completed, diverged, failed, interrupted; None before the first."""
        status: str | None = self.description["status"]
        return status

    @property
    def has_ended(self) -> bool:
        """Whether the run has been trained to its end, and its table is there."""
        return self.status in ENDED and self.table_path.exists()

    @property
    def table_path(self) -> Path:
        """The long table."""
        return self.folder / "metrics.parquet"

    @property
    def last_checkpoint(self) -> Path:
        """What an interrupted run goes on from."""
        return self.folder / "checkpoints" / "last.ckpt"

    def checkpoint(self, epoch: int) -> Path:
        """The weights kept of an epoch."""
        return self.folder / "checkpoints" / f"epoch={epoch:04d}.ckpt"

    def checkpoints(self) -> dict[int, Path]:
        """By epoch, the weights that were kept, those of the last epoch among them."""
        kept = {
            int(path.stem.partition("=")[2]): path
            for path in sorted(self.last_checkpoint.parent.glob("epoch=*.ckpt"))
        }
        if self.has_ended:
            kept.setdefault(self.description["final"]["epoch"], self.last_checkpoint)
        return kept

    @contextmanager
    def attempt(self, environment: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Build and train in the body, and record how it went, whatever happens.

        A mistake of the user's, found before training, is no attempt: nothing is recorded of it.

        Args:
            environment: Of `bnstudy.runs.environment`.

        Yields:
            The attempt's entry in run.json, for what else is to be said of it.
        """
        attempt: dict[str, Any] = {
            "started": _now(),
            "ended": None,
            "status": "running",
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        status_before = self.status
        for earlier in self.description["attempts"]:
            if earlier["status"] == "running":  # it was killed: nothing else leaves that behind
                earlier["status"] = "interrupted"
        self.remove_leftovers()
        self.description["attempts"].append(attempt)
        self.description["environment"] = environment
        self._began = time.monotonic()
        self._set_status("running")
        try:
            yield attempt
        except UserError as error:
            if self._part(0).exists():  # it was trained, so it counts: the disk is full, say
                self._end(attempt, "failed", error)
            else:
                self.description["attempts"].remove(attempt)
                self._set_status(status_before)
                if status_before is None:
                    (self.folder / "run.json").unlink()
            raise
        except Exception as error:
            self._end(attempt, "failed", error)
            raise
        except BaseException:  # SIGINT and SIGTERM
            self._end(attempt, "interrupted")
            raise
        self._end(attempt, "diverged" if attempt.get("diverged") else "completed")

    def note(self, **facts: Any) -> None:
        """Add facts to the attempt that goes on, and its time so far: it may yet be killed."""
        attempt = self.description["attempts"][-1]
        attempt |= {"seconds": time.monotonic() - self._began} | facts
        for key in ("seconds", "measure_seconds"):
            self.description["timing"][key] = sum(
                one.get(key, 0.0) for one in self.description["attempts"]
            )
        self.save()

    def write_part(self, epoch: int, rows: Iterable[Row]) -> None:
        """Write an epoch's part of the long table."""
        _write(self._part(epoch), _table(rows))

    def join_parts(self) -> None:
        """Make the long table of its parts, and set the final numbers from its last epoch."""
        parts = sorted(self._part(0).parent.glob("epoch=*.parquet"))
        table = pa.concat_tables(pq.read_table(path) for path in parts)
        _write(self.table_path, table)
        rows = [row for row in table.to_pylist() if row["layer_index"] == -1]
        last = max(row["epoch"] for row in rows)
        self.description["final"] = {"epoch": last} | {
            f"{row['split']}_{row['metric']}": row["value"] if isfinite(row["value"]) else None
            for row in rows
            if row["epoch"] == last
        }

    def remove_leftovers(self) -> None:
        """Remove what a process that was killed had begun to write."""
        for leftover in self.folder.rglob(".*.tmp"):
            leftover.unlink()

    def remove_parts(self) -> None:
        """Remove the parts of the long table, which now holds them."""
        shutil.rmtree(self._part(0).parent, ignore_errors=True)

    def add_rows(self, rows: Iterable[Row]) -> None:
        """Add to the long table of a run that has ended."""
        whole = pa.concat_tables([pq.read_table(self.table_path), _table(rows)])
        _write(self.table_path, whole.sort_by([("epoch", "ascending")]))

    def missing(
        self,
        names: Sequence[str],
        sites: Sequence[str],
        epochs: Iterable[int],
        splits: Sequence[str] = SPLITS,
    ) -> dict[int, set[tuple[str, str, str]]]:
        """By epoch, the (split, site, metric) that are asked for and not in the long table.

        Args:
            names: Of the metrics.
            sites: Where in a layer.
            epochs: That are asked for.
            splits: Of the data.
        """
        keys = pq.read_table(self.table_path, columns=["epoch", "split", "site", "metric"])
        present = {tuple(row.values()) for row in keys.to_pylist()}
        asked = {
            epoch: {
                (split, site, name)
                for split in splits
                for site in sites
                for name in names
                if (epoch, split, site, name) not in present
            }
            for epoch in epochs
        }
        return {epoch: what for epoch, what in asked.items() if what}

    def save(self) -> None:
        """Write run.json."""
        with replacing(self.folder / "run.json") as temporary:
            temporary.write_text(json.dumps(self.description, indent=2) + "\n")

    def _part(self, epoch: int) -> Path:
        return self.folder / "metrics" / f"epoch={epoch:04d}.parquet"

    def _set_status(self, status: str | None) -> None:
        self.description["status"] = status
        self.save()

    def _end(self, attempt: dict[str, Any], status: str, error: Exception | None = None) -> None:
        if error is not None:
            attempt["error"] = f"{type(error).__name__}: {error}"
        self.description["status"] = status
        self.note(ended=_now(), status=status)


def _table(rows: Iterable[Row]) -> pa.Table:
    return pa.Table.from_pylist([row._asdict() for row in rows], schema=SCHEMA)


def _write(path: Path, table: pa.Table) -> None:
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
