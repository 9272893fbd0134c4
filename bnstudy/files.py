"""Atomic writing of files: a file is either complete or absent."""

import errno
import glob
import os
import secrets
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from bnstudy.errors import UserError

# Numbers of errors that the user can fix: permissions, disk space, a file in a folder's place.
CANNOT_WRITE = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EFBIG,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}

# Advice for a folder that cannot be written, besides permissions and disk space.
OTHER_FOLDER = (
    "choose another folder: output_root=FOLDER for runs, the environment variable BNSTUDY_DATA for "
    "data"
)


class CannotWrite(UserError):
    """Error: a path cannot be written.

    Args:
        path: Path of the file or folder.
        error: Error of the operating system.

    Attributes:
        alternative: Advice besides permissions and disk space; the running command sets it.
    """

    alternative = OTHER_FOLDER

    def __init__(self, path: str | Path, error: OSError) -> None:
        super().__init__(path, error)
        self.path = path
        self.error = error

    def __str__(self) -> str:
        """Return the message."""
        if self.error.errno == errno.ENAMETOOLONG:
            return f"{self.path}: {self.error.strerror}\nChoose a shorter study=NAME or cell=NAME"
        return (
            f"{self.path}: {self.error.strerror}\n"
            f"Check permissions and free disk space, or {self.alternative}"
        )


def is_write_error(error: OSError) -> bool:
    """Return whether an error says that a path cannot be written, which the user can fix.

    Any error of making a folder is one, whatever its number: in /proc, for example, the error
    number is that of a missing file.
    """
    if error.errno in CANNOT_WRITE:
        return True
    raised_in = traceback.extract_tb(error.__traceback__)[-1:]
    return any(frame.name in ("mkdir", "makedirs") for frame in raised_in)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a write error of the body into `CannotWrite` for a path."""
    try:
        yield
    except OSError as error:
        if is_write_error(error):
            raise CannotWrite(path, error) from error
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; rename it to `path` if the body succeeds.

    If the process is killed, `path` holds either the old file or the new one, never a part of one.
    The same holds after a power failure, because the content is flushed to disk before the rename.

    Raises:
        CannotWrite: The disk is full, or the folder is not writable.
    """
    # A process ID would not do: a process on another host that shares the folder may have the same.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _flush(temporary)
            temporary.replace(path)
            _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of `replacing` that killed processes have left next to a path.

    Call it where no other process writes the path, as in `locked`.
    """
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock file in the body, so that only one process at a time writes the same files.

    Where no lock file can be made (a read-only folder, another user's folder, a file system without
    locks), the body runs without a lock, because the files may exist already.

    Args:
        path: Lock file.

    Yields:
        Whether the lock is held.
    """
    lock = FileLock(path, mode=0o666)  # other users of a shared folder take it as well
    try:
        lock.acquire()
    except NotImplementedError:  # raised by filelock for such a file system
        pass
    except OSError as error:
        if not is_write_error(error):
            raise
    try:
        yield lock.is_locked
    finally:
        lock.release()


def _flush(path: Path) -> None:
    """Flush the content of a file, or the entries of a folder, to disk."""
    is_folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        if not is_folder:  # some file systems cannot flush a folder
            raise
