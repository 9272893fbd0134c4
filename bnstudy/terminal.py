"""Where bnstudy prints what it has to say."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

# Text as it is: names may have brackets, and paths are to be copied in one piece.
console = Console(highlight=False, markup=False, soft_wrap=True)


def progress_bar(of: str) -> Progress:
    """Make a progress bar that counts, and disappears when it is done.

    Args:
        of: Unit of the count, in the plural.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(of),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
