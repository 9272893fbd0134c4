"""Sweeps over a grid: launch the cells that are not complete, then list unfinished ones."""

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
from bnstudy.errors import UserError, first_line
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
from bnstudy.trained.only_in_training import (
    describe_missing_options,
    print_missing_options_of_cells,
)
from bnstudy.training.data_check import DataCheck

MAX_LAUNCHES = 3  # per cell; a worker can die each time, for example out of memory

Redo = Literal["failed", "diverged", "all"]


@dataclass(frozen=True)
class Unfinished:
    """Reason why a cell of a sweep is not finished.

    Attributes:
        state: `failed` if the cell raised an error, `lost` if its worker died, `running elsewhere`
            if another process is working on it.
        reason: Error message or other reason, in one line.
        log: Log file with details; None if there is none.
    """

    state: Literal["failed", "lost", "running elsewhere"]
    reason: str
    log: Path | None = None


ELSEWHERE = Unfinished("running elsewhere", "another process works in it")
QUEUED = Unfinished(
    "running elsewhere", "its detached job waits in the queue; scancel would end it"
)


def sweep(cells: Sequence[Cell], launcher: Launcher, redo: Redo | None, dry_run: bool) -> None:
    """Run the unfinished cells of a grid, then print the results of their studies.

    Args:
        cells: Cells of the grid.
        launcher: Hydra launcher of any kind.
        redo: Cells to run again: those that failed too often (`failed`), those that diverged
            (`diverged`), or all of them from the start (`all`); None: none of them.
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
    should_redo = [redo is not None and _should_redo(state, redo) for state in states]
    _check_data(cells, records, states, should_redo, redo, dry_run)
    if redo in ("diverged", "all") and not dry_run:
        _start_over([cell for cell, is_redone in zip(cells, should_redo, strict=True) if is_redone])
    states = [
        _state_to_redo(cell, redo) if is_redone else state
        for cell, state, is_redone in zip(cells, states, should_redo, strict=True)
    ]
    console.print(summary(states))
    finished = [
        (record, cell.config)
        for record, state, cell in zip(records, states, cells, strict=True)
        if isinstance(record, Record) and state in FINISHED
    ]
    _print_versions([record for record, _ in finished])
    print_missing_options_of_cells(
        describe_missing_options(record, config["metrics"], config["callbacks"])
        for record, config in finished
    )
    missing = {index: cells[index] for index, state in enumerate(states) if state in MISSING}
    if dry_run:
        _print_missing(missing.values(), [states[index] for index in missing])
        return
    if missing:
        _write_plans(cells, launcher)
    unfinished: dict[int, Unfinished] = {}
    if is_detached(launcher):
        if missing:
            submit(list(missing.values()), launcher)
        if missing or {"queued", "running elsewhere"} & set(states):
            print_next_steps(_studies(cells))
            return
    else:
        unfinished = _run(missing, launcher)
    for index, state in enumerate(states):
        if state in ("queued", "running elsewhere") and not _is_finished(cells[index]):
            unfinished[index] = QUEUED if state == "queued" else ELSEWHERE
    _print_results(cells)
    if unfinished:
        _raise_unfinished(cells, unfinished)


def _check_data(
    cells: Sequence[Cell],
    records: Sequence[Recorded],
    states: Sequence[State],
    should_redo: Sequence[bool],
    redo: Redo | None,
    dry_run: bool,
) -> None:
    """Verify, once for all cells and before results are removed, that the data are available.

    Raises:
        UserError: Data are missing, or have changed since a cell was trained.
    """
    check = DataCheck()
    for cell, record, is_redone in zip(cells, records, should_redo, strict=True):
        if isinstance(record, Record) and (not is_redone or redo == "failed"):
            check.require_same(record, cell.config)
    for cell, state, is_redone in zip(cells, states, should_redo, strict=True):
        if not dry_run and (is_redone or state in ("to resume", "to run")):
            check.require_there(cell.config)


def _write_plans(cells: Sequence[Cell], launcher: Launcher) -> None:
    """Write the plan of each study, and print how to watch it if jobs run side by side."""
    for study in _studies(cells):
        write_plan(study, [cell for cell in cells if cell.folder.parent == study])
        # Jobs that run side by side would mix their output.
        if not is_basic(launcher) and not is_detached(launcher):
            folder = shlex.quote(str(study))
            console.print(f"Progress: python -m bnstudy.sweep status {folder} --watch")


def _print_results(cells: Sequence[Cell]) -> None:
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
        parts[0] += (
            f" ({count['not measurable']} without checkpoints to measure the requested metrics)"
        )
    always: tuple[State, ...] = ("to resume", "to run")
    shown: tuple[State, ...] = ("to measure", *always, "running elsewhere", "queued")
    parts += [f"{count[state]} {state}" for state in shown if count[state] or state in always]
    if skipped := count["skipped"]:
        parts.append(
            f"{skipped} skipped after {MAX_FAILURES} failures (sweep.redo=failed runs them again)"
        )
    return ", ".join(parts)


def _print_versions(records: Sequence[Record]) -> None:
    """Print a warning for each other version of bnstudy that has trained complete cells."""
    versions = (record.description.version for record in records)
    count = Counter(version for version in versions if version != VERSION)
    for version, cells in sorted(count.items()):
        were, they_are = ("was", "It is") if cells == 1 else ("were", "They are")
        console.print(
            f"{format_count(cells, 'complete cell')} {were} trained by bnstudy {version}. "
            f"{they_are} not compared with those of {VERSION} and not measured again "
            "(sweep.redo=all trains all cells again)",
            style="yellow",
        )


def _should_redo(state: State, redo: Redo) -> bool:
    match redo:
        case "failed":
            return state == "skipped"
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
        with suppress(CellInUse), Record.open(cell.folder) as record:
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


def _run(cells: dict[int, Cell], launcher: Launcher) -> dict[int, Unfinished]:
    """Launch cells, and relaunch those whose worker died.

    Returns:
        Unfinished cells by their index in the grid.
    """
    unfinished: dict[int, Unfinished] = {}
    todo = dict(cells)
    for launched in range(MAX_LAUNCHES):
        if not todo:
            break
        if launched:
            console.print(f"Relaunching {format_count(len(todo), 'cell')} whose worker died")
        before = {index: _list_attempt_starts(cell) for index, cell in todo.items()}
        SweepProgress.total = len(todo)
        returns = _launch(launcher, list(todo.values()))
        states = determine_states(
            list(todo.values()), [read_record(cell) for cell in todo.values()]
        )
        lost: dict[int, Cell] = {}
        for (index, cell), job, state in zip(todo.items(), returns, states, strict=True):
            unfinished.pop(index, None)
            if cause := _find_cause(cell, job, state):
                unfinished[index] = cause
                if cause.state == "lost":
                    lost[index] = cell
        launcher_error = next((job for job in returns if isinstance(job, Exception)), None)
        if launcher_error and before == {
            index: _list_attempt_starts(cell) for index, cell in todo.items()
        }:
            if explain(launcher_error):
                raise launcher_error
            reason = f"{type(launcher_error).__name__}: {first_line(launcher_error)}"
            raise UserError(  # no cell was started, so the launcher itself is at fault
                f"The launcher started no cell ({reason})\nCheck its options with --cfg hydra"
            ) from launcher_error
        todo = lost
    return unfinished


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


def _find_cause(cell: Cell, job: JobReturn | Exception, state: State) -> Unfinished | None:
    """Return why a launched cell is not finished; None if it is finished."""
    if state in FINISHED:
        return None
    error = job if isinstance(job, Exception) else returned(job)
    if state == "running elsewhere" or isinstance(error, CellInUse):
        return ELSEWHERE
    if not isinstance(error, Exception):  # it returned normally, but its record is incomplete
        error = WorkerLost()
    mistake = explain(error)
    line = mistake or f"{type(error).__name__}: {first_line(error)}"
    if isinstance(job, Exception) or isinstance(error, WorkerLost):
        return Unfinished("lost", line, getattr(error, "log", None))
    log = CellPaths(cell.folder).log
    return Unfinished("failed", line, log if mistake is None and log.exists() else None)


def _raise_unfinished(cells: Sequence[Cell], unfinished: dict[int, Unfinished]) -> None:
    """Print a table of the unfinished cells, and raise an error.

    Raises:
        UserError: Cells failed, lost their workers or still run elsewhere.
    """
    causes = {(cell.state, cell.reason) for cell in unfinished.values()}
    has_log = any(cell.log for cell in unfinished.values())
    if len(unfinished) > 1 and len(causes) == 1 and not has_log:
        ((state, reason),) = causes
        if state == "failed":  # the message says what to do
            raise UserError(f"{len(unfinished)} of {len(cells)} cells failed:\n{reason}")
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("cell", "state", "reason", "log"):
        table.add_column(column, overflow="fold")
    for index, cell in sorted(unfinished.items()):
        table.add_row(cells[index].folder.name, cell.state, cell.reason, str(cell.log or "–"))
    console.print(table)
    count = Counter(cell.state for cell in unfinished.values())
    elsewhere = count["running elsewhere"]
    counted = f"{count['failed']} failed, {count['lost']} lost their worker"
    counted += f", {elsewhere} still running elsewhere" if elsewhere else ""
    repeat = "Remove the causes, then repeat" if count["failed"] else "Repeat"
    raise UserError(
        f"{len(unfinished)} of {len(cells)} cells are not finished: {counted}\n"
        f"{repeat} the command to try them again"
    )
