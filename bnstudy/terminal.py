"""Console of all commands, and a progress bar."""

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
