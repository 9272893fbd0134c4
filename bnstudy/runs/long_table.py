"""The long table of a run: one row for each number that was measured, and its parts on disk."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bnstudy.errors import first_line
from bnstudy.files import replacing
from bnstudy.runs.description import Final
from bnstudy.runs.paths import CellPaths
from bnstudy.terms import SPLITS, layer_label

WHOLE_MODEL = "model"  # the layer of numbers such as the loss; its index is -1

# The layer's label in SQL: as `bnstudy.terms.layer_label`.
LAYER_LABEL = "case when site is null or site = 'act' then layer else layer || '.' || site end"

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


class Row(NamedTuple):
    """One number of the long table.

    Attributes:
        epoch: Epochs of training before it was measured; 0 is before training.
        step: Batches of training before it was measured.
        split: train, validation or test.
        layer_index: Place in the order of computation among the layers that were read with it, from
            0; -1 for the whole model.
        layer: Name of the layer.
        site: conv, norm, act, features or linear; None for the whole model.
        metric: Name of the metric.
        value: The number; NaN where it is undefined.
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

    @property
    def label(self) -> str:
        """The layer's label: with its site where that is another one than act."""
        return layer_label(self.layer, self.site)


class LongTable:
    """The long table in a cell's folder: in parts while the run goes on, whole once it has ended.

    Args:
        paths: Files of the cell.
        replace: Context manager by which a file is written, as `bnstudy.files.replacing`.
    """

    def __init__(
        self,
        paths: CellPaths,
        replace: Callable[[Path], AbstractContextManager[Path]] = replacing,
    ) -> None:
        self.paths = paths
        self._replace = replace

    def damage(self) -> str | None:
        """Say what is wrong with the whole table; None where all is well."""
        return _damage(self.paths.table)

    def part_damage(self, epoch: int) -> str | None:
        """Say what is wrong with the part of an epoch; None where all is well."""
        return _damage(self.paths.part(epoch))

    def epochs_trained(self) -> int:
        """Count the epochs that a run which has not ended has been trained and recorded."""
        return max(len(self.paths.parts()) - 1, 0)

    def read(self) -> pa.Table:
        """Read all that was measured so far; a table without rows where nothing was."""
        if self.paths.table.exists():
            return pq.read_table(self.paths.table)
        parts = [pq.read_table(path) for path in self.paths.parts()]
        return pa.concat_tables(parts) if parts else SCHEMA.empty_table()

    def rows_by_epoch(self, until_epoch: int | None = None) -> list[list[Row]]:
        """Read the rows of each epoch that was recorded, in order.

        Args:
            until_epoch: The last epoch that is read; None: all.
        """
        by_epoch: dict[int, list[Row]] = defaultdict(list)
        for row in self.read().to_pylist():
            if until_epoch is None or row["epoch"] <= until_epoch:
                by_epoch[row["epoch"]].append(Row(**row))
        return [by_epoch[epoch] for epoch in sorted(by_epoch)]

    def values(self, epoch: int, split: str, site: str, metric: str) -> dict[str, float]:
        """Read the values of a metric by layer; of the whole table.

        Args:
            epoch: Epoch of the values.
            split: Split of the data.
            site: Site in a layer.
            metric: Name of the metric.
        """
        chosen = (
            (pc.field("epoch") == epoch)
            & (pc.field("split") == split)
            & (pc.field("site") == site)
            & (pc.field("metric") == metric)
        )
        rows = pq.read_table(self.paths.table).filter(chosen).to_pylist()
        return {row["layer"]: row["value"] for row in rows}

    def missing(
        self,
        names: Sequence[str],
        sites: Sequence[str],
        epochs: Iterable[int],
        splits: Sequence[str] = SPLITS,
    ) -> dict[int, set[tuple[str, str, str]]]:
        """Find the (split, site, metric) of each epoch that are asked for and not in the table.

        Args:
            names: Names of the metrics.
            sites: Sites in a layer.
            epochs: Epochs that are asked for.
            splits: Splits of the data.
        """
        keys = pq.read_table(self.paths.table, columns=["epoch", "split", "site", "metric"])
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

    def write_part(self, epoch: int, rows: Iterable[Row]) -> None:
        """Write the part of one epoch."""
        self._write(self.paths.part(epoch), _table(rows))

    def join_parts(self) -> Final:
        """Write the whole table, of its parts.

        Returns:
            The numbers of the whole model after the last epoch.
        """
        table = pa.concat_tables(pq.read_table(path) for path in self.paths.parts())
        self._write(self.paths.table, table)
        rows = table.filter(pc.field("layer_index") == -1).to_pylist()
        return final_numbers([Row(**row) for row in rows])

    def take_apart(self) -> None:
        """Write the parts, of the whole table, for a run that goes on."""
        table = pq.read_table(self.paths.table)
        for epoch in pc.unique(table["epoch"]).to_pylist():
            self._write(self.paths.part(epoch), table.filter(pc.field("epoch") == epoch))
        self.paths.table.unlink()

    def add_rows(self, rows: Iterable[Row]) -> None:
        """Add rows to the whole table."""
        whole = pa.concat_tables([pq.read_table(self.paths.table), _table(rows)])
        self._write(self.paths.table, whole.sort_by([("epoch", "ascending")]))

    def _write(self, path: Path, table: pa.Table) -> None:
        with self._replace(path) as temporary:
            pq.write_table(table, temporary)


def final_numbers(rows: Sequence[Row]) -> Final:
    """Take the numbers of the whole model after the last epoch.

    Args:
        rows: Rows of the long table.
    """
    whole = [row for row in rows if row.layer_index == -1]
    last = max(row.epoch for row in whole)
    numbers = {
        f"{row.split}_{row.metric}": row.value if isfinite(row.value) else None
        for row in whole
        if row.epoch == last
    }
    return Final.model_validate({"epoch": last} | numbers)


def _table(rows: Iterable[Row]) -> pa.Table:
    return pa.Table.from_pylist([row._asdict() for row in rows], schema=SCHEMA)


def _damage(path: Path) -> str | None:
    """Say what is wrong with a file that should hold rows; None where all is well."""
    try:
        schema = pq.read_schema(path)
    except FileNotFoundError:
        return "it is not there"
    except (OSError, pa.ArrowException) as error:
        return first_line(error)
    return None if schema.equals(SCHEMA) else "it has other columns"
