"""Table of a benchmark's results, and description of the machine."""

import os
import platform
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

MAX_LOAD = 0.5  # above this load, a warning is printed


@dataclass
class Line:
    """Line of the table."""

    name: str
    reference: str = ""
    ours: str = ""
    ratio: str = ""
    goal: str = ""
    agreement: str = ""


@dataclass
class Row:
    """Result of a benchmark: lines of the table, headline numbers, raw numbers, largest error."""

    lines: list[Line]
    headline: dict[str, float]
    raw: dict[str, Any] = field(default_factory=dict)
    error: float | None = None


def table(rows: Iterable[Row], title: str) -> Table:
    """Make the table of all rows."""
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    shown.add_column("", min_width=56)
    for heading in ("reference", "ours", "ratio", "goal"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("agreement")
    for row in rows:
        for line in row.lines:
            shown.add_row(*astuple(line))
        shown.add_section()
    return shown


def console() -> Console:
    """Make a console, with wide lines if the output is not a terminal."""
    shown = Console()
    if not shown.is_terminal:
        shown.width = 130
    return shown


def machine(device: str) -> str:
    """Describe the GPU if one is measured, the processor, its threads and torch's version."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    threads = torch.get_num_threads()
    gpu = f"{torch.cuda.get_device_name()}; " if device == "cuda" else ""
    thread_count = f"{threads} thread{'s' * (threads > 1)}"
    return f"{gpu}{processor}, {thread_count}; torch {torch.__version__}"


def load_of_others(shown: Console) -> float:
    """Return the machine's load; print a warning if it is not idle."""
    load = os.getloadavg()[0]
    if load > MAX_LOAD:
        shown.print(f"Others keep this machine busy (load {load:.1f}): times will mislead")
    return load
