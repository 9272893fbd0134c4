"""Behaviour that all commands share: short messages, Ctrl+C and exit statuses."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bnstudy.config.mistakes import explain
from bnstudy.files import OTHER_FOLDER, CannotWrite
from bnstudy.terminal import console, shorten_warnings


@contextmanager
def command_line(interrupted: str, alternative: str = OTHER_FOLDER) -> Iterator[None]:
    """Run a command's body and turn the user's mistakes into messages and exit statuses.

    A mistake that the user can fix ends the process with a message of one or two lines and exit
    status 1. Ctrl+C ends it with exit status 130. Any other exception is a bug and keeps its
    traceback.

    Args:
        interrupted: Message after Ctrl+C.
        alternative: Advice for a folder that cannot be written, besides permissions and disk space.

    Raises:
        SystemExit: The user made a mistake or pressed Ctrl+C.
    """
    shorten_warnings()
    _require_working_folder()
    _ensure_home()
    before = CannotWrite.alternative
    CannotWrite.alternative = alternative
    try:
        yield
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        sys.exit(message)
    finally:
        CannotWrite.alternative = before


def _require_working_folder() -> None:
    """End the process if its working folder was deleted, because relative paths need one."""
    try:
        Path.cwd()
    except FileNotFoundError:
        sys.exit("the working folder was deleted\nChange to an existing one with cd FOLDER")


def _ensure_home() -> None:
    """Set HOME to the working folder if this user has no home, as in some containers.

    W&B and the default folder of the data need one.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(Path.cwd())
        console.print(
            f"This user has no home folder, and HOME is not set: {Path.cwd()} is taken for it",
            style="yellow",
        )
