"""Time and peak memory of one measurement of a network's layers, in this process.

    python benchmarks/footprint.py --metrics full --depth 4 --width 64 --samples 2000 --budget 0.5

Prints one line of JSON. The peak is that of the resident set, less what is resident after a forward
pass on a few samples. (`ru_maxrss` of `resource.getrusage` does not serve: it begins with the size
of the process that started this one.) On a GPU the peak is that of torch's allocations. With
--again, the seconds are those of a second measurement, unless the first took more than 20.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from subject import cnn, measuring, plain, probes

MAX_SECONDS_TO_REPEAT = 20


def footprint(**options: object) -> dict[str, float]:
    """Run this file in a fresh process; return `seconds` and `peak`, in bytes."""
    arguments = [f"--{name}={value}" for name, value in options.items() if value is not True]
    arguments += [f"--{name}" for name, value in options.items() if value is True]
    command = [sys.executable, "-W", "ignore", __file__, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=["cnn", "plain"], default="cnn")
    parser.add_argument("--metrics", default="full")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--budget", type=float, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()

    network = {"cnn": cnn, "plain": plain}[options.network](options.depth, options.width)
    network.to(options.device).eval()
    batches = probes(options.samples, options.device)["train"]
    metrics = measuring(options.metrics, {"train": batches}, options.budget)
    with torch.no_grad():
        network(next(iter(batches))[0][:8])

    before = _start_peak(options.device)
    seconds = _seconds(lambda: metrics.measure(network, epoch=0, step=0))
    peak = _peak(options.device) - before
    if options.again and seconds < MAX_SECONDS_TO_REPEAT:
        seconds = _seconds(lambda: metrics.measure(network, epoch=0, step=0))
    print(json.dumps({"seconds": seconds, "peak": peak}))


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _start_peak(device: str) -> int:
    """Reset the peak; return the bytes in use now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # see proc(5)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _peak(device: str) -> int:
    """Return the peak of the bytes in use since `_start_peak`."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
