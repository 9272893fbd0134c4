"""Table of a study's runs, made from their run.json files.

`bnstudy.study.load.database` reads the long tables.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bnstudy.config.identity import ADDED, essence
from bnstudy.errors import UserError, first_line
from bnstudy.redaction import redact, redact_values
from bnstudy.runs.paths import RECORD
from bnstudy.runs.record import Record
from bnstudy.study.load.design import COLUMN_OF_KEY, TREATMENT, Design, format_options
from bnstudy.terms import PER_NORM_OPTIONS, SPLITS, is_provided

SETTINGS = ("norm.", "regularizer.", *(f"{group}.{key}" for group, key in PER_NORM_OPTIONS))

# Options that older records do not contain, with the value that their absence means.
ADDED_TO_ALL = {key: value for key, value in ADDED.items() if not key.startswith(TREATMENT)}

# Keys that are not part of a run's identity and may differ within a pair, because they change
# results only by rounding.
EXECUTION = ("trainer.accelerator", "trainer.benchmark", "trainer.compile", "trainer.strategy")

# Final values that every run has a column for; runs of the user's own code need not have them.
NOT_KNOWN = {f"{split}_{metric}": None for split in SPLITS for metric in ("loss", "accuracy")}

UNREADABLE = "unreadable"  # status of a run whose run.json cannot be read


class _Run(NamedTuple):
    """Facts from a run.json.

    Attributes:
        facts: Columns of `StudyRuns.runs`.
        config: Result of `bnstudy.config.identity.essence`, with options that were added since the
            run; empty if the file cannot be read.
        directions: Directions of its metrics.
        settings: Settings, as in `StudyRuns`.
        other_versions: Rows of other versions, as in `StudyRuns`.
        original_name: Name of the folder in which the run was trained; a copy has another name.
    """

    facts: dict[str, Any]
    config: dict[str, Any]
    directions: dict[str, str | None]
    settings: dict[str, Any]
    other_versions: list[dict[str, Any]]
    original_name: str


def read_records(folder: Path) -> list[_Run]:
    """Read the records of all runs in a study's folder.

    Args:
        folder: Folder of a study, such as multirun/mnist5k_cnn.

    Raises:
        UserError: There are none.
    """
    cells = sorted({path.parent for path in folder.glob(f"*/{RECORD}*")})
    if not cells:
        raise UserError(
            f"{folder}: no {RECORD} in its folders; give the folder of a study, such as "
            "multirun/mnist5k_cnn"
        )
    return [_read(cell) for cell in cells]


def tabulate_runs(records: Sequence[_Run], design: Design) -> pd.DataFrame:
    """Make the table of runs, without what depends on other runs' numbers.

    Args:
        records: Records, of `read_records`.
        design: Their design.

    Returns:
        One row per record, with all columns of `StudyRuns.runs` except part and duplicate_of.
        comparable describes data, probe set and version; runs with the same text are comparable.
    """
    directions = collect_directions(records)
    redefined = {metric for metric, declared in directions.items() if len(declared) > 1}
    runs = pd.DataFrame([_row(record, design, redefined) for record in records])
    runs["pair"] = pd.factorize(runs["pair"])[0]
    keys = {*COLUMN_OF_KEY, *design.grid}
    for column in {COLUMN_OF_KEY.get(key, key) for key in keys} & set(runs):
        kinds = {_kind(value) for value in runs[column].dropna()}
        if str in kinds or len(kinds) > 1:
            runs[column] = runs[column].map(str)
    return runs


def collect_directions(records: Sequence[_Run]) -> dict[str, list[str | None]]:
    """List the different directions that the records declare for each metric."""
    directions: dict[str, list[str | None]] = defaultdict(list)
    for record in records:
        for metric, direction in record.directions.items():
            if direction not in directions[metric]:
                directions[metric].append(direction)
    return directions


def _read(folder: Path) -> _Run:
    try:
        record = Record.read(folder)
        config = ADDED_TO_ALL | essence(redact_values(record.description.config))
    except UserError as error:
        reason = redact(first_line(error))
        facts = {"cell": folder.name, "status": UNREADABLE, "remark": reason, "ended": False}
        return _Run(facts, {}, {}, {}, [], "")
    description = record.description
    norm, regularizer = config["norm.name"], config["regularizer.name"]
    attempts, environment, data = description.attempts, description.environment, description.data
    ended, others = record.is_finished, [rows._asdict() for rows in description.other_versions()]
    packages, git = environment.packages, environment.git
    facts = {
        "cell": folder.name,
        "path": str(record.paths.table),
        "overrides": redact(" ".join(description.overrides)),
        "treatment": norm if regularizer == "none" else f"{norm} + {regularizer}",
        "norm": norm,
        "regularizer": regularizer,
        "model": description.choices.get("model"),
        "data": _plain(config.get("data.name", description.choices.get("data"))),
        **{name: _plain(config.get(key)) for key, name in COLUMN_OF_KEY.items()},
        "label_noise": _label_noise(description.config["data"]),
        "hessian": _hessian_options(description.config.get("callbacks", {})),
        "status": description.status,
        "at_chance": description.is_at_chance,
        "remark": "; ".join(filter(None, [*_remarks(record, ended), *map(_left_out, others)]))
        or None,
        "ended": ended,
        "attempts": len(attempts),
        "failures": description.failures,
        "seconds": description.timing.seconds,
        "measure_seconds": description.timing.measure_seconds,
        "last_epoch": description.final.epoch,
        **NOT_KNOWN,
        **description.final.numbers,
        "commit": git.commit if git else None,
        "dirty": git.dirty if git else None,
        "version": packages.get("bnstudy"),
        "comparable": description.version,
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
        settings[key] = description.config[group].get(name)
    return _Run(
        facts, config, description.metrics, settings, others, description.cell or folder.name
    )


def _label_noise(data: Mapping[str, Any]) -> float:
    """Return the share of wrong training labels, as far as it is known."""
    return float(data.get("label_noise", 0)) if is_provided(data.get("_target_")) else 0.0


def _hessian_options(callbacks: Mapping[str, Any]) -> str | None:
    """Return the options of the callback that measures the Hessian, as JSON."""
    options = callbacks.get("hessian", {})
    if not is_provided(options.get("_target_")):
        return None
    return json.dumps({key: value for key, value in options.items() if key != "_target_"})


def _left_out(rows: Mapping[str, Any]) -> str:
    """Describe rows that another version measured."""
    metrics = ", ".join(rows["metrics"] or ["all numbers"])
    epochs = ", ".join(map(str, rows["epochs"]))
    return (
        f"not included, because measured by bnstudy {rows['version']}: {metrics} of epochs {epochs}"
    )


def _remarks(record: Record, ended: bool) -> Iterator[str | None]:
    if record.has_other_config:
        yield "its options in run.json are not those that it was trained with"
    yield _remark(record, ended)


def _remark(record: Record, ended: bool) -> str | None:
    """Describe why a run is not among the results, or what is special about it; None if nothing."""
    attempts = record.description.attempts
    match record.description.status:
        case "diverged" | "completed" if not ended:
            return record.lost_table
        case "diverged":
            return "its loss was not finite; the run is included in the results"
        case "completed" if record.description.is_at_chance:
            return "its training accuracy is not clearly above chance (one-sided test at 0.001)"
        case "failed":
            errors = [attempt.error for attempt in attempts if attempt.error]
            return redact(errors[-1]) if errors else "unknown"
        case "running":
            started = f"; started {attempts[-1].started}" if attempts else ""
            return f"running or killed{started}"
        case "interrupted":
            return "repeat the command to resume it"
        case _:
            return None


def _row(run: _Run, design: Design, redefined: set[str]) -> dict[str, Any]:
    """Make a row of `StudyRuns.runs`."""
    facts, config, directions = run.facts, run.config, run.directions
    if not config:
        return facts | {"comparable": ""}
    options = format_options(config, [key for key in design.options if key in config])
    shared = {
        key: value
        for key, value in config.items()
        if not key.startswith(TREATMENT) and key not in design.per_treatment
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
        **{key: _plain(config.get(key)) for key in design.grid if key not in COLUMN_OF_KEY},
        "grid": format_options(config, design.grid),
        "own": format_options(config, design.per_treatment),
        "pair": json.dumps(shared, sort_keys=True),
        "comparable": comparable,
    }


def _kind(value: Any) -> type:
    return next(kind for kind in (bool, str, object) if isinstance(value, kind))


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | None) else json.dumps(value)
