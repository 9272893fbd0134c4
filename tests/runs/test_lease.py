"""One worker a cell, whatever becomes of workers and clocks."""

import errno
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bnstudy.runs import lease
from bnstudy.runs.lease import CellInUse, find_lease, hold_lease

fork = multiprocessing.get_context("fork")


def hold(folder: Path) -> None:
    with hold_lease(folder):
        time.sleep(60)


def count_up(folder: Path, times: int) -> None:
    """Add to a number that only the lease protects."""
    done = 0
    while done < times:
        try:
            with hold_lease(folder):
                number = folder / "number"
                before = int(number.read_text())
                time.sleep(0.001)
                number.write_text(str(before + 1))
                done += 1
        except CellInUse:
            time.sleep(0.001)


@contextmanager
def held_elsewhere(folder: Path, renewing: bool) -> Iterator[Path]:
    """A lease of another machine's process, which renews it or has died."""
    folder.mkdir()
    path = folder / ".lease.3"
    path.write_text(json.dumps({"machine": "another", "host": "far", "pid": 1, "start": "1"}))
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(0.1):
            os.utime(path)

    thread = threading.Thread(target=renew)
    if renewing:
        thread.start()
    try:
        yield path
    finally:
        stop.set()
        if renewing:
            thread.join()


def test_many_processes_exclude_one_another(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("0")
    workers = [fork.Process(target=count_up, args=(tmp_path, 25)) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert (tmp_path / "number").read_text() == "150"


def test_a_folder_that_this_process_holds_is_said_to_be_its_own(tmp_path: Path) -> None:
    with hold_lease(tmp_path), pytest.raises(CellInUse, match="this process itself"):
        hold_lease(tmp_path).__enter__()


def test_a_killed_workers_folder_is_free_at_once(tmp_path: Path) -> None:
    worker = fork.Process(target=hold, args=(tmp_path / "cell",))
    worker.start()
    while not find_lease(tmp_path / "cell"):
        time.sleep(0.01)
    with pytest.raises(CellInUse, match=rf"process {worker.pid} on .* is working in this cell"):
        hold_lease(tmp_path / "cell").__enter__()
    assert worker.pid
    os.kill(worker.pid, signal.SIGKILL)
    while worker.is_alive():  # a zombie until here, which does not count as alive either
        time.sleep(0.01)
    began = time.monotonic()
    with hold_lease(tmp_path / "cell"):
        assert time.monotonic() - began < 1


@pytest.mark.parametrize("clock", [0, 4_000_000_000], ids=["long ago", "in the future"])
def test_a_dead_worker_of_another_machine_is_seen_by_watching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: int
) -> None:
    monkeypatch.setattr(lease, "STALE_AFTER", 1.0)
    with held_elsewhere(tmp_path / "cell", renewing=False) as path:
        os.utime(path, (clock, clock))
        began = time.monotonic()
        with hold_lease(tmp_path / "cell"):
            assert time.monotonic() - began >= 1.0


def test_a_living_worker_of_another_machine_keeps_its_folder(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path / "cell", renewing=True), pytest.raises(CellInUse, match="far"):
        hold_lease(tmp_path / "cell").__enter__()


def test_an_error_that_passes_takes_no_folder_from_its_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network file system may answer once with ESTALE, and well again after that."""
    opened = Path.open
    errors = iter([False, False, True, True, True])

    def stale(self: Path, *args: Any, **options: Any) -> Any:
        if self.name == ".lease.3" and next(errors, False):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self))
        return opened(self, *args, **options)

    with held_elsewhere(tmp_path / "cell", renewing=True):
        monkeypatch.setattr(Path, "open", stale)
        with pytest.raises(CellInUse):
            hold_lease(tmp_path / "cell").__enter__()
    assert "watching 60 s to see if" in capsys.readouterr().out


def test_a_lease_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWAL_INTERVAL", 0.05)
    with hold_lease(tmp_path) as mine:
        os.utime(mine.path, (0, 0))
        time.sleep(0.5)
        assert mine.path.stat().st_mtime > 0
        mine.check()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
@pytest.mark.parametrize("call", ["utime", "stat", "scandir", "rename"])
def test_an_error_that_passes_ends_no_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    monkeypatch.setattr(lease, "RENEWAL_INTERVAL", 0.02)
    monkeypatch.setattr(lease, "RETRY_DELAYS", (0.01, 0.01))
    undisturbed = getattr(os, call)
    errors = iter([True])

    def fail_once(*arguments: Any, **options: Any) -> Any:
        if next(errors, False):
            raise OSError(number, os.strerror(number))
        return undisturbed(*arguments, **options)

    if call != "scandir":
        with hold_lease(tmp_path / "cell") as mine:
            monkeypatch.setattr(os, call, fail_once)
            time.sleep(0.2)
            os.utime(mine.path, (0, 0))
            time.sleep(0.2)
            assert mine.path.stat().st_mtime > 0
            mine.check()
    else:
        monkeypatch.setattr(os, call, fail_once)
    with hold_lease(tmp_path / "cell"), pytest.raises(CellInUse):
        hold_lease(tmp_path / "cell").__enter__()
    assert not list(errors)


def test_an_error_while_taking_a_folder_removes_no_lease_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken_first(self: Path, mode: str = "r", **options: Any) -> Any:
        if mode == "x":
            self.write_text("{}")  # another process's
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return opened(self, mode, **options)

    opened = Path.open
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", taken_first)
        with pytest.raises(OSError, match="Input/output"):
            hold_lease(tmp_path).__enter__()
    assert (tmp_path / ".lease.1").exists()


def test_a_worker_notices_that_its_cell_was_taken_over(tmp_path: Path) -> None:
    with hold_lease(tmp_path) as mine:
        (tmp_path / ".lease.2").write_text("{}")  # as another process does
        with pytest.raises(CellInUse, match="this process no longer holds the cell"):
            mine.check()
    assert find_lease(tmp_path) == ({}, tmp_path / ".lease.2")


def test_a_lease_does_not_depend_on_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_clock() -> float:
        raise AssertionError("the clock may jump")

    monkeypatch.setattr(time, "time", no_clock)
    for _ in range(3):
        with hold_lease(tmp_path) as mine:
            mine.check()
    names = sorted(path.name for path in tmp_path.glob(".lease.*"))
    assert names == [f".lease.{number}.released" for number in (1, 2, 3)]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"machine": "here", "pid": "x"}'])
def test_a_damaged_lease_is_named_and_taken_over(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str,
) -> None:
    monkeypatch.setattr(lease, "STALE_AFTER", 0.3)
    (tmp_path / ".lease.1").write_text(content)
    with hold_lease(tmp_path):
        assert (tmp_path / ".lease.2").exists()
    assert "the unknown holder of .lease.1 (damaged file) is alive" in capsys.readouterr().out


def test_without_proc_a_process_is_known_by_its_start_as_well() -> None:
    worker = fork.Process(target=time.sleep, args=(60,))
    worker.start()
    assert worker.pid
    started = lease._start_time_by_ps(worker.pid)
    assert started
    assert started == lease._start_time_by_ps(worker.pid)
    worker.kill()
    while os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.01)
    assert lease._start_time_by_ps(worker.pid) is False  # a zombie
    worker.join()
    assert lease._start_time_by_ps(worker.pid) is False
