"""Files that are either whole or not there."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bnstudy.errors import UserError

# What the user can put right: permissions, room, a file where a folder should be.
CANNOT_WRITE = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


def cannot_write(path: str | Path, error: OSError) -> str:
    """What to tell the user of a path that cannot be written."""
    return (
        f"{path}: {error.strerror}\n"
        "Make sure it can be written to and has room, or choose another folder: output_root=FOLDER "
        "for runs, the environment variable BNSTUDY_DATA for data"
    )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; rename it to `path` once all went well.

    A process killed at any moment leaves the old file or the new one, never half of one; so does a
    machine that loses its power, since the content is on the disk before the name is.

    Raises:
        UserError: The disk is full, or the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        if error.errno in CANNOT_WRITE:
            raise UserError(cannot_write(path, error)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    is_folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        if not is_folder:  # not every file system can do that with a folder
            raise
