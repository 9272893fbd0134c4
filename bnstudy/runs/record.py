"""The record of a run: what it is, how it went, and the long table of everything measured.

In the cell's folder:

    run.json                      identity, configuration, status, attempts, environment, timing
    metrics.parquet               the long table, once the run has ended
    metrics/epoch=0007.parquet    its parts while the run goes on, one a measured epoch
    checkpoints/                  last.ckpt, and epoch=0007.ckpt for the epochs that were asked for;
                                  while the run goes on previous.ckpt, of the epoch before the last
    maps.parquet                  where samples lie in a plane, if that was asked for
                                  (bnstudy.trained.embeddings)

Every file is written under another name and renamed: it is whole or not there. One that is damaged
all the same, by a disk say, is set aside as *.damaged, and what it held is made again.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bnstudy import __version__
from bnstudy.config.identity import identity
from bnstudy.errors import UserError, first_line
from bnstudy.files import replacing
from bnstudy.runs.lease import CellInUse, Lease, forget, held
from bnstudy.runs.version import VERSION, comparable_version
from bnstudy.terminal import console
from bnstudy.terms import SPLITS

ENDED = ("completed", "diverged")  # a diverged run is a result as well

KEYS = {"identity", "config", "status", "attempts"}  # without which a run.json is none

MAPS = "maps.parquet"  # where samples lie in a plane

WHOLE_MODEL = "model"  # the layer of numbers such as the loss; its index is -1


class Row(NamedTuple):
    """One number of the long table.

    Attributes:
        epoch: Epochs of training before it was measured; 0 is before training.
        step: Batches of training before it was measured.
        split: train, validation or test.
        layer_index: In the order of computation among the layers that were read with it, from 0;
            -1 for the whole model.
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


MAPS_SCHEMA = pa.schema(
    [
        ("epoch", pa.int32()),
        ("split", pa.string()),
        ("layer_index", pa.int32()),  # among those that have maps
        ("layer", pa.string()),
        ("site", pa.string()),
        ("method", pa.string()),  # pca or umap
        ("sample", pa.int32()),  # its number in the probe set
        ("label", pa.int64()),
        ("class", pa.string()),
        ("x", pa.float32()),
        ("y", pa.float32()),
        ("share", pa.float32()),  # of the variance, that the plane holds; null of umap
        ("reason", pa.string()),  # why there is no x and y; null where there are
    ]
)


