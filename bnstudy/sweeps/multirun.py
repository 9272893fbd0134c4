"""Sweeps over a grid: launch the cells that are not complete, then report failures."""

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from rich import box
from rich.table import Table

from bnstudy.adapters.hydra_internals import is_basic, returned
from bnstudy.adapters.submitit_internals import WorkerLost, every_result, max_jobs
from bnstudy.config.mistakes import explain
from bnstudy.config.schema import validate
from bnstudy.errors import UserError
from bnstudy.runs.lease import CellInUse
from bnstudy.runs.long_table import LongTable
from bnstudy.runs.paths import CellPaths, list_cells
from bnstudy.runs.record import Record
from bnstudy.runs.version import VERSION
from bnstudy.sweeps.detached import is_detached, print_next_steps, submit
from bnstudy.sweeps.duration import Timing, format_time_left, timing_key
from bnstudy.sweeps.grid import Cell
from bnstudy.sweeps.plan import write_plan
from bnstudy.sweeps.progress import SweepProgress
from bnstudy.sweeps.states import (
    FINISHED,
    MAX_FAILURES,
    MISSING,
    Recorded,
    State,
    determine_states,
    read_record,
)
from bnstudy.terminal import console
from bnstudy.terms import format_count
from bnstudy.training.data_check import DataCheck

MAX_LAUNCHES = 3  # per cell; a worker can die each time, for example out of memory

Redo = Literal["failed", "diverged", "all"]


@dataclass(frozen=True)
class Failure:
    """Reason why a cell did not end after it was launched.

    Attributes:
        kind: `failed` if the cell raised an error, `lost` if its worker died, `running elsewhere`
            if another process is working on it.
        error: Error message, in one line.
        log: Log file with details; None if there is none.
    """

    kind: Literal["failed", "lost", "running elsewhere"]
    error: str
    log: Path | None = None


ELSEWHERE = Failure("running elsewhere", "another process works in it")
QUEUED = Failure("running elsewhere", "its detached job waits in the queue; scancel would end it")


def sweep(cells: Sequence[Cell], launcher: Launcher, redo: Redo | None, dry_run: bool) -> None:
    """Run the cells of a grid that have not ended, then print the results of their studies.

    Args:
        cells: Cells of the grid.
        launcher: Hydra launcher of any kind.
        redo: Cells to run again: those that failed too often (`failed`), those that diverged
            (`diverged`), or all of them from the start (`all`); None for no cells.
        dry_run: Whether to only print the cells that would run and the estimated time.

    Raises:
        UserError: Cells failed, lost their workers or still run elsewhere, the data are missing or
            have changed since a cell was trained, or the name of a study is not allowed.
    """
    for study, root in {(cell.config["study"], cell.config["output_root"]) for cell in cells}:
        validate({"study": study, "output_root": root})  # else Hydra would write elsewhere
    # Different overrides can result in the same configuration.
    cells = list({cell.folder: cell for cell in cells}.values())
    records = [read_record(cell) for cell in cells]
    states = determine_states(cells, records)
    redone = [redo is not None and _should_redo(state, redo) for state in states]
    _check_data(cells, records, states, redone, redo, dry_run)
    if redo in ("diverged", "all") and not dry_run:
        _start_over([cell for cell, is_redone in zip(cells, redone, strict=True) if is_redone])
    states = [
        _state_to_redo(cell, redo) if is_redone else state
        for cell, state, is_redone in zip(cells, states, redone, strict=True)
    ]
    console.print(summary(states))
    _print_versions(
        [
            record
            for record, state in zip(records, states, strict=True)
            if isinstance(record, Record) and state in FINISHED
        ]
    )
    missing = {index: cells[index] for index, state in enumerate(states) if state in MISSING}
    if dry_run:
        _print_missing(missing.values(), [states[index] for index in missing])
        return
    if missing:
        _announce(cells, launcher)
    failures: dict[int, Failure] = {}
    if is_detached(launcher):
        if missing:
            submit(list(missing.values()), launcher)
        if missing or {"queued", "running elsewhere"} & set(states):
            print_next_steps(_studies(cells))
            return
    else:
        failures = _run(missing, launcher)
    for index, state in enumerate(states):
        if state in ("queued", "running elsewhere") and not _is_finished(cells[index]):
            failures[index] = QUEUED if state == "queued" else ELSEWHERE
    _present(cells)
    if failures:
        _raise_failures(cells, failures)


