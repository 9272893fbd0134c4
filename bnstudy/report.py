"""Command line that writes the report of a study. See `python -m bnstudy.report --help`."""

import argparse
from pathlib import Path

from bnstudy.cli import command_line
from bnstudy.study.present.report_files import write_report

HELP = """\
Write the report of a study: a page (HTML, for any browser, without a network), figures (SVG, PDF,
PNG) and tables (CSV, LaTeX). Print its verdict.

  python -m bnstudy.report multirun/mnist5k_cnn
  python -m bnstudy.report multirun/mnist5k_cnn --baseline batchnorm --output FOLDER
"""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        "bnstudy.report", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, metavar="STUDY_DIR")
    parser.add_argument(
        "--baseline", metavar="NORM", help="norm to compare with; default: none, or else batchnorm"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the report; default: STUDY_DIR/report"
    )
    options = parser.parse_args()
    with command_line(
        "Interrupted; files that were written are complete",
        "choose another folder: --output FOLDER",
    ):
        write_report(options.study, options.baseline, options.output)


if __name__ == "__main__":
    main()