def discard_if_empty(folder: Path, root: Path) -> None:
    """Remove the folder that Hydra made for a cell of which nothing came, up to the output root."""
    with suppress(CellInUse):
        with held(folder):
            nothing = not (folder / "run.json").exists()
            if nothing:
                shutil.rmtree(folder / ".hydra", ignore_errors=True)
                (folder / "train.log").unlink(missing_ok=True)
        if nothing:
            forget(folder)
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
        lease: Of the folder, by which it is written to; None to read it only.
    """

    def __init__(
        self, folder: Path, description: dict[str, Any], lease: Lease | None = None
    ) -> None:
        self.folder = folder
        self.description = description
        self.lease = lease

    def __getstate__(self) -> dict[str, Any]:
        """Without the lease, which is this process's: a launcher brings the record to another."""
        return self.__dict__ | {"lease": None}

    @classmethod
    def open(
        cls,
        folder: Path,
        config: dict[str, Any],
        choices: dict[str, str],
        overrides: Sequence[str],
        lease: Lease | None = None,
    ) -> Self:
        """The record of the run that `config` describes: the one that is there, or a new one.

        Args:
            folder: The cell's folder.
            config: The resolved configuration.
            choices: The option chosen of each configuration group.
            overrides: The command line's.
            lease: Of the folder.

        Raises:
            UserError: The record that is there is not this run's.
        """
        mark = identity(config)
        if (record := cls._read_or_set_aside(folder, lease)) is not None:
            record.lease = lease
            if record.description["identity"] != mark:
                raise UserError(
                    f"{folder} holds another run: identity {record.description['identity'][:8]}, "
                    f"not {mark[:8]}\nMove that folder away, or choose another study=NAME"
                )
            if lease is not None and record.status in ENDED and not record.has_ended:
                set_aside(folder, record.table_path, str(_damage(record.table_path)))
            return record
        record = cls(
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
            lease,
        )
        if lease is not None:
            record._take_apart()  # a table without its run.json
        return record

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The record in a folder.

        Raises:
            UserError: There is none, or it cannot be read.
        """
        path = folder / "run.json"
        try:
            description = json.loads(path.read_text())
            if not isinstance(description, dict) or not description.keys() >= KEYS:
                raise ValueError("it is not a run's")
            return cls(folder, description)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read ({error})\n"
                "Train the cell again: it goes on from its last checkpoint; or put the file back"
            ) from error

    @classmethod
    def _read_or_set_aside(cls, folder: Path, lease: Lease | None) -> Self | None:
        try:
            return cls.read(folder)
        except UserError as error:
            if isinstance(error.__cause__, ValueError) and lease is not None:
                set_aside(folder, folder / "run.json", str(error.__cause__))
            return None

    @property
    def status(self) -> str | None:
        """One of running, completed, diverged, failed, interrupted; None before the first."""
        status: str | None = self.description["status"]
        return status

    @property
    def has_ended(self) -> bool:
        """Whether the run has been trained to its end, and its table is there."""
        return self.status in ENDED and _damage(self.table_path) is None

    def require_end(self) -> None:
        """Make sure that the run has ended.

        Raises:
            UserError: It has not ended.
        """
        if not self.has_ended:
            raise UserError(f"{self.folder}: {self.status}; train it to its end first")

    @property
    def failures(self) -> int:
        """How many attempts failed."""
        return sum(attempt["status"] == "failed" for attempt in self.description["attempts"])

    @property
    def version(self) -> str:
        """Major and minor number of the bnstudy that trained the last epochs."""
        return self._versions()[-1][0]

    def other_versions(self) -> list[dict[str, Any]]:
        """Rows of the long table that another version than `version` measured.

        Returns:
            Each with its `version` (major and minor number), the `epochs`, and the `metrics`,
            `splits` and `sites`, of which None means all.
        """
        anything = {"metrics": None, "splits": None, "sites": None}
        rows = [
            {"version": version, "epochs": epochs} | anything
            for version, epochs in self._versions()
            if epochs
        ]
        rows += [
            anything
            | {key: entry[key] for key in ("epochs", *anything) if key in entry}
            | {"version": _version_of(entry["environment"])}
            for entry in self.description.get("measured_later", [])
            if entry["epochs"]
        ]
        return [some for some in rows if some["version"] != self.version]

    def require_this_version(self) -> None:
        """Make sure that numbers of this bnstudy may be added to the run's.

        Raises:
            UserError: The run is of another version.
        """
        if self.version != VERSION:
            raise UserError(
                f"{self.folder}: trained by bnstudy {self.version}; measured by {VERSION}, it "
                "would have numbers of both\n"
                "Train it again with sweep.redo=all -m or in another study=NAME, or measure it "
                f"with bnstudy {self.version}"
            )

    @property
    def table_path(self) -> Path:
        """The long table."""
        return self.folder / "metrics.parquet"

    @property
    def maps_path(self) -> Path:
        """Where samples lie in a plane."""
        return self.folder / MAPS

    @property
    def last_checkpoint(self) -> Path:
        """What an interrupted run goes on from."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def previous_checkpoint(self) -> Path:
        """That of the epoch before; gone once the run has ended."""
        return self.folder / "checkpoints" / "previous.ckpt"

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
            environment: Of `bnstudy.training.environment`.

        Yields:
            The attempt's entry in run.json, for what else is to be said of it.
        """
        attempt: dict[str, Any] = {
            "started": _now(),
            "ended": None,
            "status": "running",
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
        }
        if job := os.environ.get("SLURM_JOB_ID"):
            attempt["slurm"] = {"job": job, "restarts": os.environ.get("SLURM_RESTART_COUNT", "0")}
        status_before, environment_before = self.status, self.description["environment"]
        for earlier in self.description["attempts"]:
            if earlier["status"] == "running":  # it was killed: nothing else leaves that behind
                earlier["status"] = "interrupted"
            # Version 0.1 said it in the environment alone, which is about to become this attempt's.
            earlier.setdefault("version", _version_of(self.description["environment"]))
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
                self.description["environment"] = environment_before
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
        self._write(self._part(epoch), _table(rows))

    def has_parts(self, epochs: Iterable[int]) -> bool:
        """Whether the long table's parts of some epochs are there; damaged ones are set aside."""
        missing = False
        for epoch in epochs:
            damage = _damage(self._part(epoch))
            if damage and self.lease is not None:
                set_aside(self.folder, self._part(epoch), damage)
            missing |= damage is not None
        return not missing

    def join_parts(self) -> None:
        """Make the long table of its parts, and set the final numbers from its last epoch."""
        parts = sorted(self._part(0).parent.glob("epoch=*.parquet"))
        table = pa.concat_tables(pq.read_table(path) for path in parts)
        self._write(self.table_path, table)
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

    def measured_by(self, metrics: dict[str, Any]) -> None:
        """Note that a run goes on with other metrics than it had: each epoch has what both name.

        Args:
            metrics: Of the configuration that it goes on with.
        """
        kept = self.description["config"]["metrics"]
        # How much memory was used has no effect on what is measured.
        same: dict[str, Any] = {"names": [], "memory_budget": None}
        alike = kept | same == metrics | same
        names = [name for name in metrics["names"] if alike and name in kept["names"]]
        self.description["config"]["metrics"] = metrics | {"names": names}

    def with_callbacks(self, callbacks: dict[str, Any]) -> dict[str, Any]:
        """Choose and note the callbacks that a run goes on with: their options are the first ones.

        The numbers of a callback's epochs are then all of the same options.

        Args:
            callbacks: Options of each callback of the configuration that it goes on with.

        Returns:
            Options of each of these callbacks.
        """
        kept = self.description["config"].get("callbacks", {})
        chosen = {name: kept.get(name, options) for name, options in callbacks.items()}
        self.description["config"]["callbacks"] = kept | chosen
        return chosen

    def remove_parts(self) -> None:
        """Remove what a run that has ended needs no more: the parts of the long table."""
        shutil.rmtree(self._part(0).parent, ignore_errors=True)
        self.previous_checkpoint.unlink(missing_ok=True)

    def start_over(self) -> None:
        """Remove what the run had come to, but for the story of its attempts."""
        self.description["final"] = {}
        for key in ("data", "target_sparsity", "measured_later"):
            self.description.pop(key, None)
        self._set_status("interrupted")
        self.table_path.unlink(missing_ok=True)
        self.maps_path.unlink(missing_ok=True)
        shutil.rmtree(self.last_checkpoint.parent, ignore_errors=True)
        self.remove_parts()

    def add_rows(self, rows: Iterable[Row]) -> None:
        """Add to the long table of a run that has ended."""
        whole = pa.concat_tables([pq.read_table(self.table_path), _table(rows)])
        self._write(self.table_path, whole.sort_by([("epoch", "ascending")]))

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
        with self.replacing(self.folder / "run.json") as temporary:
            temporary.write_text(json.dumps(self.description, indent=2) + "\n")

    def replacing(self, path: Path) -> AbstractContextManager[Path]:
        """As `bnstudy.files.replacing`, as long as the cell is this process's.

        Raises:
            CellInUse: Another one has taken it over.
        """
        if self.lease is not None:
            self.lease.check()
        return replacing(path)

    def _versions(self) -> list[tuple[str, list[int]]]:
        """By version, in the order of attempts, the epochs that it trained and measured."""
        attempts = [a for a in self.description["attempts"] if "resumed_from_epoch" in a]
        if not attempts:
            return [(_version_of(self.description.get("environment", {})), [])]
        resumed = [attempt["resumed_from_epoch"] for attempt in attempts]
        begins = [0 if epoch is None else epoch + 1 for epoch in resumed]
        last = self.description.get("final", {}).get("epoch")
        if last is None:
            last = self.description["config"]["trainer"]["max_epochs"]
        found = []
        for place, attempt in enumerate(attempts):
            end = min(begins[place + 1 :], default=last + 1)  # a later attempt writes over it
            version = attempt.get("version") or _version_of(self.description.get("environment", {}))
            found.append((comparable_version(version), list(range(begins[place], end))))
        return [one for one in found if one[1]] or found[-1:]

    def _part(self, epoch: int) -> Path:
        return self.folder / "metrics" / f"epoch={epoch:04d}.parquet"

    def _take_apart(self) -> None:
        """Make the long table's parts of it, for a run that goes on."""
        damage = _damage(self.table_path)
        if damage is None:
            table = pq.read_table(self.table_path)
            for epoch in pc.unique(table["epoch"]).to_pylist():
                self._write(self._part(epoch), table.filter(pc.field("epoch") == epoch))
            self.table_path.unlink()
        else:
            set_aside(self.folder, self.table_path, damage)

    def _write(self, path: Path, table: pa.Table) -> None:
        with self.replacing(path) as temporary:
            pq.write_table(table, temporary)

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


