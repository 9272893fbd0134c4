"""Leases that limit a cell to one worker, on one host or several that share a file system.

A worker holds the lease of its cell's folder: a file that names the process. A thread renews the
lease by updating the file's modification time every few seconds. A worker whose lease is no longer
renewed counts as dead, and the next worker takes over the folder.

- Leases are numbered, `.lease.1`, `.lease.2`, ..., and only the newest one is valid. A worker takes
  over a folder by creating the file with the next number, exclusively: only one process succeeds.
  Older files are kept, and released ones renamed, so that a slow worker notices that a number was
  already used.
- Before it takes over a folder, a worker *watches* the newest lease for `STALE_AFTER` seconds of
  its own clock to see whether it is renewed. Clocks of hosts are never compared, because they may
  differ or jump. A process on the same machine is looked up instead, which takes no time.
- A worker that was suspended and has lost its folder raises `CellInUse` at its next write.
"""

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from bnstudy.errors import UserError
from bnstudy.files import CANNOT_WRITE
from bnstudy.terminal import console
from bnstudy.terms import format_count

RENEWAL_INTERVAL = 5.0  # seconds
RETRY_DELAYS = (0.1, 1.0, 5.0)  # seconds between attempts after an error that may be transient
LEASE_FIELDS = {"machine": str, "host": str, "pid": int, "start": str}  # content of a lease
STALE_AFTER = 60.0  # seconds without a renewal; network file systems show renewals with a delay


T = TypeVar("T")


class CellInUse(UserError):
    """Error: another process is working in the cell, or its folder was removed."""


class Lease:
    """Lease of a folder, held and renewed by this process.

    Args:
        path: File of the lease.

    Attributes:
        is_lost: Whether another process has taken over the folder, or the folder was removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_lost = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Verify that the lease is still held; call this before each write to the folder.

        Raises:
            CellInUse: Another process has taken over the folder, or the folder was removed.
        """
        if self.is_lost or not self._renew():
            raise CellInUse(
                f"{self.path.parent}: this process no longer holds the cell, because its lease was "
                f"not renewed for {STALE_AFTER:.0f} s and another process took over, or because "
                "the folder was removed"
            )

    def release(self) -> None:
        """Stop renewing the lease, and release the folder for other workers."""
        self._done.set()
        self._thread.join()
        with suppress(OSError):  # the folder was taken over or removed
            _retry(lambda: self.path.rename(_released_path(self.path)))

    def _keep_renewing(self) -> None:
        while not self._done.wait(RENEWAL_INTERVAL):
            if not self._renew():
                self.is_lost = True
                return

    def _renew(self) -> bool:
        next_lease = self.path.with_name(f".lease.{_number(self.path) + 1}")
        try:
            os.utime(self.path)
            return not (next_lease.exists() or _released_path(next_lease).exists())
        except FileNotFoundError:
            return False
        except OSError:  # may be transient; the next renewal decides
            return True


@contextmanager
def hold_lease(folder: Path) -> Iterator[Lease]:
    """Hold a folder's lease in the body; take it over if its worker is dead.

    Args:
        folder: Folder of the cell; it is created if it does not exist.

    Raises:
        CellInUse: Another process is working in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lease = Lease(_acquire(folder))
    try:
        yield lease
    finally:
        lease.release()


def find_lease(folder: Path) -> tuple[dict[str, Any], Path] | None:
    """Return the worker that holds a folder's lease, and the lease's file; None if nobody does.

    The worker may be dead: see `is_alive`.
    """
    newest = _newest(folder)[1]
    return (_read(newest), newest) if newest else None


def remove_leases(folder: Path) -> None:
    """Remove all lease files from a folder that is about to be removed."""
    for lease in folder.glob(".lease.*"):
        lease.unlink(missing_ok=True)


def find_renewed(leases: Sequence[Path], seconds: float) -> set[Path]:
    """Watch leases for some time, and return those that are renewed.

    Args:
        leases: Leases that are held.
        seconds: Maximum time to watch; the function returns earlier once all leases are renewed.
    """
    began, first = time.monotonic(), {lease: _read_modification_time(lease) for lease in leases}
    waiting, renewed = set(leases), set()
    while waiting and time.monotonic() - began < seconds:
        time.sleep(0.2)
        now = {lease: _read_modification_time(lease) for lease in waiting}
        # A time of 0: the file cannot be read now, compare later; None: the lease was released.
        renewed |= {lease for lease in waiting if now[lease] and now[lease] != first[lease] != 0}
        waiting -= renewed | {lease for lease in waiting if now[lease] is None}
        first |= {lease: now[lease] for lease in waiting if first[lease] == 0}
    return renewed


def find_occupied(folders: Iterable[Path], seconds: float = 2 * RENEWAL_INTERVAL) -> set[Path]:
    """Find the folders whose lease is held by a living worker.

    Args:
        folders: Folders to examine.
        seconds: Maximum time to watch leases held on other machines, all at the same time. The
            lease of a living worker can go without renewal for up to `STALE_AFTER`, so a shorter
            watch may miss it.
    """
    working: set[Path] = set()
    unknown: dict[Path, Path] = {}
    for folder in folders:
        if held := find_lease(folder):
            worker, lease = held
            match is_alive(worker):
                case True:
                    working.add(folder)
                case None:
                    unknown[lease] = folder
    if unknown:
        console.print(
            f"Watching {format_count(len(unknown), 'cell')} for {seconds:.0f} s to see whether "
            "their workers, which are unknown or on other machines, are alive"
        )
    return working | {unknown[lease] for lease in find_renewed(list(unknown), seconds)}


def is_alive(worker: dict[str, Any]) -> bool | None:
    """Check whether the worker of a lease is alive; None if it is unknown or on another machine."""
    if worker.get("machine") != _machine():
        return None
    return bool(_start_time(worker["pid"]) == worker["start"])


def _acquire(folder: Path) -> Path:
    """Create the folder's next lease."""
    number, newest = _newest(folder)
    if newest:
        alive = is_alive(_read(newest))
        if alive is None:
            holder = _describe_holder(newest, f"the unknown holder of {newest.name} (damaged file)")
            console.print(f"{folder}: watching {STALE_AFTER:.0f} s to see if {holder} is alive")
            alive = bool(find_renewed([newest], STALE_AFTER))
        if alive:
            raise _in_use(folder, newest)
    path = folder / f".lease.{number + 1}"
    try:
        file = path.open("x")
    except FileExistsError:
        raise _in_use(folder, path) from None
    try:
        with file:
            json.dump(_this_process(), file)
            file.flush()
            os.fsync(file.fileno())  # otherwise it could be empty after a power failure
        # Another process may have used and released this number.
        was_used = _retry(_released_path(path).exists)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    if was_used:
        path.unlink()
        return _acquire(folder)
    return path


