"""Where bnstudy prints what it has to say."""

from rich.console import Console

# Text as it is: names may have brackets, and paths are to be copied in one piece.
console = Console(highlight=False, markup=False, soft_wrap=True)
