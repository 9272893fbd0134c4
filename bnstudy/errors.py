"""Errors that the user can fix; any other exception is a bug in bnstudy."""

import reprlib
from pathlib import Path


class UserError(Exception):
    """Error that the user can fix.

    In one or two lines, the message names the wrong key and value, the allowed values and what to
    do.
    """


class DamagedFile(UserError):
    """Error: the content of a file is damaged.

    Args:
        path: Damaged file.
        reason: Description of the damage.
        advice: What to do.
    """

    def __init__(self, path: Path, reason: str, advice: str) -> None:
        super().__init__(path, reason, advice)
        self.path = path
        self.reason = reason
        self.advice = advice

    def __str__(self) -> str:
        """Return the message."""
        return f"{self.path} is damaged ({self.reason})\n{self.advice}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class name if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def shorten(value: object) -> str:
    """Return the representation of a value for a message: in one line, long values shortened."""
    return " ".join(reprlib.repr(value).split())
