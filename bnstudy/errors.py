"""Errors that the user can fix; any other exception is a bug in bnstudy."""


class UserError(Exception):
    """Error that the user can fix.

    In one or two lines, the message names the wrong key and value, the allowed values and what to
    do.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class name if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
