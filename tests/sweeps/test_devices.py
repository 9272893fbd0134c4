"""Cells side by side on the devices of one machine, in real processes."""

import os
import signal
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import cloudpickle
import pytest
from hydra.core.utils import JobReturn

from bnstudy.adapters.hydra_internals import failed_job, get_result
from bnstudy.adapters.submitit_internals import WorkerLost
from bnstudy.errors import UserError
from bnstudy.sweeps.devices import make_slots, run_all
from bnstudy.workers import make_picklable
from tests.conftest import SMALL, CommandLine, description


class OddError(Exception):
    """An error that can be pickled and not read back."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} is {reason}")


def work(number: int, folder: Path) -> JobReturn:
    """Note when and where a job runs; the first two meet, the seventh is killed."""
    began = time.time()
    if number == 5:
        return failed_job(make_picklable(OddError("a", "cold")))
    if number == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / str(number)).touch()
    while number < 2 and not (folder / str(1 - number)).exists():
        assert time.time() - began < 60, "the other one does not run at the same time"
        time.sleep(0.05)
    where = os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ["OMP_NUM_THREADS"]
    return JobReturn(_return_value=(*where, os.getpid(), began, time.time()))


@pytest.mark.slow
def test_jobs_share_the_devices_and_go_on_after_one_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # importing it takes seconds
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    jobs = [partial(work, number, tmp_path) for number in range(10)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,GPU-2,3")
    found = [get_result(one) for one in run_all(jobs, make_slots([0, 1, "GPU-2", 3], 1))]
    assert isinstance(found.pop(6), WorkerLost)
    assert repr(found.pop(5)) == "OddError('a is cold')"
    assert {device for device, *_ in found} == {"0", "1", "GPU-2", "3"}
    assert {threads for _, threads, *_ in found} == {"2"}
    assert len({pid for _, _, pid, *_ in found}) <= 5  # a process stays for further jobs
    for device in ("0", "1", "GPU-2", "3"):  # one after the other on each
        times = sorted((began, ended) for on, _, _, began, ended in found if on == device)
        assert all(ended <= began for (_, ended), (began, _) in pairwise(times))


def test_jobs_get_the_visible_devices_and_their_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def places(*options: object) -> list[tuple[str | None, int]]:
        slots = make_slots(*options)  # type: ignore[arg-type]
        return [(slot.device, slot.threads) for slot in slots]

    monkeypatch.setattr("joblib.cpu_count", lambda: 9)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    assert places(None, 1) == [("4", 4), ("GPU-7", 4)]
    assert places(None, 2) == [("4", 2), ("GPU-7", 2), ("4", 2), ("GPU-7", 2)]
    assert places([0], 1) == [("4", 9)]
    assert places([1, "GPU-7"], 1) == [("GPU-7", 4), ("GPU-7", 4)]
    for wrong in (2, 4, -1, "GPU-4"):
        with pytest.raises(UserError, match=rf"no device {wrong} .*=4,GPU-7\)\nChoose from GPU-7"):
            make_slots([0, wrong], 1)
    for none in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert places(None, 1) == [(None, 4), (None, 4)]
        with pytest.raises(UserError, match=r"no device 0 .*\nMake GPUs visible"):
            make_slots([0], 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert places([1, "MIG-5"], 1) == [("1", 4), ("MIG-5", 4)]
    with pytest.raises(UserError, match="no device 2\nChoose from 0, 1, or"):
        make_slots([2], 1)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert places([5], 1) == [("5", 9)]  # made up, to try a sweep out
    monkeypatch.setattr("joblib.cpu_count", lambda: 1)
    assert places(None, 3) == [(None, 1)] * 3
    for options, words in ((([], 1), r"devices=\[\]"), (([0], 0), "per_device=0")):
        with pytest.raises(UserError, match=words):
            make_slots(*options)


@pytest.mark.slow
def test_each_cell_sees_one_of_the_chosen_devices(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    result = command_line(
        *SMALL, "metrics=fast", "norm=batchnorm,none", "hydra/launcher=devices",
        "hydra.launcher.devices=[0,1]", "-m",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    cells = [description(path.parent) for path in tmp_path.glob("multirun/*/*/run.json")]
    assert {cell["environment"]["visible_devices"] for cell in cells} == {"5", "7"}
    assert "2 runs: 2 completed" in result.stdout
