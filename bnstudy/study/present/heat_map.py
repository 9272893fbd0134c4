"""Heat map of a matrix of values between layers."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bnstudy.files import replacing

LABEL_WIDTH = 30  # characters per line
MAX_NUMBERS = 14  # rows or columns up to which cells contain their values


def write_heat_map(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    axes: tuple[str, str],
    bounds: tuple[float, float],
    lower_is_brighter: bool,
    path: Path,
) -> None:
    """Draw a heat map, and write it as SVG and PNG.

    Args:
        values: Values, rows x columns; NaN is blank.
        rows: Names of the rows, from top to bottom.
        columns: Names of the columns, from left to right.
        title: Title above the picture.
        axes: Labels of the rows and of the columns.
        bounds: Values at the ends of the colour scale.
        lower_is_brighter: Whether low values have the bright colours.
        path: Path of the files, without endings.
    """
    height, width = values.shape
    size = max(0.28, 0.55 - 0.02 * max(height, width))  # inches of a cell
    figure = Figure(figsize=(3 + size * width, 2.2 + size * height), layout="constrained")
    ax = figure.subplots()
    colours = "viridis_r" if lower_is_brighter else "viridis"
    image = ax.imshow(values, vmin=bounds[0], vmax=bounds[1], cmap=colours)
    ax.set_xticks(range(width), columns, rotation=90)
    ax.set_yticks(range(height), rows)
    ax.set_ylabel(textwrap.fill(axes[0], LABEL_WIDTH))
    ax.set_xlabel(textwrap.fill(axes[1], LABEL_WIDTH))
    ax.set_title(textwrap.fill(title, LABEL_WIDTH), fontsize=10)
    figure.colorbar(image, ax=ax, shrink=0.9)
    if max(height, width) <= MAX_NUMBERS:
        middle = sum(bounds) / 2
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "black" if (value > middle) != lower_is_brighter else "white"
                ax.text(
                    column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8
                )
    for ending in ("svg", "png"):
        with replacing(path.with_suffix(f".{ending}")) as temporary:
            figure.savefig(temporary, format=ending, dpi=200)
