"""Command line that shows the progress of sweeps. `python -m bnstudy.sweep --help`."""

import argparse
import time
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.live import Live

from bnstudy.cli import command_line
from bnstudy.sweeps.status import StudyStatus

HELP = """\
Show the progress of the sweeps over a study, on any machine that can read the study's folder.

  python -m bnstudy.sweep status multirun/mnist5k_cnn
  python -m bnstudy.sweep status multirun/mnist5k_cnn --watch        until you press Ctrl+C
"""


def print_status(study: Path, interval: float | None) -> None:
    """Print the progress of the sweeps over a study.

    Args:
        study: Folder of the study.
        interval: Seconds between updates of the display; None to print it once.

    Raises:
        UserError: The folder contains no study.
    """
    console = Console(highlight=False, markup=False)
    if interval is None:
        console.print(StudyStatus(study))
        return
    with (
        suppress(KeyboardInterrupt),  # Ctrl+C is the way to end the display
        Live(StudyStatus(study), console=console, auto_refresh=False) as live,
    ):
        while True:
            time.sleep(interval)
            live.update(StudyStatus(study), refresh=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        "bnstudy.sweep", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="status")
    status = commands.add_parser(
        "status", help="show counts, running cells, failures and the remaining time"
    )
    status.add_argument("study", type=Path, metavar="STUDY_DIR")
    status.add_argument(
        "--watch",
        type=_parse_seconds,
        nargs="?",
        const=2.0,
        metavar="SECONDS",
        help="update the display at this interval; default: 2 seconds",
    )
    options = parser.parse_args()
    with command_line("Interrupted"):
        print_status(options.study, options.watch)


def _parse_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: expected a number of seconds of at least 0.1")
    return seconds


if __name__ == "__main__":
    main()
