"""Database of a study in DuckDB.

The rows of the runs' last epochs are held in memory. Other rows are read from the runs' parquet
files when a query needs them.
"""

import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd

from bnstudy.errors import UserError, first_line
from bnstudy.runs.long_table import LAYER_LABEL
from bnstudy.runs.paths import FOLDS, STEPS, TABLE

# Long table of the runs that have ended. The name of a layer contains its site, unless the site is
# the activation, as in the logs.
ROWS = f"""
    select runs.cell, epoch, epoch = runs.last_epoch as is_last, step, split, site, layer_index,
           {LAYER_LABEL} as layer,
           metric, value, files.reason
    from files join runs on runs.path = files.filename
"""

# Rows that another version of bnstudy measured than the one that trained the run; null means all.
OTHER_VERSIONS = """
    create table other_versions (
        cell varchar, epoch integer, metrics varchar[], splits varchar[], sites varchar[]
    )
"""

WITHOUT_OTHER_VERSIONS = """
    where not exists (
        from other_versions as other
        where other.cell = measured.cell and other.epoch = measured.epoch
              and (other.metrics is null or list_contains(other.metrics, measured.metric))
              and (other.splits is null or list_contains(other.splits, measured.split))
              and (other.sites is null or list_contains(other.sites, measured.site))
    )
"""

# Values that were measured within epochs; they are added to those after each epoch.
STEPS_OF_FILES = f"""
    union all
    select runs.cell, step, split, {LAYER_LABEL} as layer, metric, value
    from step_files join runs on replace(runs.path, '{TABLE}', '{STEPS}') = step_files.filename
"""

# Values on parts of the probe sets, after the last epoch.
FOLDS_OF_FILES = f"""
    select runs.cell, fold, split, {LAYER_LABEL} as layer, metric, value
    from fold_files join runs on replace(runs.path, '{TABLE}', '{FOLDS}') = fold_files.filename
"""
NO_FOLDS = "select cell, 0 as fold, split, layer, metric, value from rows where false"

FINAL_NUMBERS = """
    select path, split || '_' || metric, value
    from files join ended on path = filename and epoch = last_epoch where layer_index = -1
"""

FINAL = """
    select last.*, layers.* exclude (cell, site, layer)
    from last left join layers using (cell, layer)
"""


def connect(
    runs: pd.DataFrame, tables: Sequence[str], other_versions: Iterable[tuple[Any, ...]]
) -> duckdb.DuckDBPyConnection:
    """Create a database in memory with the tables that `StudyRuns.query` describes.

    Args:
        runs: All runs, as in `StudyRuns.runs`.
        tables: Paths of the long tables of the runs that have ended.
        other_versions: Rows of the table `other_versions`; see `tabulate_other_versions`.

    Raises:
        UserError: DuckDB cannot read a table. It was probably written without a checksum, because
            a run whose table does not match its checksum does not count as ended.
    """
    connection = duckdb.connect()
    connection.register("described", runs)
    connection.execute("create table runs as from described")
    condition = ""
    if others := list(other_versions):
        connection.execute(OTHER_VERSIONS)
        connection.executemany("insert into other_versions values (?, ?, ?, ?, ?)", others)
        condition = WITHOUT_OTHER_VERSIONS
    try:
        _open_tables(connection, tables).create_view("files")
        has_steps = _create_view_of_files(connection, "step_files", tables, STEPS)
        has_folds = _create_view_of_files(connection, "fold_files", tables, FOLDS)
        _create_tables(connection, condition, has_steps)
        folds = FOLDS_OF_FILES if has_folds else NO_FOLDS
        connection.execute(f"create view folds as {folds}")
    except duckdb.Error as error:
        raise UserError(_explain(connection, tables, error)) from error
    return connection


def read_final_numbers(last_epochs: Mapping[str, int]) -> dict[tuple[str, str], list[float]]:
    """Read the numbers of the whole model after the last epoch from long tables.

    Args:
        last_epochs: Last epoch of each table, by path.

    Returns:
        Values by the path of the table and `<split>_<metric>`; empty if DuckDB cannot read a table,
        which `connect` explains.
    """
    numbers: dict[tuple[str, str], list[float]] = defaultdict(list)
    if last_epochs:
        with duckdb.connect() as connection:
            ended = pd.DataFrame({"path": last_epochs.keys(), "last_epoch": last_epochs.values()})
            connection.register("ended", ended)
            with suppress(duckdb.Error):
                _open_tables(connection, list(last_epochs)).create_view("files")
                for path, name, value in connection.execute(FINAL_NUMBERS).fetchall():
                    numbers[path, name].append(value)
    return numbers


