"""Style of figures, and functions that write figures to files.

This module imports neither pandas nor the analysis, so that the processes that write figures start
quickly.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from warnings import catch_warnings, filterwarnings

import matplotlib as mpl
import numpy as np
from joblib import Parallel, cpu_count, delayed
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bnstudy.files import replacing
from bnstudy.workers import end_with_parent

WIDTH = 6.75  # inches; two columns of a paper
MAX_PANELS = 4  # layers of a figure with one panel per layer
FORMATS = ("svg", "pdf", "png")
MAX_PROCESSES = 4

STYLE: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "errorbar.capsize": 2,
    "figure.labelsize": 6,  # the caption below all panels
    "figure.titlesize": 8,
    "font.size": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
    "svg.hashsalt": "bnstudy",  # files are reproducible
    "text.parse_math": False,  # names can contain dollar signs
}
WITHOUT_DATE = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}


def draw_panels(
    count: int, height: float, width: float = WIDTH, **options: Any
) -> tuple[Figure, list[Axes]]:
    """Make a figure with panels side by side; sizes in inches."""
    figure = Figure((width, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False, **options)[0])


def choose_spread(count: int, max_chosen: int) -> list[int]:
    """Choose at most `max_chosen` evenly spaced indices below `count`, including both ends."""
    return sorted({round(index) for index in np.linspace(0, count - 1, min(count, max_chosen))})


def write_figures(figures: Iterable[tuple[str, Figure]], folder: Path) -> Iterator[Path]:
    """Write figures as SVG, PDF and PNG.

    Other processes draw them while this process continues.

    Args:
        figures: Names and figures.
        folder: Folder of the files.

    Returns:
        Files, each as soon as it is written.
    """
    absolute = folder.absolute()  # reused processes can have another current directory
    drawing: Iterator[list[str]] = Parallel(
        min(MAX_PROCESSES, cpu_count()), return_as="generator", pre_dispatch="all", batch_size=1
    )(delayed(_save)(figure, absolute / name) for name, figure in figures)
    return (folder / name for names in drawing for name in names)


@mpl.rc_context(STYLE)
def _save(figure: Figure, path: Path) -> list[str]:
    """Write a figure in all formats, and return the names of the files."""
    end_with_parent()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # keep the layout for all formats
    names = [f"{path.name}.{ending}" for ending in FORMATS]
    for name, ending in zip(names, FORMATS, strict=True):
        with replacing(path.with_name(name)) as temporary, catch_warnings():
            filterwarnings("ignore", message="Creating legend with loc")  # if drawing is slow
            figure.savefig(temporary, format=ending, dpi=300, metadata=WITHOUT_DATE[ending])
    return names
