"""Figure of bnstudy's time and peak memory over samples, units and layers.

Each point is one measurement in a fresh process (see footprint.py) of networks whose layers are all
of one size, on one split. Drawn by `python benchmarks/metrics.py --plot docs`.
"""

import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from footprint import footprint
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from rich.progress import track

UNITS_PER_CHANNEL = 28 * 28
BUDGET = 2  # GiB
BASE = {"samples": 2000, "width": 16, "depth": 2}
SWEEPS = {  # what is varied, its values, and how it is named on the axis
    "samples": ((250, 500, 1000, 2000, 4000, 8000), "samples N"),
    "width": ((2, 4, 8, 16, 32, 64), "units of a layer D, thousands"),
    "depth": ((1, 2, 4, 8, 16), "layers"),
}
COLOURS = {"default": "#0072B2", "full": "#D55E00"}
MARKERS = {"default": "o", "full": "s"}

Point = tuple[float, float, float]  # where, seconds, bytes


def draw(folder: Path, device: str, machine: str) -> None:
    """Measure all points; write metrics-scaling.svg, .png and .json to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = [(key, value, group) for key in SWEEPS for value in SWEEPS[key][0] for group in COLOURS]
    points: dict[str, dict[str, list[Point]]] = {key: {g: [] for g in COLOURS} for key in SWEEPS}
    for key, value, group in track(cases, "plot"):
        case = BASE | {key: value}
        options = {
            "network": "plain",
            "metrics": group,
            "budget": BUDGET,
            "device": device,
            "again": True,
        }
        found = footprint(**case, **options)
        where = value * UNITS_PER_CHANNEL / 1000 if key == "width" else value
        points[key][group].append((where, found["seconds"], found["peak"]))
    data = {"machine": machine, "points": points}
    (folder / "metrics-scaling.json").write_text(json.dumps(data, indent=1) + "\n")
    figure(folder, machine, points)


def figure(folder: Path, machine: str, points: dict[str, dict[str, list[Point]]]) -> None:
    """Draw the measured points."""
    mpl.rcParams.update({"font.size": 9, "svg.fonttype": "path", "svg.hashsalt": "bnstudy"})
    drawn, axes = plt.subplots(2, 3, figsize=(8.6, 5.4), sharey="row", sharex="col")
    for column, (key, (_, label)) in zip(axes.T, SWEEPS.items(), strict=True):
        for group, found in points[key].items():
            where, seconds, peaks = zip(*found, strict=True)
            style = {"color": COLOURS[group], "marker": MARKERS[group], "markersize": 4}
            column[0].plot(where, seconds, label=f"metrics={group}", **style)
            column[1].plot(where, [peak / 2**30 for peak in peaks], **style)
        column[1].axhline(BUDGET, color="0.35", linestyle="--", linewidth=1)
        column[0].set_title(_held(key), fontsize=9, color="0.25")
        column[1].set_xlabel(label)
        _logarithmic(column[1].xaxis, column[1].set_xscale, list(where))
    axes[0, 0].set_ylabel("time, seconds")
    axes[1, 0].set_ylabel("peak memory, GiB")
    axes[1, 0].annotate(
        f"memory_budget = {BUDGET} GiB",
        (0.03, BUDGET),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        color="0.35",
        fontsize=8,
    )
    times = [point[1] for sets in points.values() for found in sets.values() for point in found]
    peaks = [point[2] / 2**30 for sets in points.values() for one in sets.values() for point in one]
    ticks = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)
    _vertical(axes[0, 0], ticks, times)
    _vertical(axes[1, 0], (0.01, 0.03, 0.1, 0.3, 1, 3), [*peaks, BUDGET])
    for one in axes.flat:
        one.grid(True, color="0.9", linewidth=0.7)
        one.spines[["top", "right"]].set_visible(False)
    lines = axes[0, 0].get_lines()
    drawn.legend(handles=lines, frameon=False, loc="upper right", ncols=2, fontsize=9)
    drawn.suptitle("What measuring one split costs", x=0.01, ha="left", fontsize=11)
    caption = f"Convolutional layers of one size (D = 784 × channels), 10 classes. {machine}."
    drawn.text(0.01, 0.01, textwrap.fill(caption, 165), fontsize=7, color="0.25")
    drawn.tight_layout(rect=(0, 0.05, 1, 1))
    for kind in ("svg", "png"):
        options = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 150}
        drawn.savefig(folder / f"metrics-scaling.{kind}", **options)
    plt.close(drawn)


def _held(key: str) -> str:
    """What stays the same while something is varied."""
    names = {
        "samples": f"N = {BASE['samples']:,}",
        "width": f"D = {BASE['width'] * UNITS_PER_CHANNEL:,}",
        "depth": f"{BASE['depth']} layers",
    }
    return ", ".join(text for name, text in names.items() if name != key)


def _vertical(one: Axes, ticks: tuple[float, ...], values: list[float]) -> None:
    low, high = min(values) / 1.4, max(values) * 1.6
    _logarithmic(one.yaxis, one.set_yscale, [tick for tick in ticks if low <= tick <= high])
    one.set_ylim(low, high)


def _logarithmic(axis: mpl.axis.Axis, set_scale: Callable[[str], None], ticks: list[float]) -> None:
    """A logarithmic axis with these ticks, written out."""
    set_scale("log")
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.3g}" if value < 1000 else f"{value:,.0f}")
    )
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