def _newest(folder: Path) -> tuple[int, Path | None]:
    """Return the number and the file of the newest lease; (0, None) without leases.

    The file is None if the lease was released.
    """
    leases = _retry(lambda: list(folder.glob(".lease.*")))
    newest = max(
        leases, key=lambda lease: (_number(lease), _released_path(lease) != lease), default=None
    )
    if newest is None:
        return 0, None
    return _number(newest), None if _released_path(newest) == newest else newest


def _number(lease: Path) -> int:
    number = lease.name.removeprefix(".lease.").partition(".")[0]
    return int(number) if number.isdigit() else 0


def _retry(action: Callable[[], T]) -> T:
    """Try again after transient errors, such as ESTALE, EIO or ETIMEDOUT of a file server."""
    for pause in RETRY_DELAYS:
        try:
            return action()
        except OSError as error:
            if isinstance(error, FileNotFoundError) or error.errno in CANNOT_WRITE:
                raise
            time.sleep(pause)
    return action()


def _released_path(lease: Path) -> Path:
    return lease.with_name(f".lease.{_number(lease)}.released")


def _read_modification_time(lease: Path) -> int | None:
    """Return a lease's modification time in ns; None if released, 0 if it cannot be read now."""
    try:
        # Opening the file refreshes the attributes cached by a network file system.
        with lease.open() as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
    except OSError:
        return 0


def _read(lease: Path) -> dict[str, Any]:
    try:
        content = json.loads(lease.read_text())
        is_valid = all(isinstance(content[key], kind) for key, kind in LEASE_FIELDS.items())
    except (KeyError, OSError, TypeError, ValueError):  # damaged, just being released or written
        return {}
    return content if is_valid else {}


def _in_use(folder: Path, lease: Path) -> CellInUse:
    if _read(lease) == _this_process():
        return CellInUse(
            f"{folder}: this process itself is working in this cell\n"
            "End the run that it has opened, or choose another study, seed or axes for the new one"
        )
    holder = _describe_holder(lease, "another process")
    return CellInUse(f"{folder}: {holder} is working in this cell; wait for it, or stop it")


def _describe_holder(lease: Path, unknown: str) -> str:
    worker = _read(lease)
    return f"process {worker['pid']} on {worker['host']}" if worker else unknown


@cache
def _machine() -> str:
    """Return an identifier of host, boot and PID namespace.

    At any one time, process ids are unique within it.
    """
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "machine": _machine(),
        "host": socket.gethostname(),
        "pid": pid,
        "start": _start_time(pid),
    }


def _start_time(pid: int) -> str | Literal[False]:
    """Return the start time of a process; False if it does not exist or is a zombie.

    A process id can be reused by another process; the pair of id and start time cannot.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False if Path("/proc/self/stat").exists() else _start_time_by_ps(pid)
    return False if fields[0] in "ZX" else fields[19]


def _start_time_by_ps(pid: int) -> str | Literal[False]:
    """Return `_start_time` on a system without /proc, such as macOS; "unknown" without `ps`."""
    command = ["ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)]
    try:
        output = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"LC_ALL": "C", "TZ": "UTC"},
        ).stdout
    except OSError:
        return "unknown"
    state, _, started = output.strip().partition(" ")
    return False if state[:1] in ("", "Z") else started.strip()
