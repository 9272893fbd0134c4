"""One worker a cell, on one host or on several that share a file system.

Who works in a folder holds its lease: a file that names the process, and whose time of modification
a thread renews every few seconds. A lease that is no longer renewed is that of a worker that died,
and whoever comes next takes the folder over.

- Leases are numbered, `.lease.1`, `.lease.2`, ..., and only the newest one counts. To take a folder
  over is to make the next number's file, which the file system grants to one process alone. Those
  before stay: whoever was slow to look tries for a number that was given, and does not get it.
- Whether a lease is renewed is *watched*, for as long as `STALE_AFTER` by the watcher's own clock:
  clocks of hosts are never compared, and may jump. Only of a process on this machine, which can be
  looked up, it is known at once.
- A worker that was taken over, after it had been stopped for long, notices at its next write.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

from bnstudy.errors import UserError
from bnstudy.terminal import console

RENEWED_EVERY = 5.0  # seconds
STALE_AFTER = 60.0  # seconds without renewal; a file system's caches may hold one back for some


class CellInUse(UserError):
    """Another process works in this cell."""


class Lease:
    """A folder's lease, held by this process.

    Args:
        path: Its file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """To be called before writing to the folder.

        Raises:
            CellInUse: It was taken over.
        """
        if self.lost or not self._renew():
            raise CellInUse(
                f"{self.path.parent}: taken over by another process, as this one had not been "
                f"heard of for {STALE_AFTER:.0f} s; that one goes on with it"
            )

    def release(self) -> None:
        """Leave the folder to others."""
        self._done.set()
        self._thread.join()
        with suppress(OSError):  # taken over, or the folder was removed
            self.path.rename(_released(self.path))

    def _keep_renewing(self) -> None:
        while not self._done.wait(RENEWED_EVERY):
            if not self._renew():
                self.lost = True
                return

    def _renew(self) -> bool:
        try:
            os.utime(self.path)
        except FileNotFoundError:
            return False
        except OSError:  # the file system does not answer now
            return True
        following = self.path.with_name(f".lease.{_number(self.path) + 1}")
        return not (following.exists() or _released(following).exists())


@contextmanager
def held(folder: Path) -> Iterator[Lease]:
    """Hold a folder's lease; a dead worker's is taken over.

    Raises:
        CellInUse: Another process works in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = _take(folder)
    lease = Lease(path)
    try:
        yield lease
    finally:
        lease.release()


def lease_of(folder: Path) -> tuple[dict[str, Any], Path] | None:
    """Who holds a folder's lease, dead or alive, and the lease; None where it is free."""
    newest = _newest(folder)[1]
    return (_read(newest), newest) if newest else None


def forget(folder: Path) -> None:
    """Remove what was left of leases, from a folder that is to be removed."""
    for lease in folder.glob(".lease.*"):
        lease.unlink(missing_ok=True)


def watch(leases: Sequence[Path], seconds: float = 2 * RENEWED_EVERY) -> set[Path]:
    """Those of the leases that are renewed within some seconds.

    Args:
        leases: That are held.
        seconds: It returns earlier once all are.
    """
    began, first = time.monotonic(), {lease: _renewed(lease) for lease in leases}
    waiting, renewed = set(leases), set()
    while waiting and time.monotonic() - began < seconds:
        time.sleep(0.2)
        now = {lease: _renewed(lease) for lease in waiting}
        renewed |= {lease for lease in waiting if now[lease] and now[lease] != first[lease] != 0}
        waiting -= renewed | {lease for lease in waiting if now[lease] is None}  # given back
        first |= {lease: now[lease] for lease in waiting if first[lease] == 0}
    return renewed


def is_known_alive(worker: dict[str, Any]) -> bool | None:
    """Whether a lease's holder lives, where it can be looked up: None of another machine's."""
    here = _this_process()
    if worker.get("machine") != here["machine"]:
        return None
    return bool(_start(worker["pid"]) == worker["start"])


def _take(folder: Path) -> Path:
    """Make the folder's next lease."""
    number, newest = _newest(folder)
    if newest:
        alive = is_known_alive(_read(newest))
        if alive is None:
            console.print(
                f"{folder}: watching for {STALE_AFTER:.0f} s whether {_holder(newest)} is alive"
            )
            alive = bool(watch([newest], STALE_AFTER))
        if alive:
            raise _in_use(folder, newest)
    path = folder / f".lease.{number + 1}"
    try:
        with path.open("x") as file:
            json.dump(_this_process(), file)
    except FileExistsError:
        raise _in_use(folder, path) from None
    except OSError:
        path.unlink(missing_ok=True)
        raise
    if _released(path).exists():  # another process has had that number meanwhile, and is done
        path.unlink()
        return _take(folder)
    return path


def _newest(folder: Path) -> tuple[int, Path | None]:
    """The newest lease's number, 0 where there never was one; its file unless it was released."""
    leases = folder.glob(".lease.*")
    newest = max(
        leases, key=lambda lease: (_number(lease), _released(lease) != lease), default=None
    )
    if newest is None:
        return 0, None
    return _number(newest), None if _released(newest) == newest else newest


def _number(lease: Path) -> int:
    number = lease.name.removeprefix(".lease.").partition(".")[0]
    return int(number) if number.isdigit() else 0


def _released(lease: Path) -> Path:
    return lease.with_name(f".lease.{_number(lease)}.released")


def _renewed(lease: Path) -> int | None:
    """When a lease was renewed; None where it was given back, 0 where nothing answers just now."""
    try:
        with lease.open() as file:  # opening makes a network file system look anew
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
    except OSError:
        return 0


def _read(lease: Path) -> dict[str, Any]:
    try:
        content = json.loads(lease.read_text())
    except (OSError, ValueError):  # released in this moment, or just being written
        content = None
    return content if isinstance(content, dict) else {}


def _in_use(folder: Path, lease: Path) -> CellInUse:
    return CellInUse(f"{folder}: {_holder(lease)} works in this cell; wait for it, or stop it")


def _holder(lease: Path) -> str:
    worker = _read(lease)
    return f"process {worker['pid']} on {worker['host']}" if worker else "another process"


@cache
def _machine() -> str:
    """What tells machines apart whose process numbers are not the same processes."""
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
        "start": _start(pid),
    }


def _start(pid: int) -> str | Literal[False]:
    """When a process began, as the system says it; False where there is none, or only a zombie.

    Another process may by now have the number of one that died, but not its beginning.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return False
        try:
            os.kill(pid, 0)  # no /proc, as on macOS
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return "unknown"
    return False if fields[0] in "ZX" else fields[19]
