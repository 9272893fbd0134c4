"""Long table of a run, with one row per measured number, and its parts on disk."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import product
from math import isfinite, nan
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from bnstudy.files import replacing
from bnstudy.runs.parquet_file import find_damage, read_table, write_table
from bnstudy.runs.parts import Final
from bnstudy.runs.paths import CellPaths
from bnstudy.terms import PROBE_PERFORMANCE, SPLITS, layer_label

WHOLE_MODEL = "model"  # layer name in rows of the loss, for example; the layer index is -1

# SQL expression for the layer's label; equivalent to `bnstudy.terms.layer_label`.
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
FOLDS_SCHEMA = SCHEMA.append(pa.field("fold", pa.int32()))


class Row(NamedTuple):
    """Row of the long table: one measured number.

    Attributes:
        epoch: Number of epochs trained before the measurement; 0: before training.
        step: Number of optimizer steps before the measurement.
        split: train, validation or test.
        layer_index: Position of the layer in the order of computation, from 0, among the layers of
            the same measurement; -1 for the whole model.
        layer: Name of the layer.
        site: conv, norm, act, features, linear or output; None for the whole model.
        metric: Name of the metric.
        value: Measured number; NaN if undefined.
        reason: Reason why the value is undefined; None if it is defined.
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
        """Label of the layer: its name, followed by the site if the site is not act."""
        return layer_label(self.layer, self.site)


