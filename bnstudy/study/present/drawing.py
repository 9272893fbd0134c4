"""Writing of figures to files, in processes that only import Matplotlib and start quickly."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
from joblib import Parallel, cpu_count, delayed
from matplotlib.figure import Figure

from bnstudy.files import replacing
from bnstudy.workers import end_with_parent

FORMATS = ("svg", "pdf", "png")
MAX_PROCESSES = 4

STYLE: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "errorbar.capsize": 2,
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


def write_figures(figures: Iterable[tuple[str, Figure]], folder: Path) -> Iterator[Path]:
    """Write figures as SVG, PDF and PNG.

    Other processes draw them while this process continues.

    Args:
        figures: Names and figures.
        folder: Folder of the files.

    Returns:
        Files, each as soon as it is written.
    """
    where = folder.absolute()  # reused processes can have another current directory
    drawing: Iterator[list[str]] = Parallel(
        min(MAX_PROCESSES, cpu_count()), return_as="generator", pre_dispatch="all", batch_size=1
    )(delayed(_save)(figure, where / name) for name, figure in figures)
    return (folder / name for names in drawing for name in names)


@mpl.rc_context(STYLE)
def _save(figure: Figure, path: Path) -> list[str]:
    """Write a figure in all formats, and return the names of the files."""
    end_with_parent()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # keep the layout for all formats
    names = [f"{path.name}.{ending}" for ending in FORMATS]
    for name, ending in zip(names, FORMATS, strict=True):
        with replacing(path.with_name(name)) as temporary:
            figure.savefig(temporary, format=ending, dpi=300, metadata=WITHOUT_DATE[ending])
    return names
