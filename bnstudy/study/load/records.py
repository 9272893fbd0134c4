"""Table of a study's runs, made from their run.json files.

`bnstudy.study.load.database` reads the long tables. Here, they are only compared with run.json.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bnstudy.config.identity import ADDED_KEYS, select_identity_options
from bnstudy.errors import UserError, first_line
from bnstudy.redaction import redact, redact_values
from bnstudy.runs.paths import RECORD, TABLE
from bnstudy.runs.record import Record
from bnstudy.study.load.database import read_final_numbers
from bnstudy.study.load.design import COLUMN_OF_KEY, TREATMENT_PREFIXES, Design, format_options
from bnstudy.terms import PER_NORM_OPTIONS, SPLITS, is_provided

# Keys, and prefixes of keys, in which the runs of a pair may differ.
SETTINGS = ("norm.", "regularizer.", *(f"{group}.{key}" for group, key in PER_NORM_OPTIONS))

# Values of options that `select_identity_options` leaves out; `_read` adds them again, so that all
# runs have the same keys. Options of norms and regularizers are not added: not all of them have
# these options.
ADDED_TO_ALL = {
    key: value for key, value in ADDED_KEYS.items() if not key.startswith(TREATMENT_PREFIXES)
}

# Keys that are not part of a run's identity and may differ within a pair, because they change
# results only by rounding.
EXECUTION = ("trainer.accelerator", "trainer.benchmark", "trainer.compile", "trainer.strategy")

# Columns of final values that the table always has; None where a run recorded no such value.
NO_FINAL_VALUES = {f"{split}_{metric}": None for split in SPLITS for metric in ("loss", "accuracy")}

NOT_SET = "not set"  # value of a key of the grid in runs whose configuration lacks it
UNREADABLE = "unreadable"  # status of a run whose run.json cannot be read


class RunFacts(NamedTuple):
    """Facts from a run.json.

    Attributes:
        facts: Columns of `StudyRuns.runs`. The treatment does not contain the swept options yet,
            and `comparable` contains only the version.
        config: Result of `select_identity_options`, completed by `ADDED_TO_ALL`; empty if the file
            cannot be read.
        directions: Direction of each metric.
        settings: Its entry in `StudyRuns.settings`.
        other_versions: Its entry in `StudyRuns.other_versions`; empty if there is none.
        original_name: Name of the folder in which the run was trained. The folder of a copy has
            another name.
        final: Numbers of the whole model after the last epoch; None where not finite.
    """

    facts: dict[str, Any]
    config: dict[str, Any]
    directions: dict[str, str | None]
    settings: dict[str, Any]
    other_versions: list[dict[str, Any]]
    original_name: str
    final: Mapping[str, float | None]


def read_records(folder: Path) -> list[RunFacts]:
    """Read the records of all runs in a study's folder.

    Args:
        folder: Folder of a study, such as multirun/mnist5k_cnn.

    Raises:
        UserError: There are none.
    """
    # The pattern also finds run.json.damaged, so that such runs are listed as unreadable.
    cells = sorted({path.parent for path in folder.glob(f"*/{RECORD}*")})
    if not cells:
        raise UserError(
            f"{folder}: no {RECORD} in its folders; give the folder of a study, such as "
            "multirun/mnist5k_cnn"
        )
    facts_of_runs = [_read(cell) for cell in cells]
    _leave_out_contradictions(facts_of_runs)
    return facts_of_runs


def tabulate_runs(facts_of_runs: Sequence[RunFacts], design: Design) -> pd.DataFrame:
    """Make the table of runs, before repeated runs are marked and parts are numbered.

    Args:
        facts_of_runs: Result of `read_records`.
        design: Design of these runs.

    Returns:
        One row per run, with all columns of `StudyRuns.runs` except part and duplicate_of.
    """
    directions = collect_directions(facts_of_runs)
    redefined = {metric for metric, declared in directions.items() if len(declared) > 1}
    runs = pd.DataFrame([_make_row(run, design, redefined) for run in facts_of_runs])
    runs["pair"] = pd.factorize(runs["pair"])[0]
    # Values of different types, such as 0.1 and "none", cannot be sorted; as text they can. Depth,
    # width and learning rate stay numbers where some runs have none: queries compute with them.
    keys = {*COLUMN_OF_KEY, *design.grid}
    for column in {COLUMN_OF_KEY.get(key, key) for key in keys} & set(runs):
        kinds = {_find_kind(value) for value in runs[column].dropna()}
        if str in kinds or len(kinds) > 1:
            runs[column] = runs[column].map(str, na_action="ignore")
    return runs


def collect_directions(facts_of_runs: Sequence[RunFacts]) -> dict[str, list[str | None]]:
    """List the different directions that the runs declare for each metric."""
    directions: dict[str, list[str | None]] = defaultdict(list)
    for run in facts_of_runs:
        for metric, direction in run.directions.items():
            if direction not in directions[metric]:
                directions[metric].append(direction)
    return directions


def _read(folder: Path) -> RunFacts:
    try:
        record = Record.read(folder)
        config = ADDED_TO_ALL | select_identity_options(redact_values(record.description.config))
    except UserError as error:
        reason = redact(first_line(error))
        facts = {"cell": folder.name, "status": UNREADABLE, "remark": reason, "ended": False}
        return RunFacts(facts, {}, {}, {}, [], "", {})
    description = record.description
    norm, regularizer = config["norm.name"], config["regularizer.name"]
    attempts, environment, data = description.attempts, description.environment, description.data
    ended = record.is_finished
    other_versions = [rows._asdict() for rows in description.other_versions()]
    altered = "its options in run.json are not those that it was trained with"
    remarks = [
        altered if record.has_altered_config else None,
        _describe_status(record, ended),
        *map(_describe_left_out, other_versions),
    ]
    packages, git = environment.packages, environment.git
    facts = {
        "cell": folder.name,
        "path": str(record.paths.table),
        "overrides": redact(" ".join(description.overrides)),
        "treatment": norm if regularizer == "none" else f"{norm} + {regularizer}",
        "norm": norm,
        "regularizer": regularizer,
        "model": description.choices.get("model"),
        "data": _to_plain(config.get("data.name", description.choices.get("data"))),
        **{name: _to_plain(config.get(key)) for key, name in COLUMN_OF_KEY.items()},
        "label_noise": _read_label_noise(description.config["data"]),
        "hessian": _format_hessian_options(description.config.get("callbacks", {})),
        "status": description.status,
        "at_chance": description.is_at_chance,
        "remark": "; ".join(filter(None, remarks)) or None,
        "ended": ended,
        "attempts": len(attempts),
        "failures": description.num_failures,
        "seconds": description.timing.seconds,
        "measure_seconds": description.timing.measure_seconds,
        "last_epoch": description.final.epoch,
        **NO_FINAL_VALUES,
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
    return RunFacts(
        facts,
        config,
        description.metrics,
        settings,
        other_versions,
        description.cell or folder.name,
        description.final.numbers,
    )


def _leave_out_contradictions(facts_of_runs: Sequence[RunFacts]) -> None:
    """Mark ended runs as not ended if their table has other final numbers than their run.json.

    Each file alone is intact, so one of them belongs to another run.
    """
    ended = {run.facts["path"]: run for run in facts_of_runs if run.facts["ended"]}
    tables = read_final_numbers({path: run.facts["last_epoch"] for path, run in ended.items()})
    for path, run in ended.items():
        for name, number in run.final.items():
            values = tables.get((path, name), [])
            if values and all(_to_finite(value) != _to_finite(number) for value in values):
                expected = nan if number is None else number
                remark = (
                    f"{TABLE} is not the table of this {RECORD} (final {name} {values[0]} instead "
                    f"of {expected}); restore the one that belongs to another run, or train the "
                    "run again"
                )
                run.facts.update(ended=False, remark=remark)
                break


def _to_finite(number: float | None) -> float | None:
    return number if number is not None and isfinite(number) else None


def _read_label_noise(data: Mapping[str, Any]) -> float:
    """Return the share of wrong training labels; 0 for data of the user's own code."""
    return float(data.get("label_noise", 0)) if is_provided(data.get("_target_")) else 0.0


