"""Where a run's numbers go besides its record: one context manager for each file in conf/logger."""

import netrc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal
from urllib.parse import urlsplit

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from bnstudy.runs.record import Record


@contextmanager
def no_logger(record: Record, resumed: bool) -> Iterator[list[Logger]]:
    """No logger."""
    yield []


@contextmanager
def csv_file(record: Record, resumed: bool) -> Iterator[list[Logger]]:
    """Lightning's CSVLogger, a folder for each attempt: it would overwrite an earlier file."""
    attempt = len(record.description["attempts"])
    yield [CSVLogger(record.folder, name="csv", version=f"attempt_{attempt}")]


@contextmanager
def wandb_run(
    record: Record,
    resumed: bool,
    project: str,
    entity: str | None,
    mode: Literal["online", "offline", "disabled"] | None,
) -> Iterator[list[Logger]]:
    """A W&B run of its own for the cell, marked as failed if the body raises.

    Its id follows from the cell's identity. A run that is resumed goes on in its W&B run; one that
    starts over gets a new one, since W&B would append to the old.

    Args:
        record: Of this run.
        resumed: Whether it goes on from a checkpoint.
        project: W&B's project.
        entity: W&B's user or team; None: the default one.
        mode: online, offline or disabled; None: what WANDB_MODE says, or else online when logged
            in, offline otherwise.
    """
    import wandb

    description = record.description
    previous = [one["wandb_id"] for one in description["attempts"] if "wandb_id" in one]
    fresh = f"{description['identity'][:16]}-{len(description['attempts'])}"
    run_id = previous[-1] if resumed and previous else fresh
    choices = description["choices"]
    with wandb.init(
        project=project,
        entity=entity,
        id=run_id,
        resume="allow",
        name=description["cell"],
        group=description["study"],
        job_type="train",
        tags=[choices[group] for group in ("norm", "model", "data")],
        config=description["config"],
        dir=record.folder.absolute(),  # W&B writes from a process of its own
        mode=mode or _mode(),
        reinit="finish_previous",  # a leaked run of another job is never gone on with
        settings=wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,  # a remote's address can hold a password
            save_code=False,
            x_save_requirements=False,
            x_transaction_log_flush_interval=1.0,  # what a kill -9 can lose, in seconds
        ),
    ) as run:
        description["attempts"][-1]["wandb_id"] = run_id
        record.save()
        run.define_metric("epoch")
        for names in ("rep/*", "opt/*", "train/loss", "train/accuracy", "validation/*", "test/*"):
            run.define_metric(names, step_metric="epoch", step_sync=True)
        yield [WandbLogger(experiment=run, log_model=False)]


def _mode() -> Literal["online", "offline"] | None:
    """None where the environment says it; else online if W&B has a key, without asking for one."""
    if os.environ.get("WANDB_MODE"):
        return None
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return "online"
    import wandb

    host = urlsplit(wandb.setup().settings.base_url).hostname or ""
    try:
        logged_in = netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        logged_in = False
    return "online" if logged_in else "offline"
