"""A study's records as tables: what its runs are, and what was measured in them.

What is large stays in the runs' parquet files: DuckDB reads them where a query needs them.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from bnstudy.config.composition import OF_EACH_NORM
from bnstudy.config.identity import ADDED, essence
from bnstudy.errors import UserError, first_line
from bnstudy.runs.long_table import LAYER_LABEL
from bnstudy.runs.paths import RECORD
from bnstudy.runs.record import Record

if TYPE_CHECKING:
    from bnstudy.study.present.figures import Plot

TREATMENT = ("norm.", "regularizer.")  # keys of what is compared

BASELINES = ("none", "batchnorm")  # which is compared with, unless one is asked for

SETTINGS = ("norm.", "regularizer.", *(f"{group}.{key}" for group, key in OF_EACH_NORM))

# Options of all runs that older ones do not name, with the value that this means.
ADDED_TO_ALL = {key: value for key, value in ADDED.items() if not key.startswith(TREATMENT)}

NAMES = {"model.depth": "depth", "model.width": "width", "optim.lr": "lr"}  # of columns

# Keys that do not belong to a run's identity and that may differ within a pair: they change no
# result but for rounding.
EXECUTION = ("trainer.accelerator", "trainer.benchmark", "trainer.compile", "trainer.strategy")

MIN_REPEATED = 20  # numbers, without which two runs are not taken for the same observation

UNREADABLE = "unreadable"  # the status of a run whose run.json says nothing

# The long table of the runs that have ended. A layer is named as in the logs: by its site as well,
# unless that is the activation.
ROWS = f"""
    select runs.cell, epoch, epoch = runs.last_epoch as is_last, step, split, site, layer_index,
           {LAYER_LABEL} as layer,
           metric, value, files.reason
    from files join runs on runs.path = files.filename
"""

# What another version measured in a run of this one: null stands for all metrics, splits, sites.
OTHER_VERSIONS = """
    create table other_versions (
        cell varchar, epoch integer, metrics varchar[], splits varchar[], sites varchar[]
    )
"""
OF_THIS_VERSION = """
    where not exists (
        from other_versions as other
        where other.cell = measured.cell and other.epoch = measured.epoch
              and (other.metrics is null or list_contains(other.metrics, measured.metric))
              and (other.splits is null or list_contains(other.splits, measured.split))
              and (other.sites is null or list_contains(other.sites, measured.site))
    )
"""

# The numbers of each run's last epoch, with their layers. DuckDB looks for the epochs while it
# reads the files, and passes over the rest.
LAST = "select * exclude (epoch, is_last, step)"
FINAL = """
    select last.*, layers.* exclude (cell, site, layer)
    from last left join layers using (cell, layer)