def _format_hessian_options(callbacks: Mapping[str, Any]) -> str | None:
    """Format the options of the callback that measures the Hessian as JSON; None without it."""
    options = callbacks.get("hessian", {})
    if not is_provided(options.get("_target_")):
        return None
    return json.dumps({key: value for key, value in options.items() if key != "_target_"})


def _describe_left_out(rows: Mapping[str, Any]) -> str:
    """Describe rows that are left out because another version measured them."""
    metrics = ", ".join(rows["metrics"] or ["all numbers"])
    noun = "epoch" if len(rows["epochs"]) == 1 else "epochs"
    epochs = ", ".join(map(str, rows["epochs"]))
    return (
        f"not included, because measured by bnstudy {rows['version']}: {metrics} of {noun} {epochs}"
    )


def _describe_status(record: Record, ended: bool) -> str | None:
    """Describe why a run has not ended, or what is special about its end; None if nothing."""
    attempts = record.description.attempts
    match record.description.status:
        # The run was trained to its end, but its table is missing or damaged.
        case "diverged" | "completed" if not ended:
            return record.describe_table_damage()
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


def _make_row(run: RunFacts, design: Design, redefined: set[str]) -> dict[str, Any]:
    """Make a row of `StudyRuns.runs`.

    Metrics in `redefined` have different directions in different runs. Only runs that declare the
    same directions for them are comparable.
    """
    facts, config, directions = run.facts, run.config, run.directions
    if not config:
        return facts | {"comparable": ""}
    options = format_options(config, design.options)
    shared = {
        key: value
        for key, value in config.items()
        if not key.startswith(TREATMENT_PREFIXES) and key not in design.per_treatment
    }
    declared = {metric: directions[metric] for metric in redefined & directions.keys()}
    comparable = (
        f"{facts['data']} (SHA-256 {str(facts['data_sha256'])[:12]}), probe of "
        f"{facts['probe'] or 'unknown size'}, bnstudy {facts['comparable']}"
    ) + "".join(f", {metric}: {direction}" for metric, direction in sorted(declared.items()))
    return {
        **facts,
        "treatment": f"{facts['treatment']} {options}".strip(),
        "seed": config["seed"],
        **{key: _to_point(config, key) for key in design.grid if key not in COLUMN_OF_KEY},
        "grid": format_options(config, design.grid),
        "own": format_options(config, design.per_treatment),
        "pair": json.dumps(shared, sort_keys=True),
        "comparable": comparable,
    }


def _find_kind(value: Any) -> type:
    """Find the kind of a value: bool, str, or object for all others, which are numbers."""
    return next(kind for kind in (bool, str, object) if isinstance(value, kind))


def _to_point(config: Mapping[str, Any], key: str) -> Any:
    """Convert a run's value of a key of the grid; null and a missing key are values, too.

    Otherwise, runs of two kinds of model, of which one lacks the key, would have no point.
    """
    value = config.get(key, NOT_SET)
    return "null" if value is None else _to_plain(value)


def _to_plain(value: Any) -> Any:
    """Convert a value that a table cannot hold, such as a list, to JSON."""
    return value if isinstance(value, int | float | str | None) else json.dumps(value)
