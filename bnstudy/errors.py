"""Mistakes of the user's, told in a line or two; any other exception is a bug of ours."""


class UserError(Exception):
    """Something the user can put right.

    The message names the key and the value, what is allowed and what to do, in one or two lines.
    """


def first_line(error: BaseException) -> str:
    """First line of an error's message, or the name of its class where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
