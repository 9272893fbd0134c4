"""Runs of a study: their table, the comparable parts, and a database of their values."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import duckdb
import pandas as pd

from bnstudy.errors import UserError
from bnstudy.runs.paths import RECORD
from bnstudy.study.load.database import connect, tabulate_other_versions
from bnstudy.study.load.design import Design
from bnstudy.study.load.records import collect_directions, read_records, tabulate_runs
from bnstudy.study.load.repetitions import (
    find_identical_treatments,
    mark_duplicates,
    mark_repetitions,
)
from bnstudy.terms import format_count, natural_key

BASELINES = ("none", "batchnorm")  # default baselines, in order of preference


@dataclass(eq=False)  # compared and hashed by identity
class StudyRuns:
    """The runs of a study.

    Attributes:
        folder: Folder that its runs lie in.
        runs: One row per run, whatever its status, with the columns

            - cell, path (of its table), overrides, seed, treatment (norm, regularizer and their
              swept options), norm, regularizer, model, data, depth, width, lr, and the other keys
              of `design.grid` ("null" or "not set" where a run's value is null or missing);
            - label_noise: share of wrong training labels; hessian: options of the callback that
              measured the Hessian, as JSON, or None;
            - own: settings that have one value per treatment, such as a learning rate, as text;
            - pair: the same number for runs that differ only in the treatment;
              grid: point of the grid without the seed, as text;
            - comparable: data, probe set and version, as text; runs with the same text are
              comparable; part: see `parts`;
            - status, ended (completed or diverged, with a table), remark (such as the reason why
              it is not among the results), attempts, failures, seconds, measure_seconds;
            - at_chance: whether the final training accuracy is not clearly above that of guessing;
            - duplicate_of: cell of the run that this run repeats; None if it is counted;
            - last_epoch, and the final values: train_loss, test_accuracy, ...;
            - commit, dirty, version, torch, python, processor, gpus, threads, host, data_sha256,
              probe.
        design: Keys in which the runs differ.
        directions: Direction of better values by metric: higher, lower or None.
        settings: Settings in which the runs of a pair may differ, by cell: the options of the norm,
            of the regularizer and of the execution, and those that can be set per norm.
        other_versions: Rows of a run's table that another version of bnstudy measured, by cell, as
            in `RunDescription.other_versions`; the tables of `query` do not contain them.
    """

    folder: Path
    runs: pd.DataFrame
    design: Design
    directions: dict[str, str | None]
    settings: Mapping[str, Mapping[str, Any]]
    other_versions: Mapping[str, Sequence[Mapping[str, Any]]]

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.folder.name

    @classmethod
    def read(cls, folder: Path | str) -> Self:
        """Read the runs in a study's folder.

        Args:
            folder: Folder of a study, such as multirun/mnist5k_cnn.

        Raises:
            UserError: There are no runs, or none that can be read.
        """
        folder = Path(folder)
        records = read_records(folder)
        readable = [record for record in records if record.config]
        if not readable:
            raise UserError(
                f"{folder}: none of its {len(records)} {RECORD} can be read; of the first one:\n"
                f"{records[0].facts['remark']}"
            )
        design = Design.from_runs(
            [record.facts["treatment"] for record in readable],
            [record.config for record in readable],
        )
        runs = tabulate_runs(records, design)
        mark_duplicates(runs, [record.original_name for record in records])
        mark_repetitions(runs)
        parts = runs.loc[runs["ended"], "comparable"].value_counts().index
        runs["part"] = parts.get_indexer(runs["comparable"]).clip(min=0)
        return cls(
            folder,
            runs,
            design,
            {metric: declared[0] for metric, declared in collect_directions(records).items()},
            {record.facts["cell"]: record.settings for record in records},
            {
                record.facts["cell"]: record.other_versions
                for record in records
                if record.other_versions
            },
        )

    @cached_property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """Database with the tables that `query` describes.

        Raises:
            UserError: No run has ended, or DuckDB cannot read a table.
        """
        tables = self.results["path"].tolist()
        if not tables:
            raise UserError(
                f"{self.folder} has no run that has ended: {self.counts()}\n"
                "Repeat the bnstudy.train command; it continues where it was interrupted"
            )
        others = tabulate_other_versions(self.results["cell"], self.other_versions)
        return connect(self.runs, tables, others)

    def query(self, sql: str, **parameters: Any) -> pd.DataFrame:
        """Run a query in DuckDB's SQL.

        The tables are `runs`, and, for the runs that have ended,

        - `rows`, the long table: cell, epoch, is_last, step, split, site, layer_index, layer,
          metric, value, reason;
        - `last`, the rows of each run's last epoch, without the columns epoch, is_last and step;
        - `layers`: cell, site, layer, position (from 1, among the layers of the site), layers
          (number at the site), relative_depth (0 for the first layer, 1 for the last);
        - `final`: `last` with position, layers and relative_depth of `layers`; values of the whole
          model have layer_index -1 and no position;
        - `steps`: cell, step, split, layer, metric, value of `rows`, and of the measurements within
          epochs; in runs that were recorded without steps, step is the epoch;
        - `folds`: cell, fold, split, layer, metric, value on parts of the probe sets, after the
          last epoch.

        Args:
            sql: Query.
            parameters: Values of the query's parameters, such as `$name`.
        """
        return self.connection.execute(sql, parameters or None).df()

    @cached_property
    def parts(self) -> list[Self]:
        """Parts of the study, each with comparable runs.

        Values are comparable if they were measured on the same samples of the same data by the same
        version of bnstudy. Runs that have not ended are in the part that they would be comparable
        with; if there is none, in the first.
        """
        return [
            replace(self, runs=self.runs[self.runs["part"] == part])
            for part in sorted(self.runs["part"].unique())
        ]

    @property
    def results(self) -> pd.DataFrame:
        """Rows of `runs` that have ended (completed or diverged), without repeated runs."""
        counted = self.runs["ended"] & self.runs["duplicate_of"].isna()
        return self.runs[counted].reset_index(drop=True)

    @cached_property
    def identical(self) -> dict[str, str]:
        """Earlier treatment with the same values, by treatment; see `find_identical_treatments`."""
        return find_identical_treatments(self.results, self.treatments)

    @property
    def measured_on(self) -> str:
        """Description of the data, probe set and version of the results."""
        return "; ".join(sorted(set(self.results["comparable"])))

    @property
    def treatments(self) -> list[str]:
        """Treatments of the runs that have ended; default baselines come first."""
        names = set(self.results["treatment"])
        return [name for name in BASELINES if name in names] + sorted(
            names - {*BASELINES}, key=natural_key
        )

    def baseline(self, requested: str | None = None) -> str:
        """Choose the treatment to compare with.

        Args:
            requested: One of `treatments`; None: no normalization, otherwise BatchNorm, otherwise
                the first one.

        Raises:
            UserError: There is no such treatment.
        """
        if requested is not None and requested not in self.treatments:
            raise UserError(
                f"baseline={requested} is not in {self.folder}; "
                f"expected {', '.join(self.treatments)}"
            )
        return requested or self.treatments[0]

    def treatments_without(self, baseline: str) -> list[str]:
        """List the treatments that are compared with a baseline."""
        return [name for name in self.treatments if name != baseline]

    def counts(self) -> str:
        """Describe the number of runs, in total and by status."""
        counts = Counter(self.runs["status"])
        order = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
        by_status = ", ".join(f"{count} {status}" for status, count in order)
        return f"{format_count(len(self.runs), 'run')}: {by_status}"
