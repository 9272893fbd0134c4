"""From a study to its page, figures and tables. `python -m bnstudy.report --help`."""

import argparse
import sys
from pathlib import Path

from bnstudy.config import explain
from bnstudy.errors import UserError
from bnstudy.files import replacing
from bnstudy.study.findings import Findings
from bnstudy.study.load import Study, load
from bnstudy.study.page import page
from bnstudy.terminal import console

HELP = """\
What the runs of a study say: one page (HTML, to be read in any browser, without a network), figures
(SVG, PDF, PNG) and tables (CSV, LaTeX), and a summary here.

  python -m bnstudy.report multirun/mnist5k_cnn
  python -m bnstudy.report multirun/mnist5k_cnn --baseline batchnorm --output FOLDER
"""

MOST_TOLD = 10  # runs that did not go well


def report(folder: Path, baseline: str | None = None, output: Path | None = None) -> list[Path]:
    """Write the page, figures and tables of a study, and print its summary.

    Runs that are not comparable with the others have a page of their own.

    Args:
        folder: Of the study.
        baseline: The norm that the others are compared with; None: no normalization, or BatchNorm.
        output: Where to; None: `report` in the study's folder.

    Returns:
        The pages.

    Raises:
        UserError: There is no run that has ended, or no such baseline.
    """
    from threadpoolctl import threadpool_limits

    from bnstudy.study import tables
    from bnstudy.study.drawing import draw
    from bnstudy.study.figures import all_figures

    pages = []
    for study, place, apart in _parts(load(folder), output or folder / "report"):
        findings = Findings(study, baseline)
        drawn = draw(all_figures(findings), place / "figures")
        # Other processes draw: threads that wait for a core of theirs would hold up the others.
        with threadpool_limits(1, "blas"):
            written = tables.write(findings, place / "tables")
        files = [path.relative_to(place).as_posix() for path in (*drawn, *written)]
        pages.append(_write(page(findings, files, apart), place / "index.html"))
        _summarize(findings, apart)
        for what, where in (
            ("Page", pages[-1]),
            ("Figures", place / "figures"),
            ("Tables", place / "tables"),
        ):
            console.print(f"{what:<8} {where}")
    return pages


def write_page(folder: Path) -> list[Path]:
    """Write the page of a study alone, without figures and tables: it takes seconds.

    Args:
        folder: Of the study.

    Returns:
        Where it is; several, where the runs are not comparable.

    Raises:
        UserError: There is no run that has ended.
    """
    return [
        _write(page(Findings(study), apart=apart), place / "index.html")
        for study, place, apart in _parts(load(folder), folder / "report")
    ]


def tell_page(folder: Path) -> None:
    """Write the page of a study unless no run has changed since, and say where it is.

    Whatever prevents that is told in a line: a sweep has done its work without its page.
    """
    pages = sorted((folder / "report").glob("**/index.html"))
    written = min((path.stat().st_mtime for path in pages), default=0.0)
    try:
        if any(path.stat().st_mtime >= written for path in folder.glob("*/run.json")):
            pages = write_page(folder)
    except Exception as error:
        message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        console.print(f"Report   none: {message.splitlines()[0]}")
        return
    for path in pages:
        console.print(f"Report   {path}")


def _parts(study: Study, output: Path) -> list[tuple[Study, Path, str | None]]:
    """What is comparable: each part, its folder, and what it is apart from."""
    if len(study.parts) == 1:
        return [(study.parts[0], output, None)]
    return [
        (
            part,
            output / f"part{number}",
            "; ".join(
                f"{len(other.results)} runs of {other.what} (part{place})"
                for place, other in enumerate(study.parts, start=1)
                if other is not part
            ),
        )
        for number, part in enumerate(study.parts, start=1)
    ]


def _write(text: str, path: Path) -> Path:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _summarize(findings: Findings, apart: str | None) -> None:
    console.print(f"\n{findings.study.name}", style="bold")
    if apart:
        console.print(f"Not comparable with the rest of the folder: {apart}", style="yellow")
    for sentence in findings.verdict:
        console.print(f"· {sentence}")
    runs = findings.study.runs
    troubled = runs.loc[runs["remark"].notna(), ["cell", "status"]]
    for cell, status in troubled[:MOST_TOLD].to_numpy().tolist():
        console.print(f"! {cell}: {status}", style="yellow")
    if len(troubled) > MOST_TOLD:
        console.print(f"! and {len(troubled) - MOST_TOLD} more, on the page", style="yellow")
    console.print()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        "bnstudy.report", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, metavar="STUDY_DIR")
    parser.add_argument(
        "--baseline", metavar="NORM", help="which the others are compared with; none, or batchnorm"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to; STUDY_DIR/report")
    options = parser.parse_args()
    try:
        report(options.study, options.baseline, options.output)
    except KeyboardInterrupt:
        sys.exit("Interrupted: what was written is whole")
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        sys.exit(message)


if __name__ == "__main__":
    main()