def _check_data(
    cells: Sequence[Cell],
    records: Sequence[Recorded],
    states: Sequence[State],
    redone: Sequence[bool],
    redo: Redo | None,
    dry_run: bool,
) -> None:
    """Verify, once for all cells and before results are removed, that the data are there.

    Raises:
        UserError: Data are missing, or have changed since a cell was trained.
    """
    check = DataCheck()
    for cell, record, is_redone in zip(cells, records, redone, strict=True):
        if isinstance(record, Record) and (not is_redone or redo == "failed"):
            check.require_same(record, cell.config)
    for cell, state, is_redone in zip(cells, states, redone, strict=True):
        if not dry_run and (is_redone or state in ("to resume", "to run")):
            check.require_there(cell.config)


def _announce(cells: Sequence[Cell], launcher: Launcher) -> None:
    """Write the plan of each study, and print how to watch it if jobs run side by side."""
    for study in _studies(cells):
        write_plan(study, [cell for cell in cells if cell.folder.parent == study])
        # Jobs that run side by side would mix their output.
        if not is_basic(launcher) and not is_detached(launcher):
            folder = shlex.quote(str(study))
            console.print(f"Progress: python -m bnstudy.sweep status {folder} --watch")


def _present(cells: Sequence[Cell]) -> None:
    """Print the table of each study that has runs, and make its page."""
    from bnstudy.study.present.report_files import print_page  # slow imports
    from bnstudy.study.present.terminal_table import print_table

    for study in _studies(cells):
        if list_cells(study):
            print_table(study, console)
            print_page(study)


def summary(states: Sequence[State]) -> str:
    """Format the number of cells in each state as one sentence."""
    count = Counter(states)
    complete = sum(count[state] for state in FINISHED)
    parts = [f"{complete} of {len(states)} cells complete"]
    parts[0] += f" ({count['diverged']} diverged)" if count["diverged"] else ""
    if count["not measurable"]:
        parts[0] += f" ({count['not measurable']} without a checkpoint for all requested metrics)"
    always: tuple[State, ...] = ("to resume", "to run")
    shown: tuple[State, ...] = ("to measure", *always, "running elsewhere", "queued")
    parts += [f"{count[state]} {state}" for state in shown if count[state] or state in always]
    if left := count["left alone"]:
        parts.append(
            f"{left} left alone that failed {MAX_FAILURES} times (sweep.redo=failed runs them)"
        )
    return ", ".join(parts)


def _print_versions(records: Sequence[Record]) -> None:
    """Print a warning for each other version of bnstudy that has trained complete cells."""
    versions = (record.description.version for record in records)
    count = Counter(version for version in versions if version != VERSION)
    for version, cells in sorted(count.items()):
        console.print(
            f"Complete cells of bnstudy {version}: {cells}; they are neither compared with those "
            f"of {VERSION} nor measured again (sweep.redo=all trains them anew)",
            style="yellow",
        )


def _should_redo(state: State, redo: Redo) -> bool:
    match redo:
        case "failed":
            return state == "left alone"
        case "diverged":
            return state == "diverged"
        case "all":
            return state not in ("running elsewhere", "queued")


def _state_to_redo(cell: Cell, redo: Redo | None) -> State:
    """Return the state of a cell that runs again; failed cells resume from their checkpoint."""
    resumes = redo == "failed" and CellPaths(cell.folder).last_checkpoint.exists()
    return "to resume" if resumes else "to run"


def _start_over(cells: Sequence[Cell]) -> None:
    for cell in cells:
        if not CellPaths(cell.folder).record.exists():
            continue
        with suppress(CellInUse, UserError), Record.open(cell.folder) as record:
            record.start_over()


def _studies(cells: Sequence[Cell]) -> list[Path]:
    return sorted({cell.folder.parent for cell in cells})


def _print_missing(cells: Iterable[Cell], states: Sequence[State]) -> None:
    """Print the cells that a sweep would run and the estimated time."""
    cells = list(cells)
    records = []
    for study in _studies(cells):
        for folder in list_cells(study):
            with suppress(UserError):
                records.append(Record.read(folder))
    timing = Timing(records)
    seconds = []
    for cell, state in zip(cells, states, strict=True):
        if state == "to measure":
            console.print(f"  {state:<10} {cell.folder}  from checkpoints, no training")
            continue
        epochs = cell.config["trainer"]["max_epochs"]
        if state == "to resume":
            epochs -= LongTable(CellPaths(cell.folder)).epochs_trained()
        seconds.append(timing.seconds(timing_key(cell.config), epochs))
        console.print(f"  {state:<10} {cell.folder}  {format_count(epochs, 'epoch')}")
    if seconds:
        console.print(format_time_left(seconds))


