"""Worker processes end with the process that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SWEEP = """
import os, sys, time
from joblib import Parallel, delayed
from bnstudy import workers

def work(folder):
    workers.end_with_parent()
    open(f"{folder}/{os.getpid()}", "w").close()
    time.sleep(float(sys.argv[2]))

if __name__ == "__main__":
    Parallel(2)(delayed(work)(sys.argv[1]) for _ in range(2))
    time.sleep(60)  # the workers wait for more work
"""


def is_running(pid: int) -> bool:
    result = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return result.stdout.strip()[:1] not in ("", "Z")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "busy"), [(signal.SIGKILL, 60), (signal.SIGTERM, 60), (signal.SIGKILL, 0.1)]
)
def test_workers_end_with_a_parent_that_is_killed(
    tmp_path: Path, number: signal.Signals, busy: float
) -> None:
    (tmp_path / "sweep.py").write_text(SWEEP)
    (tmp_path / "pids").mkdir()
    parent = subprocess.Popen([sys.executable, tmp_path / "sweep.py", tmp_path / "pids", str(busy)])
    deadline = time.monotonic() + 60
    while len(workers := [int(path.name) for path in (tmp_path / "pids").iterdir()]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
        if busy < 1 and workers:
            break  # one of them may do both tasks
    time.sleep(busy if busy < 1 else 0)
    assert all(map(is_running, workers))
    os.kill(parent.pid, number)
    parent.wait()
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
