"""Where a run's numbers go besides its record: one context manager for each file in conf/logger."""

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
from bnstudy.runs.description import Status
from bnstudy.runs.record import Record
from bnstudy.tracking.wandb_run import (
    Mode,
    RowLogger,
    begin,
    conclude,
    finish,
    logged_in,
    nothing_stops,
    replay,
    set_earlier_aside,
    wandb_files,
    wandb_id,
    warn_once,
)
from bnstudy.training.processes import is_first_process

if TYPE_CHECKING:
    import wandb


@contextmanager
def open_loggers(options: dict[str, Any], record: Record, resumed: bool) -> Iterator[list[Logger]]:
    """Open the loggers that a configuration asks for; of a distributed run, in the first process.

    Args:
        options: Configuration group `logger`.
        record: Record of this run.
        resumed: Whether it goes on from a checkpoint.
    """
    if not is_first_process():
        yield []
        return
    with instantiate(options, record=record, resumed=resumed) as loggers:
        yield loggers


@contextmanager
def no_logger(record: Record, resumed: bool) -> Iterator[list[Logger]]:
    """No logger."""
    yield []


@contextmanager
def csv_file(record: Record, resumed: bool) -> Iterator[list[Logger]]:
    """Lightning's CSVLogger, a folder for each attempt: it would overwrite an earlier file."""
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
    """A W&B run of its own for the cell, which ends with the status and exit code of the cell's.

    Its id follows from the cell's identity. A run that is resumed goes on in its W&B run, which is
    given what it lacks of the epochs before; one that starts over gets a new one. W&B never stops
    or holds up the training: where its server does not answer, the run is kept offline.

    Args:
        record: Of this run.
        resumed: Whether it goes on from a checkpoint.
        project: W&B's project.
        entity: W&B's user or team; None: the default one.
        mode: online, offline or disabled; None: what WANDB_MODE says, or else online when logged
            in, offline otherwise.
        checkpoint: Whether the last checkpoint is logged as an artifact.

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
        written = replay(run, record, attempt.resumed_from_epoch) if resumed else -1
        status: Status = "failed"
        exit_code = 1
        try:
            yield [RowLogger(run, written)]
            status, exit_code = "diverged" if record.description.has_diverged else "completed", 0
        except BaseException as stop:
            if not isinstance(stop, Exception):  # as bnstudy.train tells SIGTERM from SIGINT
                terminated = isinstance(stop, SystemExit) and stop.code is None
                number = signal.SIGTERM if terminated else signal.SIGINT
                status, exit_code = "interrupted", 128 + number
            raise
        finally:
            with nothing_stops(record):
                conclude(run, record, status, checkpoint)
            finish(run, exit_code, record.folder.parent)


_unreachable: set[str] = set()  # servers that did not answer: later jobs do not wait for them


def _begin(
    record: Record, run_id: str, project: str, entity: str | None, mode: Mode
) -> "wandb.Run":
    """Begin the W&B run, offline where the server will not have it."""
    import wandb

    server = wandb.setup().settings.base_url
    if mode == "online" and server not in _unreachable:
        try:
            return begin(record, run_id, project, entity, mode)
        except wandb.Error as error:
            _unreachable.add(server)
            wandb.teardown()  # it would go on trying
            reason = first_line(error)
            warn_once(
                f"W&B keeps these runs offline, as {server} does not take them ({reason})\n"
                f"python -m bnstudy.dashboard sync {record.folder.parent} uploads them later"
            )
    return begin(record, run_id, project, entity, "offline")


def _mode() -> Mode:
    """What the environment says; else online if W&B has a key, without asking for one.

    Raises:
        UserError: The environment says something unknown.
    """
    said = os.environ.get("WANDB_MODE")
    if said == "dryrun":  # W&B's old name for it
        said = "offline"
    match said:
        case "online" | "offline" | "disabled":
            return said
        case None | "":
            pass
        case _:
            raise UserError(f"WANDB_MODE={said} is not known; it takes online, offline or disabled")
    return "online" if logged_in() else "offline"