def _run(cells: dict[int, Cell], launcher: Launcher) -> dict[int, Failure]:
    """Launch cells, and launch those that lose their workers again.

    Returns:
        Failures by the cell's index in the grid.
    """
    failures: dict[int, Failure] = {}
    todo = dict(cells)
    for launched in range(MAX_LAUNCHES):
        if not todo:
            break
        if launched:
            console.print(f"Launched again, as their workers were lost: {len(todo)} cells")
        before = {index: _list_attempt_starts(cell) for index, cell in todo.items()}
        SweepProgress.total = len(todo)
        returns = _launch(launcher, list(todo.values()))
        states = determine_states(
            list(todo.values()), [read_record(cell) for cell in todo.values()]
        )
        lost: dict[int, Cell] = {}
        for (index, cell), job, state in zip(todo.items(), returns, states, strict=True):
            failures.pop(index, None)
            if failure := _failure(cell, job, state):
                failures[index] = failure
                if failure.kind == "lost":
                    lost[index] = cell
        stopped = next((job for job in returns if isinstance(job, Exception)), None)
        if stopped and before == {
            index: _list_attempt_starts(cell) for index, cell in todo.items()
        }:
            if explain(stopped):
                raise stopped
            reason = f"{type(stopped).__name__}: {stopped}".strip().splitlines()[-1]
            raise UserError(  # no cell was started, so the launcher itself is at fault
                f"The launcher has begun no cell ({reason})\nLook at its options with --cfg hydra"
            ) from stopped
        todo = lost
    return failures


def _launch(launcher: Launcher, cells: Sequence[Cell]) -> Sequence[JobReturn | Exception]:
    """Launch jobs and wait for all of them.

    Returns:
        Result of each job; the launcher's error for jobs without a result of their own.
    """
    size = max_jobs(launcher, len(cells))
    returns: list[JobReturn | Exception] = []
    for first in range(0, len(cells), size):
        jobs = [list(cell.overrides) for cell in cells[first : first + size]]
        try:
            with every_result():
                returns += launcher.launch(jobs, initial_job_idx=first)
        except Exception as error:
            returns += [error] * len(jobs)
        except SystemExit:  # raised by a stopped worker; with the basic launcher, by this process
            if is_basic(launcher):
                raise
            returns += [WorkerLost()] * len(jobs)
    return returns


def _list_attempt_starts(cell: Cell) -> list[str | None]:
    """List the start times of a cell's attempts; the list grows whenever the cell is started."""
    with suppress(UserError):
        record = Record.read(cell.folder)
        return [attempt.started for attempt in record.description.attempts]
    return []


def _is_finished(cell: Cell) -> bool:
    record = read_record(cell)
    return isinstance(record, Record) and record.is_finished


def _failure(cell: Cell, job: JobReturn | Exception, state: State) -> Failure | None:
    """Return the failure of a launched cell; None if the cell has ended."""
    if state in FINISHED:
        return None
    error = job if isinstance(job, Exception) else returned(job)
    if state == "running elsewhere" or isinstance(error, CellInUse):
        return ELSEWHERE
    if not isinstance(error, Exception):  # it returned normally, but its record is incomplete
        error = WorkerLost()
    mistake = explain(error)
    line = mistake or f"{type(error).__name__}: {error}".strip().splitlines()[-1]
    if isinstance(job, Exception) or isinstance(error, WorkerLost):
        return Failure("lost", line, getattr(error, "log", None))
    log = CellPaths(cell.folder).log
    return Failure("failed", line, log if mistake is None and log.exists() else None)


def _raise_failures(cells: Sequence[Cell], failures: dict[int, Failure]) -> None:
    """Print a table of the cells that have not ended, and raise an error.

    Raises:
        UserError: Cells failed, lost their workers or still run elsewhere.
    """
    causes = {(failure.kind, failure.error) for failure in failures.values()}
    if len(failures) > 1 == len(causes) and not any(failure.log for failure in failures.values()):
        ((kind, error),) = causes
        if kind == "failed":  # the message says what to do
            raise UserError(f"{len(failures)} of {len(cells)} cells failed:\n{error}")
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("cell", "", "error", "log"):
        table.add_column(column, overflow="fold")
    for index, failure in sorted(failures.items()):
        table.add_row(
            cells[index].folder.name, failure.kind, failure.error, str(failure.log or "–")
        )
    console.print(table)
    count = Counter(failure.kind for failure in failures.values())
    elsewhere = count["running elsewhere"]
    counted = f"{count['failed']} failed, {count['lost']} lost their worker"
    counted += f", {elsewhere} still running elsewhere" if elsewhere else ""
    raise UserError(
        f"{len(failures)} of {len(cells)} cells have not ended: {counted}\n"
        "Repeat the command to try them again"
    )