def set_aside(cell: Path, path: Path, reason: str) -> None:
    """Give a damaged file of a cell another name, and tell it; nothing where there is none."""
    aside = cell / f"{path.name}.damaged"
    with suppress(FileNotFoundError):
        path.replace(aside)
        console.print(
            f"{path} is damaged ({reason}); set aside as {aside.name}, and made again",
            style="yellow",
        )


def runs_below(folder: Path) -> list[Path]:
    """The cells in a study's folder, or the one that the folder is.

    Raises:
        UserError: There is none.
    """
    if (folder / "run.json").exists():
        return [folder]
    cells = sorted(path.parent for path in folder.glob("*/run.json"))
    if not cells:
        raise UserError(
            f"{folder}: no run.json in it or in its folders; give the folder of a run or of a "
            "study, such as multirun/mnist5k_cnn"
        )
    return cells


def read_maps(path: Path) -> pa.Table:
    """Where samples lie in a plane.

    Args:
        path: Of a run's maps.parquet.

    Returns:
        Of `MAPS_SCHEMA`, with the file's metadata.

    Raises:
        FileNotFoundError: There is none.
        UserError: It is damaged.
    """
    again = "Remove it, and make it again with python -m bnstudy.measure map"
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is damaged ({first_line(error)})\n{again}") from error
    if not table.schema.equals(MAPS_SCHEMA):
        raise UserError(f"{path} has other columns than this version's\n{again}")
    return table


def _damage(table: Path) -> str | None:
    """What is wrong with a file that should hold rows of the long table; None where all is well."""
    try:
        schema = pq.read_schema(table)
    except FileNotFoundError:
        return "it is not there"
    except (OSError, pa.ArrowException) as error:
        return first_line(error)
    return None if schema.equals(SCHEMA) else "it has other columns"


def _version_of(environment: dict[str, Any]) -> str:
    """Major and minor number of the bnstudy of an environment."""
    return comparable_version(environment.get("packages", {}).get("bnstudy", "unknown"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
