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
import pandas as pd

from bnstudy.config import OF_EACH_NORM
from bnstudy.errors import UserError
from bnstudy.runs.identity import essence
from bnstudy.runs.record import Record

if TYPE_CHECKING:
    from bnstudy.study.figures import Plot

TREATMENT = ("norm.", "regularizer.")  # keys of what is compared

BASELINES = ("none", "batchnorm")  # which is compared with, unless one is asked for

NAMES = {"model.depth": "depth", "model.width": "width", "optim.lr": "lr"}  # of columns

UNREADABLE = "unreadable"  # the status of a run whose run.json says nothing

# The long table of the runs that have ended. A layer is named as in the logs: by its site as well,
# unless that is the activation.
ROWS = """
    select runs.cell, epoch, epoch = runs.last_epoch as is_last, step, split, site, layer_index,
           case when site is null or site = 'act' then layer else layer || '.' || site end as layer,
           metric, value, files.reason
    from files join runs on runs.path = files.filename
"""

# The numbers of each run's last epoch, with their places. DuckDB looks for the epochs of a join
# while it reads the files, and passes over the rest.
LAST = f"select * exclude (epoch, is_last, step) from ({ROWS} and epoch = last_epoch)"
FINAL = """
    select last.*, relative_depth, coalesce(place_index, 0) as place_index,
           coalesce(place, last.layer) as place
    from last left join places using (cell, layer)
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
            configs: What can change the numbers of each, of `bnstudy.runs.identity.essence`.
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
            - status, ended (completed or diverged, its table there: it is among the results),
              remark (such as why it is not), attempts, failures, seconds, measure_seconds;
            - last_epoch, and the final numbers: train_loss, test_accuracy, ...;
            - commit, dirty, version, torch, python, processor, gpus, threads, host, data_sha256,
              probe.
        design: What they differ in.
        directions: By metric, which values are better: higher, lower or None.
    """

    def __init__(
        self, folder: Path, runs: pd.DataFrame, design: Design, directions: dict[str, str | None]
    ) -> None:
        self.name = folder.name
        self.folder = folder
        self.runs = runs
        self.design = design
        self.directions = directions

    @cached_property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """A database with the tables `runs`, `rows`, `places` and `final`; see `query`."""
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
        connection.execute(f"create view rows as {ROWS}")
        connection.execute(f"create table last as {LAST}")
        connection.execute(f"create table places as {places_of('last')}")
        connection.execute(f"create view final as {FINAL}")
        return connection

    def query(self, sql: str, **parameters: Any) -> pd.DataFrame:
        """The answer to a question in SQL.

        Args:
            sql: It reads these tables. `runs`. `rows`, the long table of the runs that have ended:
                cell, epoch, is_last, step, split, site, layer_index, layer, metric, value, reason.
                `places`: cell, site, layer, relative_depth, place, place_index. A place is the name
                of a layer, where all runs have the same layers; otherwise one of as many stretches
                of relative depth as the shallowest network has layers. `final`, the last epochs:
                the columns of both, where it is not a layer's with layer_index -1, place_index 0.
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
        from bnstudy.study.statistics import effects  # which needs this module

        return effects(self, baseline, by=by)

    @cached_property
    def plot(self) -> "Plot":
        """Its figures: `study.plot.layers("silhouette")` is a Matplotlib figure to go on with."""
        from bnstudy.study.figures import Plot  # which needs this module
        from bnstudy.study.findings import Findings

        return Plot(Findings(self))

    @cached_property
    def parts(self) -> "list[Study]":
        """The study, in as many parts as it takes for the runs of each to be comparable.

        Numbers are comparable that were measured on the same samples of the same data, by metrics
        of the same definition: the same version of bnstudy. Runs that have not ended are in the
        first part.
        """
        return [
            Study(self.folder, self.runs[self.runs["part"] == part], self.design, self.directions)
            for part in sorted(self.runs["part"].unique())
        ]

    @property
    def results(self) -> pd.DataFrame:
        """The runs that have ended: completed, or diverged."""
        return self.runs[self.runs["ended"]].reset_index(drop=True)

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
    cells = sorted({path.parent for path in folder.glob("*/run.json*")})
    if not cells:
        raise UserError(
            f"{folder}: no run.json in its folders; give the folder of a study, such as "
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
    parts = runs.loc[runs["ended"], "comparable"].value_counts().index
    runs["part"] = parts.get_indexer(runs["comparable"]).clip(min=0)
    for column in runs.columns[[dtype.kind == "O" for dtype in runs.dtypes]]:
        words = runs[column].map(lambda value: isinstance(value, str))
        if words.any() and column in design.grid:  # numbers and words
            runs[column] = runs[column].map(str)
    return Study(
        folder, runs, design, {metric: next(iter(found)) for metric, found in directions.items()}
    )


def places_of(table: str) -> str:
    """A query for the places of layers.

    A layer's place is its name, where all runs have the same layers; otherwise its relative depth.
    The places are as many as the shallowest network has layers: in a network of L layers the i-th,
    counted from 1, has the depth i/L, and belongs to the place ceil(i/L * fewest). The layers of a
    site are counted by themselves: their indices depend on which others were read with them.

    Args:
        table: Which has the layers: cell, site, layer_index, layer.

    Returns:
        In SQL: cell, site, layer, relative_depth, place_index, place.
    """
    return f"""
        with layers as (
            select cell, site, layer, min(layer_index) as layer_index
            from {table} where layer_index >= 0 group by all
        ),
        positions as (
            select *, row_number() over (partition by cell, site order by layer_index) as position,
                   count(*) over (partition by cell, site) as layers
            from layers
        ),
        sites as (
            select site, min(layers) as fewest,
                   min(layers) = max(layers) and count(distinct layer) = max(layers) as same
            from positions group by site
        )
        select cell, site, layer, position / layers as relative_depth,
               (position * fewest + layers - 1) // layers as place_index,
               case when same then layer
                    else concat('depth ', round(100 * place_index / fewest)::int, ' %',
                                case when site = 'act' then '' else ' ' || site end)
               end as place
        from positions join sites using (site)
    """


class _Run(NamedTuple):
    """What is kept of a run.json.

    Attributes:
        facts: Columns of `Study.runs`.
        config: Of `bnstudy.runs.identity.essence`; empty where it cannot be read.
        directions: Of its metrics.
    """

    facts: dict[str, Any]
    config: dict[str, Any]
    directions: dict[str, str | None]


def _read(folder: Path) -> _Run:
    try:
        record = Record.read(folder)
        config = essence(record.description["config"])
    except (UserError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        facts = {"cell": folder.name, "status": UNREADABLE, "remark": reason, "ended": False}
        return _Run(facts, {}, {})
    whole = record.description
    norm, regularizer = config["norm.name"], config["regularizer.name"]
    attempts, environment, data = whole["attempts"], whole["environment"], whole.get("data", {})
    ended = record.has_ended
    packages, git = environment.get("packages", {}), environment.get("git") or {}
    facts = {
        "cell": folder.name,
        "path": str(record.table_path),
        "overrides": " ".join(whole.get("overrides", ())),
        "treatment": norm if regularizer == "none" else f"{norm} + {regularizer}",
        "norm": norm,
        "regularizer": regularizer,
        "model": whole["choices"].get("model"),
        "data": config.get("data.name", whole["choices"].get("data")),
        **{name: config.get(key) for key, name in NAMES.items()},
        "status": whole["status"],
        "remark": _remark(record, ended),
        "ended": ended,
        "attempts": len(attempts),
        "failures": record.failures,
        "seconds": whole["timing"].get("seconds"),
        "measure_seconds": whole["timing"].get("measure_seconds"),
        "last_epoch": whole["final"].get("epoch"),
        **{key: value for key, value in whole["final"].items() if key != "epoch"},
        "commit": git.get("commit"),
        "dirty": git.get("dirty"),
        "version": packages.get("bnstudy"),
        "torch": packages.get("torch"),
        "python": environment.get("python"),
        "processor": environment.get("processor"),
        "gpus": ", ".join(environment.get("gpus", ())),
        "threads": environment.get("threads"),
        "host": attempts[-1].get("host") if attempts else None,
        "data_sha256": data.get("sha256"),
        "probe": " + ".join(f"{size} {split}" for split, size in data.get("probe", {}).items()),
    }
    return _Run(facts, config, whole.get("metrics", {}))


def _remark(record: Record, ended: bool) -> str | None:
    """Why a run is not among the results, or a remark about it."""
    attempts = record.description["attempts"]
    match record.status:
        case "diverged" | "completed" if not ended:
            return f"{record.table_path.name} is not there, or damaged"
        case "diverged":
            return "its loss was not finite at some time; it is among the results"
        case "failed":
            return next((one["error"] for one in reversed(attempts) if "error" in one), "unknown")
        case "running":
            return f"still running, or killed: begun {attempts[-1]['started']}"
        case "interrupted":
            return "the same command again goes on with it"
        case _:
            return None


def _row(run: _Run, design: Design, redefined: set[str]) -> dict[str, Any]:
    """A row of `Study.runs`."""
    facts, config, directions = run
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
        f"{facts['probe'] or 'unknown size'}, bnstudy {facts['version']}"
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