def _open_tables(
    connection: duckdb.DuckDBPyConnection, tables: Sequence[str]
) -> duckdb.DuckDBPyRelation:
    """Open parquet files, without patterns in their paths and columns from names of folders."""
    paths = list(map(escape, tables))
    return connection.read_parquet(paths, filename=True, hive_partitioning=False)


def _create_view_of_files(
    connection: duckdb.DuckDBPyConnection, view: str, tables: Sequence[str], name: str
) -> bool:
    """Create a view of the files with the given name next to the long tables.

    Returns:
        Whether there are such files; if not, no view is created.
    """
    paths = [Path(table).with_name(name) for table in tables]
    existing = [str(path) for path in paths if path.exists()]
    if existing:
        _open_tables(connection, existing).create_view(view)
    return bool(existing)


def _create_tables(connection: duckdb.DuckDBPyConnection, condition: str, has_steps: bool) -> None:
    """Create the tables and views that select rows of the long tables.

    Args:
        connection: Database with the table `runs` and the views of files.
        condition: Clause that leaves out rows of other versions; may be empty.
        has_steps: Whether there is the view `step_files`.
    """
    connection.execute(f"create view rows as from ({ROWS}) as measured {condition}")
    # The epoch is a condition of the join, so that DuckDB filters while it reads the files.
    last = f"from ({ROWS} and epoch = last_epoch) as measured {condition}"
    connection.execute(f"create table last as select * exclude (epoch, is_last, step) {last}")
    connection.execute(f"create table layers as {select_layers('last')}")
    connection.execute(f"create view final as {FINAL}")
    # In runs that were recorded without steps, the epoch is used as the step.
    step = "if(max(step) over (partition by cell) = 0, epoch, step)"
    connection.execute(
        "create view steps as "
        f"select cell, {step} as step, split, layer, metric, value from rows "
        f"{STEPS_OF_FILES if has_steps else ''}"
    )


def _explain(
    connection: duckdb.DuckDBPyConnection, tables: Sequence[str], error: duckdb.Error
) -> str:
    """Describe the error; name the table that DuckDB cannot read."""
    for table in tables:
        try:
            _open_tables(connection, [table]).fetchall()
        except duckdb.Error as reason:
            folder = shlex.quote(str(Path(table).parent))
            return (
                f"{table} is damaged ({first_line(reason)})\n"
                f"Rename it, and make it again with python -m bnstudy.measure {folder}"
            )
    return f"DuckDB: {first_line(error)}"


def tabulate_other_versions(
    cells: Iterable[str], other_versions: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[tuple[Any, ...]]:
    """Make the rows of the table `other_versions`, one per epoch that another version measured.

    Args:
        cells: Cells of the runs that have ended.
        other_versions: Attribute of `StudyRuns`.
    """
    return [
        (cell, epoch, rows["metrics"], rows["splits"], rows["sites"])
        for cell in set(cells) & other_versions.keys()
        for rows in other_versions[cell]
        for epoch in rows["epochs"]
    ]


def select_layers(table: str) -> str:
    """Compose a query for the layers of each run and site, in the order of computation.

    The index of a layer depends on which other layers were measured with it; the order does not.

    Args:
        table: Name of a table with the columns cell, site, layer_index, layer.

    Returns:
        Query for the columns cell, site, layer, position, layers and relative_depth; see
        `StudyRuns.query`.
    """
    return f"""
        with listed as (
            select cell, site, layer, min(layer_index) as layer_index
            from {table} where layer_index >= 0 group by all
        )
        select cell, site, layer,
               row_number() over (partition by cell, site order by layer_index, layer) as position,
               count(*) over (partition by cell, site) as layers,
               case when layers = 1 then 1 else (position - 1) / (layers - 1) end as relative_depth
        from listed
    """
