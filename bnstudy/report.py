"""Command line that writes the report of a study. See `python -m bnstudy.report --help`."""

import argparse
from pathlib import Path

from bnstudy.cli import command_line
from bnstudy.study.present.report_files import write_report

HELP = """\
What the runs of a study say: one page (HTML, to be read in any browser, without a network), figures
(SVG, PDF, PNG) and tables (CSV, LaTeX), and a summary here.

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
        "--baseline", metavar="NORM", help="which the others are compared with; none, or batchnorm"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to; STUDY_DIR/report")
    options = parser.parse_args()
    with command_line(
        "Interrupted: what was written is whole", "choose another folder: --output FOLDER"
    ):
        write_report(options.study, options.baseline, options.output)


if __name__ == "__main__":
    main()
