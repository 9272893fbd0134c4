"""Behaviour that all commands share: short error messages, Ctrl+C and exit statuses."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from bnstudy.config.mistakes import explain
from bnstudy.files import OTHER_FOLDER, CannotWrite


@contextmanager
def command_line(interrupted: str | int, otherwise: str = OTHER_FOLDER) -> Iterator[None]:
    """Run a command's body and turn the user's mistakes into messages and exit statuses.

    A mistake that the user can fix ends the process with a message of one or two lines and exit
    status 1. Any other exception is a bug and keeps its traceback.

    Args:
        interrupted: Message or exit status after Ctrl+C.
        otherwise: What else the user can do if a folder cannot be written.

    Raises:
        SystemExit: The user made a mistake or pressed Ctrl+C.
    """
    CannotWrite.otherwise = otherwise
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(interrupted)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        sys.exit(message)
