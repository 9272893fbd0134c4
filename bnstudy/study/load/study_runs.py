"""The runs of a study: what they are, which are comparable, and a database of their numbers."""

from collections import Counter
from collections.abc import Mapping, Sequence
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
    final_numbers,
    find_identical_treatments,
    mark_duplicates,
    mark_repetitions,
)

BASELINES = ("none", "batchnorm")  # which is compared with, unless one is asked for


class StudyRuns:
    """The runs of a study.

    Attributes:
        name: Name of the study.
        folder: Folder that its runs lie in.
        runs: One row a run, whatever became of it, with the columns

            - cell, path (of its table), overrides, seed, treatment (its norm, its regularizer and
              those of their options that were swept), norm, regularizer, model, data, depth, width,
              lr, and every other key of the configuration that varies over the study;
            - own: what the treatment has one value of, such as a learning rate, in words;
            - pair: the same number for runs that differ in nothing but the treatment;
              grid: their point of the grid in words, all but the seed; part: see `parts`;
            - status, ended (completed or diverged, its table there), remark (such as why it is not
              among the results), attempts, failures, seconds, measure_seconds;
            - duplicate_of: the cell of the run that this one repeats, which counts in its place;
            - last_epoch, and the final numbers: train_loss, test_accuracy, ...;
            - commit, dirty, version, torch, python, processor, gpus, threads, host, data_sha256,
              probe.
        design: Keys that they differ in.
        directions: Better values by metric: higher, lower or None.
        settings: Settings by cell, in which runs of a pair may differ besides the norm.
        other_versions: Rows by cell of its table that another version of bnstudy measured, as
            in `Record.other_versions`; they are in none of the tables.
    """

    def __init__(
        self,
        folder: Path,
        runs: pd.DataFrame,
        design: Design,
        directions: dict[str, str | None],
        settings: Mapping[str, Mapping[str, Any]],
        other_versions: Mapping[str, Sequence[Mapping[str, Any]]],
    ) -> None:
        self.name = folder.name
        self.folder = folder
        self.runs = runs
        self.design = design
        self.directions = directions
        self.settings = settings
        self.other_versions = other_versions

    @classmethod
    def read(cls, folder: Path | str) -> Self:
        """Read the runs in a study's folder.

        Args:
            folder: Folder of a study, such as multirun/mnist5k_cnn.

        Raises:
            UserError: There are none that can be read.
        """
        folder = Path(folder)
        records = read_records(folder)
        readable = [record for record in records if record.config]
        if not readable:
            raise UserError(
                f"{folder}: none of its {len(records)} {RECORD} can be read; of the first one:\n"
                f"{records[0].facts['remark']}"
            )
        design = Design.of(
            [record.facts["treatment"] for record in readable],
            [record.config for record in readable],
        )
        runs = tabulate_runs(records, design)
        mark_duplicates(runs, [record.own_name for record in records])
        mark_repetitions(runs)
        parts = runs.loc[runs["ended"], "comparable"].value_counts().index
        runs["part"] = parts.get_indexer(runs["comparable"]).clip(min=0)
        return cls(
            folder,
            runs,
            design,
            {metric: found[0] for metric, found in collect_directions(records).items()},
            {record.facts["cell"]: record.settings for record in records},
            {
                record.facts["cell"]: record.other_versions
                for record in records
                if record.other_versions
            },
        )

    @cached_property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """A database with the tables `runs`, `rows`, `layers` and `final`; see `query`."""
        tables = self.results["path"].tolist()
        if not tables:
            raise UserError(
                f"{self.folder} has no run that has ended: {self.counts()}\n"
                "Run the same command of bnstudy.train again; it goes on where it was interrupted"
            )
        others = tabulate_other_versions(self.results["cell"], self.other_versions)
        return connect(self.runs, tables, others)

    def query(self, sql: str, **parameters: Any) -> pd.DataFrame:
        """Answer a question in SQL.

        Args:
            sql: It reads these tables. `runs`. `rows`, the long table of the runs that have ended:
                cell, epoch, is_last, step, split, site, layer_index, layer, metric, value, reason.
                `layers`: cell, site, layer, position (from 1, among the layers of that site),
                layers (how many the site has), relative_depth (0: the first one, 1: the last one).
                `final`, the last epochs: the columns of both; numbers of the whole model have
                layer_index -1 and no position.
            parameters: The values of `$name` in it.
        """
        return self.connection.execute(sql, parameters or None).df()

    @cached_property
    def parts(self) -> list[Self]:
        """The study, in as many parts as it takes for the runs of each to be comparable.

        Numbers are comparable that were measured on the same samples of the same data, by metrics
        of the same definition: the same version of bnstudy. Runs that have not ended are in the
        first part.
        """
        return [
            type(self)(
                self.folder,
                self.runs[self.runs["part"] == part],
                self.design,
                self.directions,
                self.settings,
                self.other_versions,
            )
            for part in sorted(self.runs["part"].unique())
        ]

    @property
    def results(self) -> pd.DataFrame:
        """The runs that have ended, completed or diverged, each of them once."""
        counted = self.runs["ended"] & self.runs["duplicate_of"].isna()
        return self.runs[counted].reset_index(drop=True)

    @cached_property
    def identical(self) -> dict[str, str]:
        """Treatments that are the same as an earlier one, of `find_identical_treatments`."""
        return find_identical_treatments(self.results, self.treatments, final_numbers(self.runs))

    @property
    def measured_on(self) -> str:
        """Data, probe set and version that the results were measured with, in words."""
        return "; ".join(sorted(set(self.results["comparable"])))

    @property
    def treatments(self) -> list[str]:
        """Treatments of the runs that have ended, the candidates for the baseline first."""
        names = set(self.results["treatment"])
        return [name for name in BASELINES if name in names] + sorted(names - {*BASELINES})

    def baseline(self, asked: str | None = None) -> str:
        """Choose the treatment that the others are compared with.

        Args:
            asked: One of `treatments`; None: no normalization, or else BatchNorm, or the first.

        Raises:
            UserError: There is no such treatment.
        """
        if asked is not None and asked not in self.treatments:
            raise UserError(
                f"baseline={asked} is not in {self.folder}; it takes {', '.join(self.treatments)}"
            )
        return asked or self.treatments[0]

    def counts(self) -> str:
        """Count the runs by status, in words."""
        counts = Counter(self.runs["status"])
        order = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
        told = ", ".join(f"{count} {status}" for status, count in order)
        return f"{len(self.runs)} run{'s' if len(self.runs) != 1 else ''}: {told}"
