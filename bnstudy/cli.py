"""What the command lines share: mistakes told in a line or two, Ctrl+C, exit statuses."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from bnstudy.config.mistakes import explain


@contextmanager
def command_line(interrupted: str | int) -> Iterator[None]:
    """Run a command in the body; end the process as a command line should.

    A mistake of the user's ends it with a message of one or two lines and exit status 1. Any other
    exception is a bug, and keeps its stack trace.

    Args:
        interrupted: Message or exit status after Ctrl+C.

    Raises:
        SystemExit: The user made a mistake, or pressed Ctrl+C.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(interrupted)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        sys.exit(message)
