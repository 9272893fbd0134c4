"""Launch of jobs side by side on one machine, in processes that use one device each."""

import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cloudpickle
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

from bnstudy.adapters.hydra_internals import execute_job, failed_job
from bnstudy.adapters.submitit_internals import WorkerLost
from bnstudy.errors import UserError

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
CORES_PER_PROCESS = 4  # on a machine without a GPU


class Slot:
    """Slot for one worker process on one device.

    The process runs one job after the other, so that modules are imported only once. If it is
    killed, a new process replaces it.

    Args:
        device: Value of CUDA_VISIBLE_DEVICES in the process; None: inherited.
        threads: Number of threads that the process uses, unless OMP_NUM_THREADS is set.
    """

    def __init__(self, device: str | None, threads: int) -> None:
        self.device, self.threads = device, threads
        self._pool = self._start()

    def run(self, call: Callable[[], JobReturn]) -> JobReturn:
        """Run a function in the process.

        Returns:
            Result of the function; a `WorkerLost` as a failed job if the process was killed.
        """
        try:
            pickled = self._pool.submit(_call, cloudpickle.dumps(call)).result()
        except BrokenProcessPool:
            self._pool.shutdown()
            self._pool = self._start()
            return failed_job(WorkerLost())
        except SystemExit:  # the job was asked to stop
            return failed_job(WorkerLost())
        result: JobReturn = cloudpickle.loads(pickled)
        return result

    def close(self) -> None:
        """End the process after its current job."""
        self._pool.shutdown(cancel_futures=True)

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            1,
            get_context("spawn"),
            initializer=_set_environment,
            initargs=(self.device, self.threads),
        )


def launch(
    launcher: Launcher,
    jobs: Sequence[Sequence[str]],
    first: int,
    devices: Sequence[int | str] | None,
    per_device: int,
) -> list[JobReturn]:
    """Run jobs, as many at a time as there are slots; a free slot takes the next job at once.

    Args:
        launcher: Launcher that Hydra has set up.
        jobs: Overrides of each job.
        first: Number of the first job.
        devices: GPUs, as in `make_slots`; None: all that this process may use.
        per_device: Number of processes that share a device.

    Returns:
        Result of each job; a `WorkerLost` if its process was killed.

    Raises:
        UserError: The options are not allowed.
    """
    Path(launcher.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)  # type: ignore[attr-defined]
    context, config, task = launcher.hydra_context, launcher.config, launcher.task_function  # type: ignore[attr-defined]
    calls = [
        partial(execute_job, number, list(job), context, config, task, Singleton.get_state())
        for number, job in enumerate(jobs, start=first)
    ]
    return run_all(calls, make_slots(devices, per_device)[: len(jobs)])


def run_all(calls: Sequence[Callable[[], JobReturn]], slots: Sequence[Slot]) -> list[JobReturn]:
    """Run functions in the processes of slots, then end the processes.

    Returns:
        Result of each function.
    """
    free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
    for slot in slots:
        free.put(slot)

    def run(call: Callable[[], JobReturn]) -> JobReturn:
        slot = free.get()
        try:
            return slot.run(call)
        finally:
            free.put(slot)

    threads = ThreadPoolExecutor(len(slots))
    try:
        return list(threads.map(run, calls))
    finally:
        threads.shutdown(cancel_futures=True)  # after Ctrl+C no further job begins
        for slot in slots:
            slot.close()


def make_slots(devices: Sequence[int | str] | None, per_device: int) -> list[Slot]:
    """Make the slots for processes, and divide the cores among them.

    On a machine without a GPU, unless `devices` are given, there are `per_device` slots for every
    `CORES_PER_PROCESS` cores.

    Args:
        devices: Numbers of GPUs among those that this process may use, or their names as in
            CUDA_VISIBLE_DEVICES; None: all of them.
        per_device: Number of processes that share a device.

    Raises:
        UserError: The options are not allowed, or a device is not there.
    """
    if devices is not None and not devices:
        raise UserError("hydra.launcher.devices=[] is not allowed; expected devices such as [0,1]")
    if per_device < 1:
        raise UserError(
            f"hydra.launcher.per_device={per_device} is not allowed; expected an integer of at "
            "least 1"
        )
    from joblib import cpu_count  # slow import

    cores: int = cpu_count()  # those that this process may use
    names: list[str | None] = [*(_list_gpus() if devices is None else _find_devices(devices))]
    if not names:
        names = [None] * max(1, cores // CORES_PER_PROCESS)
    names *= per_device  # each device gets its first job before any gets its second
    return [Slot(name, max(1, cores // len(names))) for name in names]


def _find_devices(devices: Sequence[int | str]) -> list[str]:
    """Return the names of devices as CUDA_VISIBLE_DEVICES names them.

    On a machine without a GPU, any device is accepted, so that a sweep can be tried out there.

    Raises:
        UserError: A device is not there.
    """
    limit, visible = os.environ.get(VISIBLE_DEVICES), _list_gpus()
    if limit is None and not visible:
        return [str(device) for device in devices]
    known = {name: name for name in visible if not name.isdecimal()}
    known |= {str(number): name for number, name in enumerate(visible)}
    if limit is None:  # the driver also knows GPUs and their MIG instances by their UUIDs
        known |= {
            str(device): str(device)
            for device in devices
            if str(device).startswith(("GPU-", "MIG-"))
        }
    for device in devices:
        if str(device) not in known:
            reason = "" if limit is None else f" ({VISIBLE_DEVICES}={limit})"
            choice = f"Choose from {', '.join(known)}, or" if known else "Make GPUs visible, or set"
            raise UserError(
                f"hydra.launcher.devices: there is no device {device}{reason}\n"
                f"{choice} null for all there are"
            )
    return [known[str(device)] for device in devices]


def _list_gpus() -> Sequence[str]:
    """List the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (visible := os.environ.get(VISIBLE_DEVICES)) is not None:
        names = [name.strip() for name in visible.split(",")]
        return [name for name in names if name and name != "-1"]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _set_environment(device: str | None, threads: int) -> None:
    """Set a process's device and threads, before it imports torch."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if device is not None:
        os.environ[VISIBLE_DEVICES] = device


def _call(pickled: bytes) -> bytes:
    """Run a pickled function in the process of a slot, and pickle its result."""
    call: Callable[[], JobReturn] = cloudpickle.loads(pickled)
    result: bytes = cloudpickle.dumps(call())
    return result
