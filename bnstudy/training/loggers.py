"""Loggers of a run in addition to its record: one context manager per file in conf/logger."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger, Logger

from bnstudy.errors import UserError, first_line
from bnstudy.runs.parts import Status
from bnstudy.runs.record import Record
from bnstudy.tracking.wandb_run import (
    Mode,
    RowLogger,
    finish_run,
    is_logged_in,
    log_final_data,
    replay_rows,
    server_url,
    set_earlier_aside,
    start_run,
    wandb_files,
    wandb_id,
    warn_on_error,
    warn_once,
)
from bnstudy.training.processes import is_first_process

if TYPE_CHECKING:
    import wandb


@contextmanager
def open_loggers(options: dict[str, Any], record: Record, resumed: bool) -> Iterator[list[Logger]]:
    """Open the configured loggers; in a distributed run, only in the first process.

    Args:
        options: Configuration group `logger`.
        record: Record of this run.
        resumed: Whether the run resumes from a checkpoint.

    Yields:
        Lightning loggers.
    """
    if not is_first_process():
        yield []
        return
    with instantiate(options, record=record, resumed=resumed) as loggers:
        yield loggers


@contextmanager
def no_logger(record: Record, resumed: bool) -> Iterator[list[Logger]]:
    """Open no logger."""
    yield []


@contextmanager
def csv_file(record: Record, resumed: bool) -> Iterator[list[Logger]]:
    """Open Lightning's CSVLogger in a new folder per attempt, as it overwrites existing files."""
    attempt = len(record.description.attempts)
    yield [CSVLogger(record.folder, name="csv", version=f"attempt_{attempt}")]


@contextmanager
def wandb_run(
    record: Record,
    resumed: bool,
    project: str,
    entity: str | None,
    mode: Mode | None,
    checkpoint: bool,
) -> Iterator[list[Logger]]:
    """Open one W&B run for the cell; it ends with the status and exit code of the cell's run.

    The id of the W&B run is derived from the cell's identity. A resumed run continues in the same
    W&B run, to which missing rows of earlier epochs are added. A run that starts from the beginning
    gets a new W&B run. W&B never stops or blocks training: if its server does not answer or rejects
    the run, the W&B run is kept offline.

    Args:
        record: Record of this run.
        resumed: Whether the run resumes from a checkpoint.
        project: W&B project.
        entity: W&B user or team; None: the default one.
        mode: online, offline or disabled; None: the value of WANDB_MODE; if that is not set, online
            if logged in, and offline otherwise.
        checkpoint: Whether the last checkpoint is logged as an artifact.

    Yields:
        Lightning loggers; none if the mode is disabled.

    Raises:
        UserError: The package wandb is not installed.
    """
    if find_spec("wandb") is None:
        raise UserError(
            "logger=wandb: the package wandb is not installed; pip install wandb, or take "
            "logger=csv or logger=none"
        )
    with wandb_files(record.paths.wandb):
        mode = mode or _mode()
        if mode == "disabled":
            yield []
            return
        run = _begin(record, wandb_id(record, resumed), project, entity, mode)
        attempt = record.description.attempts[-1]
        attempt.wandb_id = run.id
        record.save()
        set_earlier_aside(record, Path(run.sync_dir))
        written = replay_rows(run, record, attempt.resumed_from_epoch) if resumed else -1
        status: Status = "failed"
        exit_code = 1
        try:
            yield [RowLogger(run, written)]
            status, exit_code = "diverged" if record.description.has_diverged else "completed", 0
        except BaseException as error:
            if not isinstance(error, Exception):  # the same exit codes as bnstudy.train
                is_terminated = isinstance(error, SystemExit) and error.code is None
                number = signal.SIGTERM if is_terminated else signal.SIGINT
                status, exit_code = "interrupted", 128 + number
            raise
        finally:
            with warn_on_error(record):
                log_final_data(run, record, status, checkpoint)
            finish_run(run, exit_code, record.folder.parent)


_unreachable: set[str] = set()  # servers that failed or rejected a run; later jobs skip them


def _begin(
    record: Record, run_id: str, project: str, entity: str | None, mode: Mode
) -> "wandb.Run":
    """Begin the W&B run; offline if the server is unreachable or rejects it."""
    import wandb

    server = server_url()
    if mode == "online" and server not in _unreachable:
        try:
            return start_run(record, run_id, project, entity, mode)
        except wandb.Error as error:
            _unreachable.add(server)
            wandb.teardown()  # otherwise its service retries the connection
            reason = first_line(error)
            warn_once(
                f"W&B stores these runs offline, because {server} does not accept them ({reason})\n"
                f"python -m bnstudy.dashboard sync {record.folder.parent} uploads them later"
            )
    return start_run(record, run_id, project, entity, "offline")


def _mode() -> Mode:
    """Return the mode of WANDB_MODE; if it is not set, online if W&B has a key, else offline.

    Raises:
        UserError: The value of WANDB_MODE is unknown.
    """
    match mode := os.environ.get("WANDB_MODE"):
        case "online" | "offline" | "disabled":
            return mode
        case "dryrun":  # former name of offline
            return "offline"
        case None | "":
            return "online" if is_logged_in() else "offline"
    raise UserError(f"WANDB_MODE={mode} is not known; expected online, offline or disabled")
