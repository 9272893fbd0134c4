"""Mistakes of the user's, told in a line or two; any other exception is a bug of ours."""


class UserError(Exception):
    """Something the user can put right.

    The message names the key and the value, what is allowed and what to do, in one or two lines.
    """