"""


@dataclass(frozen=True)
class Design:
    """What the runs of a study differ in, by key of the configuration.

    Attributes:
        options: Of a normalization or a regularizer, which were swept: each value is a treatment.
        own: What each treatment has one value of, such as a learning rate; it belongs to it.
        grid: The other ones, but for the seed: treatments are compared at each point.
    """

    options: tuple[str, ...]
    own: tuple[str, ...]
    grid: tuple[str, ...]

    @classmethod
    def of(cls, treatments: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> "Design":
        """The design of some runs.

        Args:
            treatments: The normalization of each, with its regularizer.
            configs: What can change the numbers of each, of `bnstudy.config.identity.essence`.
        """
        of_treatment = defaultdict(list)
        for treatment, config in zip(treatments, configs, strict=True):
            of_treatment[treatment].append(config)
        swept = set[str]().union(*(_varying(some) for some in of_treatment.values()))
        varying = _varying(configs)
        own = varying & {f"{group}.{key}" for group, key in OF_EACH_NORM} - swept
        options = {key for key in swept if key.startswith(TREATMENT)}
        grid = {key for key in varying if not key.startswith(TREATMENT)} - own - {"seed"}
        return cls(tuple(sorted(options)), tuple(sorted(own)), tuple(sorted(grid)))


class Study:
    """The runs of a study.

    Attributes:
        name: Of the study.
        folder: Where its runs lie.
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
        design: What they differ in.
        directions: By metric, which values are better: higher, lower or None.
        settings: By cell, the settings by which runs of a pair may differ besides the norm.
        other_versions: By cell, the rows of its table that another version of bnstudy measured, as
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

    @cached_property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """A database with the tables `runs`, `rows`, `layers` and `final`; see `query`."""
        connection = duckdb.connect()
        connection.register("described", self.runs)
        connection.execute("create table runs as from described")
        tables = self.results["path"].tolist()
        if not tables:
            raise UserError(
                f"{self.folder} has no run that has ended: {self.counts()}\n"
                "Run the same command of bnstudy.train again; it goes on where it was interrupted"
            )
        connection.read_parquet(tables, filename=True).create_view("files")
        condition = ""
        if others := self._rows_of_other_versions():
            connection.execute(OTHER_VERSIONS)
            connection.executemany("insert into other_versions values (?, ?, ?, ?, ?)", others)
            condition = OF_THIS_VERSION
        connection.execute(f"create view rows as from ({ROWS}) as measured {condition}")
        last = f"from ({ROWS} and epoch = last_epoch) as measured {condition}"
        connection.execute(f"create table last as {LAST} {last}")
        connection.execute(f"create table layers as {layers_of('last')}")
        connection.execute(f"create view final as {FINAL}")
        return connection

    def _rows_of_other_versions(self) -> list[tuple[Any, ...]]:
        """Rows of the table `other_versions`."""
        return [
            (cell, epoch, rows["metrics"], rows["splits"], rows["sites"])
            for cell in set(self.results["cell"]) & self.other_versions.keys()
            for rows in self.other_versions[cell]
            for epoch in rows["epochs"]
        ]

    def query(self, sql: str, **parameters: Any) -> pd.DataFrame:
        """The answer to a question in SQL.

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

    def metrics(
        self, *names: str, split: str | None = None, every_epoch: bool = False
    ) -> pd.DataFrame:
        """What was measured in the runs that have ended.

        Args:
            names: Of metrics, `accuracy` and `loss` among them; none: all.
            split: Whose samples; None: all splits.
            every_epoch: Each epoch's numbers instead of each run's last.

        Returns:
            One row a number: cell, treatment, seed, depth, width, epoch, split, site, layer_index
            (-1 for the whole model's), layer, metric, value, reason (why it is NaN).

        Raises:
            UserError: No run has ended, or none has such a metric or split.
        """
        known = self.query("select distinct metric, split from last order by all")
        for what, asked, there in (
            ("metric", names, known["metric"]),
            ("split", [split] if split else [], known["split"]),
        ):
            if unknown := set(asked) - set(there):
                raise UserError(
                    f"{what}={sorted(unknown)[0]} is not in {self.folder}; "
                    f"it has {', '.join(there.unique())}"
                )
        return self.query(
            """
            select cell, treatment, seed, depth, width, epoch, split, site, layer_index, layer,
                   metric, value, reason
            from rows join runs using (cell)
            where (is_last or $every_epoch) and (metric in $names or $all_metrics)
                  and (split = $split or $split is null)
            order by cell, epoch, split desc, layer_index, metric
            """,
            every_epoch=every_epoch,
            names=list(names),
            all_metrics=not names,
            split=split,
        )

    def effects(self, baseline: str | None = None, *, by: Sequence[str] = ()) -> pd.DataFrame:
        """Paired differences to a baseline with their uncertainty: `statistics.effects`.

        Args:
            baseline: A treatment; None: as in `baseline`.
            by: Columns of `runs`, such as depth, at each of whose values pairs are compared.
        """
        from bnstudy.study.effects import effects  # which needs this module

        return effects(self, baseline, by=by)

    @cached_property
    def plot(self) -> "Plot":
        """Its figures: `study.plot.layers("silhouette")` is a Matplotlib figure to go on with."""
        from bnstudy.study.analysis import Findings
        from bnstudy.study.present.figures import Plot  # which needs this module

        return Plot(Findings(self))

    @cached_property
    def parts(self) -> "list[Study]":
        """The study, in as many parts as it takes for the runs of each to be comparable.

        Numbers are comparable that were measured on the same samples of the same data, by metrics
        of the same definition: the same version of bnstudy. Runs that have not ended are in the
        first part.
        """
        return [
            Study(
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
        """Treatments all of whose pairs with an earlier treatment are the same, digit for digit.

        By treatment, the first one that it is the same as. Such runs say nothing of the treatment:
        the network seems to ignore it. The loss of at least one pair must be known: other numbers
        are equal by chance.
        """
        numbers = _final_numbers(self.runs)
        found: dict[str, str] = {}
        if "train_loss" not in numbers:
            return found
        treatments = self.treatments
        results = self.results[["treatment", "pair", "path", *numbers]]
        for treatment in treatments:
            for earlier in treatments[: treatments.index(treatment)]:
                one, other = (
                    results[results["treatment"] == name] for name in (earlier, treatment)
                )
                pairs = one.merge(other, on="pair", suffixes=("", "_other"))
                ours = pairs[numbers].to_numpy(float)
                theirs = pairs[[f"{name}_other" for name in numbers]].to_numpy(float)
                is_known = pairs["train_loss"].notna()  # unless both runs diverged
                if (
                    is_known.any()
                    and earlier not in found
                    and np.array_equal(ours, theirs, equal_nan=True)
                    and all(map(_are_identical, pairs["path"], pairs["path_other"], is_known))
                ):
                    found[treatment] = earlier
                    break
        return found

    @property
    def what(self) -> str:
        """What the runs that have ended were measured on and by, in words."""
        return "; ".join(sorted(set(self.results["comparable"])))

    @property
    def treatments(self) -> list[str]:
        """Of the runs that have ended, the baselines' candidates first."""
        names = set(self.results["treatment"])
        return [name for name in BASELINES if name in names] + sorted(names - {*BASELINES})

    def baseline(self, asked: str | None = None) -> str:
        """The treatment that the others are compared with.

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
        """How many runs there are, and what became of them."""
        counts = Counter(self.runs["status"])
        order = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
        told = ", ".join(f"{count} {status}" for status, count in order)
        return f"{len(self.runs)} run{'s' if len(self.runs) != 1 else ''}: {told}"


def load(folder: Path | str) -> Study:
    """The runs in a study's folder.

    Args:
        folder: Such as multirun/mnist5k_cnn.

    Raises:
        UserError: There are none.
    """
    folder = Path(folder)
    cells = sorted({path.parent for path in folder.glob(f"*/{RECORD}*")})
    if not cells:
        raise UserError(
            f"{folder}: no {RECORD} in its folders; give the folder of a study, such as "
            "multirun/mnist5k_cnn"
        )
    read = [_read(cell) for cell in cells]
    design = Design.of(
        [run.facts["treatment"] for run in read if run.config],
        [run.config for run in read if run.config],
    )
    directions: dict[str, set[str | None]] = defaultdict(set)
    for run in read:
        for metric, direction in run.directions.items():
            directions[metric].add(direction)
    redefined = {metric for metric, found in directions.items() if len(found) > 1}
    runs = pd.DataFrame([_row(run, design, redefined) for run in read])
    runs["pair"] = pd.factorize(runs["pair"])[0]
    _mark_duplicates(runs, [run.own_name for run in read])
    _mark_repetitions(runs)
    parts = runs.loc[runs["ended"], "comparable"].value_counts().index
    runs["part"] = parts.get_indexer(runs["comparable"]).clip(min=0)
    for column in runs.columns[[dtype.kind == "O" for dtype in runs.dtypes]]:
        words = runs[column].map(lambda value: isinstance(value, str))
        if words.any() and column in design.grid:  # numbers and words
            runs[column] = runs[column].map(str)
    return Study(
        folder,
        runs,
        design,
        {metric: next(iter(found)) for metric, found in directions.items()},
        {run.facts["cell"]: run.settings for run in read},
        {run.facts["cell"]: run.other_versions for run in read if run.other_versions},
    )


def layers_of(table: str) -> str:
    """A query for the layers of each run, in the order of computation, each site by itself.

    Layers' indices depend on which others were read with them, their order does not.

    Args:
        table: Which has the layers: cell, site, layer_index, layer.

    Returns:
        In SQL: cell, site, layer, position, layers, relative_depth; see `Study.query`.
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


class _Run(NamedTuple):
    """What is kept of a run.json.

    Attributes:
        facts: Columns of `Study.runs`.
        config: Of `bnstudy.config.identity.essence`, and options that were added since the run,
            with the value that their absence means; empty where it cannot be read.
        directions: Of its metrics.
        settings: As in `Study`.
        other_versions: As in `Study`.
        own_name: Name of the folder that it was trained in; a copy lies in another one.
    """

    facts: dict[str, Any]
    config: dict[str, Any]
    directions: dict[str, str | None]
    settings: dict[str, Any]
    other_versions: list[dict[str, Any]]
    own_name: str


def _read(folder: Path) -> _Run:
    try:
        record = Record.read(folder)
        config = ADDED_TO_ALL | essence(record.description.config)
    except (UserError, KeyError, TypeError) as error:
        reason = first_line(error)
        facts = {"cell": folder.name, "status": UNREADABLE, "remark": reason, "ended": False}
        return _Run(facts, {}, {}, {}, [], "")
    described = record.description
    norm, regularizer = config["norm.name"], config["regularizer.name"]
    attempts, environment, data = described.attempts, described.environment, described.data
    ended, others = record.has_ended, [rows._asdict() for rows in described.other_versions()]
    packages, git = environment.packages, environment.git
    facts = {
        "cell": folder.name,
        "path": str(record.paths.table),
        "overrides": " ".join(described.overrides),
        "treatment": norm if regularizer == "none" else f"{norm} + {regularizer}",
        "norm": norm,
        "regularizer": regularizer,
        "model": described.choices.get("model"),
        "data": config.get("data.name", described.choices.get("data")),
        **{name: config.get(key) for key, name in NAMES.items()},
        "status": described.status,
        "remark": "; ".join(filter(None, [_remark(record, ended), *map(_left_out, others)]))
        or None,
        "ended": ended,
        "attempts": len(attempts),
        "failures": described.failures,
        "seconds": described.timing.seconds,
        "measure_seconds": described.timing.measure_seconds,
        "last_epoch": described.final.epoch,
        **described.final.numbers,
        "commit": git.commit if git else None,
        "dirty": git.dirty if git else None,
        "version": packages.get("bnstudy"),
        "comparable": described.version,
        "torch": packages.get("torch"),
        "python": environment.python,
        "processor": environment.processor,
        "gpus": ", ".join(environment.gpus),
        "threads": environment.threads,
        "host": attempts[-1].host if attempts else None,
        "data_sha256": data.sha256 if data else None,
        "probe": " + ".join(
            f"{size} {split}" for split, size in (data.probe if data else {}).items()
        ),
    }
    settings = {key: value for key, value in config.items() if key.startswith(SETTINGS)}
    for key in EXECUTION:
        group, _, name = key.partition(".")
        settings[key] = described.config[group].get(name)
    return _Run(facts, config, described.metrics, settings, others, described.cell or folder.name)


def _left_out(rows: Mapping[str, Any]) -> str:
    """A remark about rows that another version measured."""
    metrics = ", ".join(rows["metrics"] or ["all numbers"])
    epochs = ", ".join(map(str, rows["epochs"]))
    return f"left out, as measured by bnstudy {rows['version']}: {metrics} of epochs {epochs}"


def _mark_duplicates(runs: pd.DataFrame, own_names: Sequence[str]) -> None:
    """Find copies of a run, and runs that were trained again in another folder.

    Of several runs with the same configuration and seed, on the same data, the one that counts has
    ended, or completed rather than diverged; then it is the one that lies in the folder that it was
    trained in; then the first one by name.
    """
    runs["duplicate_of"] = None
    order = pd.DataFrame(
        {
            "ended": ~runs["ended"],
            "completed": runs["status"] != "completed",
            "copied": runs["cell"] != own_names,
            "cell": runs["cell"],
        }
    ).sort_values(["ended", "completed", "copied", "cell"])
    ordered = runs.loc[order.index]
    keys = ["treatment", "pair", "comparable"]
    known = ordered[ordered["comparable"] != ""]
    known = known[known.duplicated(keys, keep=False)]  # most runs have no duplicate
    for _, same in known.groupby(keys, sort=False):
        first, *others = same.index
        _mark(runs, others, first, "the same run as {}, which counts in its place")


def _mark_repetitions(runs: pd.DataFrame) -> None:
    """Find runs of a treatment whose numbers are another run's, digit for digit.

    What they differ in, such as the seed, had no effect: they are one observation. The one that
    counts is the one with the most partners. Few numbers may be equal by chance, accuracies above
    all.
    """
    numbers = _final_numbers(runs)
    if "train_loss" not in numbers:
        return
    counted = runs[runs["ended"] & runs["duplicate_of"].isna() & runs["train_loss"].notna()]
    keys = ["treatment", "comparable", *numbers]
    partners = counted.groupby(["pair", "comparable"])["cell"].transform("size")
    equal = counted.assign(partners=-partners)[counted.duplicated(keys, keep=False)]
    ordered = equal.sort_values(["partners", "grid", "seed", "cell"], kind="stable")
    for _, same in ordered.groupby(keys, dropna=False, sort=False):
        first, *others = same.index
        paths = same["path"].astype(str)
        repeated = [
            other for other in others if _are_identical(paths[first], paths[other], MIN_REPEATED)
        ]
        _mark(runs, repeated, first, "its numbers are all those of {}, as which it counts")


def _mark(runs: pd.DataFrame, duplicates: list[int], first: int, remark: str) -> None:
    if duplicates:
        cell = str(runs.at[first, "cell"])
        runs.loc[duplicates, "duplicate_of"] = cell
        runs.loc[duplicates, "remark"] = [
            f"{earlier}; {remark.format(cell)}" if isinstance(earlier, str) else remark.format(cell)
            for earlier in runs.loc[duplicates, "remark"]
        ]


def _final_numbers(runs: pd.DataFrame) -> list[str]:
    return [name for name in map(str, runs) if name.endswith(("_loss", "_accuracy"))]


def _are_identical(table: str, other_table: str, min_numbers: int = 1) -> bool:
    """Whether all numbers that two long tables have in common are the same, digit for digit.

    Numbers before training are left out. What only one table has was measured later.

    Args:
        table: Path of the one.
        other_table: Path of the other.
        min_numbers: How many finite ones besides accuracies they must have in common.
    """
    keys = ["epoch", "split", "site", "layer", "metric"]
    one, other = (
        pq.read_table(path, columns=[*keys, "value"]).to_pandas().fillna({"site": ""})
        for path in (table, other_table)
    )
    both = one.merge(other, on=keys)
    both = both[both["epoch"] > 0]
    telling = np.isfinite(both["value_x"]) & (both["metric"] != "accuracy")
    return bool(telling.sum() >= min_numbers) and np.array_equal(
        both["value_x"], both["value_y"], equal_nan=True
    )


def _remark(record: Record, ended: bool) -> str | None:
    """Why a run is not among the results, or a remark about it."""
    attempts = record.description.attempts
    match record.description.status:
        case "diverged" | "completed" if not ended:
            return f"{record.paths.table.name} is not there, or damaged"
        case "diverged":
            return "its loss was not finite at some time; it is among the results"
        case "failed":
            return next((one.error for one in reversed(attempts) if one.error), "unknown")
        case "running":
            return f"still running, or killed: begun {attempts[-1].started}"
        case "interrupted":
            return "the same command again goes on with it"
        case _:
            return None


def _row(run: _Run, design: Design, redefined: set[str]) -> dict[str, Any]:
    """A row of `Study.runs`."""
    facts, config, directions = run.facts, run.config, run.directions
    if not config:
        return facts | {"comparable": ""}
    options = _told(config, [key for key in design.options if key in config])
    shared = {
        key: value
        for key, value in config.items()
        if not key.startswith(TREATMENT) and key not in design.own
    }
    changed = {metric: directions[metric] for metric in redefined & directions.keys()}
    comparable = (
        f"{facts['data']} (SHA-256 {str(facts['data_sha256'])[:12]}), probe of "
        f"{facts['probe'] or 'unknown size'}, bnstudy {facts['comparable']}"
    ) + "".join(f", {metric}: {direction}" for metric, direction in sorted(changed.items()))
    return {
        **facts,
        "treatment": f"{facts['treatment']} {options}".strip(),
        "seed": config["seed"],
        **{key: _plain(config.get(key)) for key in design.grid if key not in NAMES},
        "grid": _told(config, design.grid),
        "own": _told(config, design.own),
        "pair": json.dumps(shared, sort_keys=True),
        "comparable": comparable,
    }


def _varying(configs: Sequence[Mapping[str, Any]]) -> set[str]:
    """The keys that do not have the same value everywhere."""
    values: dict[str, set[str]] = defaultdict(set)
    for config in configs:
        for key, value in config.items():
            values[key].add(str(value))
    everywhere = Counter(key for config in configs for key in config)
    return {
        key for key, found in values.items() if len(found) > 1 or everywhere[key] < len(configs)
    }


def _told(config: Mapping[str, Any], keys: Iterable[str]) -> str:
    return " ".join(f"{key.rpartition('.')[2]}={config[key]}" for key in keys if key in config)


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | None) else json.dumps(value)
