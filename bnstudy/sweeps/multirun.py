"""Sweeps over a grid: launch the missing cells, print results, and list unfinished cells."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from rich import box
from rich.table import Table

from bnstudy.adapters.hydra_internals import get_result, is_basic
from bnstudy.adapters.submitit_internals import WorkerLost, collecting_every_result, get_max_jobs
from bnstudy.config.mistakes import explain
from bnstudy.config.schema import validate
from bnstudy.config.without_effect import refuse_without_effect
from bnstudy.errors import DamagedFile, UserError, first_line
from bnstudy.runs.lease import CellInUse, hold_lease
from bnstudy.runs.long_table import LongTable
from bnstudy.runs.paths import CellPaths, list_cells
from bnstudy.runs.record import Record
from bnstudy.runs.version import VERSION
from bnstudy.sweeps.detached import is_detached, print_next_steps, submit
from bnstudy.sweeps.duration import DurationEstimator, format_time_left, timing_key
from bnstudy.sweeps.grid import Cell
from bnstudy.sweeps.plan import write_plan
from bnstudy.sweeps.progress import SweepProgress
from bnstudy.sweeps.states import (
    COMPLETE_STATES,
    MAX_FAILURES,
    STATES_TO_LAUNCH,
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


@dataclass
class _SweepCell:
    """Cell of a sweep with its record and state before any cell is launched.

    Attributes:
        cell: Cell of the grid.
        record: Record of the cell, as `read_record` returns it.
        state: State of the cell, as `determine_states` returns it. If `should_redo`, `sweep`
            replaces it by `to run` or `to resume` before it launches cells.
        should_redo: Whether the option `redo` selects the cell.
        mistake: Mistake for which the cell's configuration is not allowed; None if it is allowed.
    """

    cell: Cell
    record: Recorded
    state: State
    should_redo: bool
    mistake: str | None


@dataclass(frozen=True)
class Unfinished:
    """Reason why a cell of a sweep is not finished.

    Attributes:
        state: `failed` if the cell raised an error, `lost` if its worker died or its launcher
            failed, `running elsewhere` if another process is working on it, `queued` if its
            detached job is in SLURM's queue.
        reason: Reason in one or two lines, such as the error message.
        log: Log file with details; None if there is none.
    """

    state: Literal["failed", "lost", "running elsewhere", "queued"]
    reason: str
    log: Path | None = None


ELSEWHERE = Unfinished("running elsewhere", "another process works in it")
QUEUED = Unfinished("queued", "its detached job is in SLURM's queue; scancel ends it")


def sweep(cells: Sequence[Cell], launcher: Launcher, redo: Redo | None, dry_run: bool) -> None:
    """Run the cells of a grid that are not complete, then print the results of their studies.

    A detached launcher only submits the jobs.

    Args:
        cells: Cells of the grid.
        launcher: Hydra launcher of any kind.
        redo: Cells to run again: those that failed too often (`failed`), those that diverged
            (`diverged`), or all but those that run elsewhere or are queued (`all`); None: none of
            them. With `failed`, cells resume from their last checkpoint, if they have one; other
            cells start over.
        dry_run: Whether to only print the cells that would run and the estimated time.

    Raises:
        UserError: At the end, some cells are not finished: they failed, run elsewhere or are
            queued; the launcher started no cell; the data are missing or have changed since a cell
            was trained; or no cell has an allowed configuration or study name.
    """
    for study, root in {(cell.config["study"], cell.config["output_root"]) for cell in cells}:
        # A study's name such as ../mine would make Hydra write outside of the output root.
        validate({"study": study, "output_root": root})
    mistakes = _find_mistakes(cells)
    # Different overrides can result in the same configuration.
    cells = list({cell.folder: cell for cell in cells}.values())
    sweep_cells = _read_cells(cells, redo, mistakes)
    _check_data(sweep_cells, redo, dry_run)
    for entry in sweep_cells:
        if entry.should_redo:
            if redo in ("diverged", "all") and not dry_run:
                _start_over(entry.cell)
            entry.state = _choose_restart_state(entry.cell, redo)
    states = [entry.state for entry in sweep_cells]
    num_mistaken = sum(entry.mistake is not None for entry in sweep_cells)
    mistaken = f" ({num_mistaken} not allowed)" if num_mistaken else ""
    console.print(format_summary(states) + mistaken)
    complete = [
        (entry.record, entry.cell.config)
        for entry in sweep_cells
        if isinstance(entry.record, Record) and entry.state in COMPLETE_STATES
    ]
    _print_versions([record for record, _ in complete])
    print_missing_options_of_cells(
        describe_missing_options(record, config["metrics"], config["callbacks"])
        for record, config in complete
    )
    _print_mistakes(sweep_cells)
    if dry_run:
        _print_dry_run(sweep_cells)
        return
    to_launch = [entry.cell for entry in sweep_cells if entry.state in STATES_TO_LAUNCH]
    if to_launch:
        _write_plans(cells, launcher)
    unfinished: dict[Path, Unfinished] = {}
    if is_detached(launcher):
        if to_launch:
            submit(to_launch, launcher)
        if to_launch or {"queued", "running elsewhere"} & set(states):
            print_next_steps(_studies(cells))
            return
    else:
        unfinished = _run(to_launch, launcher)
    causes = {"queued": QUEUED, "running elsewhere": ELSEWHERE}
    for cell, state in zip(cells, states, strict=True):
        if state in causes and not _is_finished(cell):
            unfinished[cell.folder] = causes[state]
    _print_results(cells)
    if unfinished:
        _raise_unfinished(cells, unfinished)


def _find_mistakes(cells: Sequence[Cell]) -> dict[Path, str | None]:
    """Find the cells whose configuration is not allowed, before any is launched.

    Returns:
        Mistake of each cell by the cell's folder; None if the configuration is allowed.

    Raises:
        UserError: The configuration of no cell is allowed; the message has each mistake once.
    """
    mistakes: list[str | None] = []
    for cell in cells:
        try:
            validate(cell.config)
            refuse_without_effect(cell.config)
        except UserError as error:
            mistakes.append(str(error))
        else:
            mistakes.append(None)
    if mistakes and None not in mistakes:
        raise UserError("\n".join(dict.fromkeys(map(str, mistakes))))
    return {cell.folder: mistake for cell, mistake in zip(cells, mistakes, strict=True)}


def _read_cells(
    cells: Sequence[Cell], redo: Redo | None, mistakes: Mapping[Path, str | None]
) -> list[_SweepCell]:
    """Read the records of cells, and determine their states."""
    records = [read_record(cell) for cell in cells]
    return [
        _SweepCell(cell, record, state, _should_redo(state, redo), mistakes[cell.folder])
        for cell, record, state in zip(
            cells, records, determine_states(cells, records), strict=True
        )
    ]


def _check_data(cells: Sequence[_SweepCell], redo: Redo | None, dry_run: bool) -> None:
    """Verify the data of all cells before any results are removed.

    Raises:
        UserError: Data are missing, or have changed since a cell was trained.
    """
    check = DataCheck()
    for entry in cells:
        if isinstance(entry.record, Record) and (not entry.should_redo or redo == "failed"):
            check.require_same(entry.record, entry.cell.config)
    for entry in cells:
        if not dry_run and (entry.should_redo or entry.state in ("to resume", "to run")):
            check.require_data(entry.cell.config)


def _write_plans(cells: Sequence[Cell], launcher: Launcher) -> None:
    """Write the plan of each study, and print how to watch it if jobs run side by side."""
    for study in _studies(cells):
        write_plan(study, [cell for cell in cells if cell.folder.parent == study])
        # Jobs that run side by side print their lines intermixed; this command shows an overview.
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


def format_summary(states: Sequence[State]) -> str:
    """Format the number of cells in each state as one sentence."""
    count = Counter(states)
    complete = f"{sum(count[state] for state in COMPLETE_STATES)} of {len(states)} cells complete"
    if count["diverged"]:
        complete += f" ({count['diverged']} diverged)"
    if count["not measurable"]:
        complete += (
            f" ({count['not measurable']} without checkpoints to measure the requested metrics)"
        )
    always: tuple[State, ...] = ("to resume", "to run")
    shown: tuple[State, ...] = ("to measure", *always, "running elsewhere", "queued")
    parts = [complete]
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
    for version, num_cells in sorted(count.items()):
        were, they_are = ("was", "It is") if num_cells == 1 else ("were", "They are")
        console.print(
            f"{format_count(num_cells, 'complete cell')} {were} trained by bnstudy {version}. "
            f"{they_are} not compared with those of {VERSION} and not measured again "
            "(sweep.redo=all trains all cells again)",
            style="yellow",
        )


def _should_redo(state: State, redo: Redo | None) -> bool:
    match redo:
        case None:
            return False
        case "failed":
            return state == "skipped"
        case "diverged":
            return state == "diverged"
        case "all":
            return state not in ("running elsewhere", "queued")


def _choose_restart_state(cell: Cell, redo: Redo | None) -> State:
    """Return the state of a cell that runs again; only `failed` keeps a checkpoint to resume."""
    resumes = redo == "failed" and CellPaths(cell.folder).last_checkpoint.exists()
    return "to resume" if resumes else "to run"


def _start_over(cell: Cell) -> None:
    """Remove the results of a cell, unless another process is working in it.

    A damaged run.json is renamed.
    """
    paths = CellPaths(cell.folder)
    if not paths.record.exists():
        return
    with suppress(CellInUse):
        try:
            with Record.open(cell.folder) as record:
                record.start_over()
        except DamagedFile as error:
            with hold_lease(cell.folder):
                paths.set_aside(paths.record, error.reason)
                paths.remove_results()


def _studies(cells: Sequence[Cell]) -> list[Path]:
    return sorted({cell.folder.parent for cell in cells})


def _print_mistakes(cells: Sequence[_SweepCell]) -> None:
    """Print the cells to launch whose configuration is not allowed, each with its mistake."""
    for entry in cells:
        if entry.mistake and entry.state in STATES_TO_LAUNCH:
            mistake = entry.mistake.replace("\n", "; ")
            console.print(f"  not allowed {entry.cell.folder}  {mistake}", style="yellow")


def _print_dry_run(cells: Sequence[_SweepCell]) -> None:
    """Print the cells that a sweep would run and the estimated time."""
    to_launch = [entry for entry in cells if entry.state in STATES_TO_LAUNCH and not entry.mistake]
    records = []
    for study in _studies([entry.cell for entry in to_launch]):
        for folder in list_cells(study):
            with suppress(UserError):
                records.append(Record.read(folder))
    estimator = DurationEstimator(records)
    seconds = []
    for entry in to_launch:
        cell, state = entry.cell, entry.state
        if state == "to measure":
            console.print(f"  {state:<10} {cell.folder}  from checkpoints, no training")
            continue
        epochs = cell.config["trainer"]["max_epochs"]
        if state == "to resume":
            epochs -= LongTable(CellPaths(cell.folder)).epochs_trained()
        seconds.append(estimator.estimate(timing_key(cell.config), epochs))
        console.print(f"  {state:<10} {cell.folder}  {format_count(epochs, 'epoch')}")
    if seconds:
        console.print(format_time_left(seconds))


def _run(cells: Sequence[Cell], launcher: Launcher) -> dict[Path, Unfinished]:
    """Launch cells, and relaunch those whose worker died or whose launcher failed.

    Returns:
        Reason for each cell that is not finished, by the cell's folder.

    Raises:
        UserError: The launcher started no cell.
        Exception: The launcher's own error if it started no cell, and the error is a known mistake
            of the user's.
    """
    unfinished: dict[Path, Unfinished] = {}
    for launched in range(MAX_LAUNCHES):
        if not cells:
            break
        if launched:
            console.print(
                f"Relaunching {format_count(len(cells), 'cell')} whose worker or launcher died"
            )
        starts_before = [_list_attempt_starts(cell) for cell in cells]
        SweepProgress.total = len(cells)
        returns = _launch(launcher, cells)
        states = determine_states(cells, [read_record(cell) for cell in cells])
        lost: list[Cell] = []
        for cell, job, state in zip(cells, returns, states, strict=True):
            unfinished.pop(cell.folder, None)
            if cause := _find_cause(cell, job, state):
                unfinished[cell.folder] = cause
                if cause.state == "lost":
                    lost.append(cell)
        launcher_error = next((job for job in returns if isinstance(job, Exception)), None)
        if launcher_error and starts_before == [_list_attempt_starts(cell) for cell in cells]:
            if explain(launcher_error):
                raise launcher_error
            reason = f"{type(launcher_error).__name__}: {first_line(launcher_error)}"
            raise UserError(  # no cell was started, so the launcher itself is at fault
                f"The launcher started no cell ({reason})\nCheck its options with --cfg hydra"
            ) from launcher_error
        cells = lost
    return unfinished


def _launch(launcher: Launcher, cells: Sequence[Cell]) -> Sequence[JobReturn | Exception]:
    """Launch jobs and wait for all of them.

    Returns:
        Result of each job; the launcher's error for jobs that have no result because of it.
    """
    size = get_max_jobs(launcher, len(cells))
    returns: list[JobReturn | Exception] = []
    for first in range(0, len(cells), size):
        jobs = [list(cell.overrides) for cell in cells[first : first + size]]
        try:
            with collecting_every_result():
                returns += launcher.launch(jobs, initial_job_idx=first)
        except Exception as error:
            returns += [error] * len(jobs)
        except SystemExit:  # raised by a stopped worker; with the basic launcher, by this process
            if is_basic(launcher):
                raise
            returns += [WorkerLost()] * len(jobs)
    return returns


def _list_attempt_starts(cell: Cell) -> list[str | None]:
    """List the start times of a cell's recorded attempts.

    A measurement is not recorded as an attempt. Nor is an attempt that a UserError ended before the
    first epoch.
    """
    with suppress(UserError):
        record = Record.read(cell.folder)
        return [attempt.started for attempt in record.description.attempts]
    return []


def _is_finished(cell: Cell) -> bool:
    record = read_record(cell)
    return isinstance(record, Record) and record.is_finished


def _find_cause(cell: Cell, job: JobReturn | Exception, state: State) -> Unfinished | None:
    """Return why a launched cell is not finished; None if it is finished."""
    if state in COMPLETE_STATES:
        return None
    error = job if isinstance(job, Exception) else get_result(job)
    if state == "running elsewhere" or isinstance(error, CellInUse):
        return ELSEWHERE
    if not isinstance(error, Exception):  # it returned normally, but its record is incomplete
        error = WorkerLost()
    mistake = explain(error)
    reason = mistake or f"{type(error).__name__}: {first_line(error)}"
    if isinstance(job, Exception) or isinstance(error, WorkerLost):
        return Unfinished("lost", reason, getattr(error, "log", None))
    log = CellPaths(cell.folder).log
    return Unfinished("failed", reason, log if mistake is None and log.exists() else None)


def _raise_unfinished(cells: Sequence[Cell], unfinished: dict[Path, Unfinished]) -> None:
    """Print a table of the unfinished cells, and raise an error.

    Args:
        cells: Cells of the sweep.
        unfinished: Reason for each cell that is not finished, by the cell's folder.

    Raises:
        UserError: Always.
    """
    causes = {(cause.state, cause.reason) for cause in unfinished.values()}
    has_log = any(cause.log for cause in unfinished.values())
    if len(unfinished) > 1 and len(causes) == 1 and not has_log:
        ((state, reason),) = causes
        if state == "failed":  # the message says what to do
            raise UserError(f"{len(unfinished)} of {len(cells)} cells failed:\n{reason}")
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("cell", "state", "reason", "log"):
        table.add_column(column, overflow="fold")
    for cell in cells:
        if cause := unfinished.get(cell.folder):
            table.add_row(cell.folder.name, cause.state, cause.reason, str(cause.log or "–"))
    console.print(table)
    count = Counter(cause.state for cause in unfinished.values())
    counted = f"{count['failed']} failed, {count['lost']} lost their worker or launcher"
    for state in ("running elsewhere", "queued"):
        counted += f", {count[state]} still {state}" if count[state] else ""
    repeat = "Remove the causes, then repeat" if count["failed"] else "Repeat"
    raise UserError(
        f"{len(unfinished)} of {len(cells)} cells are not finished: {counted}\n"
        f"{repeat} the command to try these cells again"
    )