class LongTable:
    """Long table in a cell's folder: one part per epoch during training, one file afterwards.

    Args:
        paths: Files of the cell.
        replace: Context manager for writing a file atomically, such as `bnstudy.files.replacing`.
    """

    def __init__(
        self,
        paths: CellPaths,
        replace: Callable[[Path], AbstractContextManager[Path]] = replacing,
    ) -> None:
        self.paths = paths
        self._replace = replace

    def find_damage(self) -> str | None:
        """Describe the damage of the whole table; None if it is intact."""
        return find_damage(self.paths.table, SCHEMA)

    def find_part_damage(self, epoch: int) -> str | None:
        """Describe the damage of an epoch's part; None if it is intact."""
        return find_damage(self.paths.part(epoch), SCHEMA)

    def epochs_trained(self) -> int:
        """Return the latest recorded epoch of an unfinished run; 0 before training."""
        return max(self.paths.parts(), default=0)

    def read(self) -> pa.Table:
        """Read all rows that were measured so far; the table may be empty."""
        if self.paths.table.exists():
            return read_table(self.paths.table, SCHEMA)
        parts = [read_table(path, SCHEMA) for path in self.paths.parts().values()]
        return pa.concat_tables(parts) if parts else SCHEMA.empty_table()

    def rows_by_epoch(self, until_epoch: int | None = None) -> list[list[Row]]:
        """Read the rows of each recorded epoch, in order.

        Args:
            until_epoch: Last epoch to read; None: all epochs.
        """
        by_epoch: dict[int, list[Row]] = defaultdict(list)
        for row in self.read().to_pylist():
            if until_epoch is None or row["epoch"] <= until_epoch:
                by_epoch[row["epoch"]].append(Row(**row))
        return [by_epoch[epoch] for epoch in sorted(by_epoch)]

    def values(self, epoch: int, split: str, site: str, metric: str) -> dict[str, float]:
        """Read the values of a metric by layer, from the whole table.

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
        rows = read_table(self.paths.table, SCHEMA).filter(chosen).to_pylist()
        return {row["layer"]: row["value"] for row in rows}

    def find_missing(
        self,
        names: Sequence[str],
        sites: Sequence[str],
        epochs: Iterable[int],
        splits: Sequence[str] = SPLITS,
    ) -> dict[int, set[tuple[str, str, str]]]:
        """Find the requested combinations of split, site and metric that the table lacks, by epoch.

        Args:
            names: Names of the metrics.
            sites: Sites in a layer.
            epochs: Requested epochs.
            splits: Splits of the data.
        """
        present = self.measured_keys()
        requested = set(product(splits, sites, names))
        missing = {
            epoch: {key for key in requested if (epoch, *key) not in present} for epoch in epochs
        }
        return {epoch: keys for epoch, keys in missing.items() if keys}

    def measured_keys(self) -> set[tuple[int, str, str | None, str]]:
        """List the combinations (epoch, split, site, metric) in the whole table.

        The site is None for numbers of the whole model.
        """
        keys = read_table(self.paths.table, SCHEMA, ["epoch", "split", "site", "metric"])
        return {tuple(row.values()) for row in keys.to_pylist()}

    def write_part(self, epoch: int, rows: Iterable[Row], add: bool = False) -> None:
        """Write the part of one epoch.

        Args:
            epoch: Epoch of the rows.
            rows: Rows with different keys; a key is all columns except value and reason.
            add: Whether to keep the part's rows whose key is not in `rows`.
        """
        path = self.paths.part(epoch)
        before = [Row(**row) for row in read_table(path, SCHEMA).to_pylist()] if add else []
        row_of_key = {row[:-2]: row for row in [*before, *rows]}
        self._write(path, _table(row_of_key.values()))

    def add_steps(self, epoch: int, rows: Iterable[Row]) -> None:
        """Write the rows measured within an epoch to the table of values within epochs.

        Rows of earlier epochs are kept; recorded rows of this epoch and of later ones are removed.

        Args:
            epoch: Epoch in which the steps are, from 0.
            rows: Rows with that `epoch`.
        """
        path = self.paths.steps
        before = read_table(path, SCHEMA) if path.exists() else SCHEMA.empty_table()
        earlier = before.filter(pc.field("epoch") < epoch)
        self._write(path, pa.concat_tables([earlier, _table(rows)]))

    def write_folds(self, folds: Iterable[tuple[int, Row]]) -> None:
        """Write the values of the last epoch on folds of the probe sets.

        Args:
            folds: Number of the fold, and a value measured on it.
        """
        rows = [{"fold": fold, **row._asdict()} for fold, row in folds]
        self._write(self.paths.folds, pa.Table.from_pylist(rows, schema=FOLDS_SCHEMA))

    def join_parts(self) -> Final:
        """Write the whole table from its parts, which are kept.

        Returns:
            Numbers of the whole model after the last epoch.
        """
        table = pa.concat_tables(read_table(path, SCHEMA) for path in self.paths.parts().values())
        self._write(self.paths.table, table)
        last = table.filter(pc.field("epoch") == pc.max(table["epoch"])).to_pylist()
        return extract_final_numbers([Row(**row) for row in last])

    def write_final(self, final: Final, step: int) -> None:
        """Write a whole table that contains only the final numbers.

        Args:
            final: Final numbers of the run.
            step: Number of optimizer steps in total.
        """
        assert final.epoch is not None
        rows = []
        for name, number in final.numbers.items():
            split, _, metric = name.partition("_")
            value, reason = (
                (nan, f"the {metric} is not finite") if number is None else (number, None)
            )
            rows.append(Row(final.epoch, step, split, -1, WHOLE_MODEL, None, metric, value, reason))
        self._write(self.paths.table, _table(rows))

    def split_into_parts(self) -> None:
        """Split the whole table into its parts, from which a run resumes, and remove it."""
        table = read_table(self.paths.table, SCHEMA)
        for epoch in pc.unique(table["epoch"]).to_pylist():
            self._write(self.paths.part(epoch), table.filter(pc.field("epoch") == epoch))
        self.paths.table.unlink()

    def add_rows(self, rows: Iterable[Row]) -> None:
        """Add rows to the whole table."""
        whole = pa.concat_tables([read_table(self.paths.table, SCHEMA), _table(rows)])
        self._write(self.paths.table, whole.sort_by([("epoch", "ascending")]))

    def _write(self, path: Path, table: pa.Table) -> None:
        with self._replace(path) as temporary:
            write_table(table, temporary)


def extract_final_numbers(rows: Sequence[Row]) -> Final:
    """Extract the numbers of the whole model after the last epoch, except `PROBE_PERFORMANCE`.

    Args:
        rows: Rows of the long table, among them those of the last epoch.
    """
    last = max(row.epoch for row in rows)
    numbers = {
        f"{row.split}_{row.metric}": row.value if isfinite(row.value) else None
        for row in rows
        if row.layer_index == -1 and row.epoch == last and row.metric not in PROBE_PERFORMANCE
    }
    return Final.model_validate({"epoch": last} | numbers)


def _table(rows: Iterable[Row]) -> pa.Table:
    return pa.Table.from_pylist([row._asdict() for row in rows], schema=SCHEMA)
