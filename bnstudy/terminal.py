"""Console of all commands, their warnings, and a progress bar."""

import warnings
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

# No markup and no wrapping: names may contain brackets, and paths must be copyable.
console = Console(highlight=False, markup=False, soft_wrap=True)


def progress_bar(unit: str) -> Progress:
    """Create a progress bar that shows a count and disappears at the end.

    Args:
        unit: Unit of the count in the plural, such as "runs".
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


@cache  # a second call would wrap the format again
def shorten_warnings() -> None:
    """Let warnings of bnstudy be printed without a file and a line of its code."""
    package, format_in_full = Path(__file__).parent, warnings.formatwarning

    def format_warning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        if category is UserWarning and Path(filename).is_relative_to(package):
            return f"Warning: {message}\n"
        return format_in_full(message, category, filename, lineno, line)

    warnings.formatwarning = format_warning
