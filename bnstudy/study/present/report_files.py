"""Report of a study on disk: pages, figures, tables, and a manifest of them and their inputs."""

import hashlib
import html
import json
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import bnstudy
from bnstudy.errors import UserError
from bnstudy.files import replacing, writing
from bnstudy.runs.paths import EMBEDDINGS, RECORD, TABLE
from bnstudy.study.analysis import Analysis
from bnstudy.study.load.records import UNREADABLE
from bnstudy.study.load.study_runs import StudyRuns
from bnstudy.study.present.page import read_resource, render_page
from bnstudy.study.present.verdict import compose_verdict
from bnstudy.terminal import console
from bnstudy.terms import format_count

MAX_LISTED_RUNS = 10  # runs with remarks in the summary

PAGE = "index.html"

# List of a report's files, with a fingerprint of its inputs. Files that it does not list are the
# user's.
MANIFEST = ".bnstudy-report.json"

INPUTS = (RECORD, TABLE, EMBEDDINGS)  # files of each run

SIGNATURE = "Written by bnstudy"  # on each page


class Part(NamedTuple):
    """Comparable runs of a study, which have a page of their own.

    Attributes:
        study: Comparable runs.
        folder: Folder of their page, figures and tables.
        other_runs: Description of the study's other runs; None if all runs are comparable.
    """

    study: StudyRuns
    folder: Path
    other_runs: str | None


def write_report(
    folder: Path, baseline: str | None = None, output: Path | None = None
) -> list[Path]:
    """Write the page, figures and tables of a study, and print its summary.

    Each group of comparable runs has its own page. Files of an earlier report that the new report
    does not have are removed.

    Args:
        folder: Folder of the study.
        baseline: Norm to compare with; None: no normalization, or else BatchNorm.
        output: Folder of the report; None: `report` in the study's folder.

    Returns:
        Pages; the first is index.html.

    Raises:
        UserError: No run has ended, or there is no such baseline.
    """
    from threadpoolctl import threadpool_limits

    from bnstudy.study.present import tables
    from bnstudy.study.present.drawing import write_figures
    from bnstudy.study.present.figures import draw_figures

    output = output or folder / "report"
    inputs, parts, files = fingerprint(folder), _split_parts(StudyRuns.read(folder), output), []
    with writing(output):  # an error now, rather than in processes that draw
        output.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=output).close()
    for study, part_folder, other_runs in parts:
        analysis = Analysis(study, baseline)
        drawn = write_figures(draw_figures(analysis), part_folder / "figures")
        # Other processes draw at the same time, so more threads would compete for their cores.
        with threadpool_limits(1, "blas"):
            written = tables.write_tables(analysis, part_folder / "tables")
        linked = [*drawn, *written]
        names = [path.relative_to(part_folder).as_posix() for path in linked]
        page = _write(render_page(analysis, names, other_runs), part_folder / PAGE)
        files += [*linked, page]
        _print_summary(analysis, other_runs)
        for label, where in (
            ("Page", page),
            ("Figures", part_folder / "figures"),
            ("Tables", part_folder / "tables"),
        ):
            console.print(f"{label:<8} {where}")
    return _finish(output, parts, inputs, files)


def write_page(folder: Path) -> list[Path]:
    """Write only the page of a study, which takes seconds, without figures and tables.

    Figures and tables of an earlier report are removed, because they would not match the page. The
    earlier page is removed as well if no run has a result.

    Args:
        folder: Folder of the study.

    Returns:
        Pages; the first is index.html. There are several if not all runs are comparable.

    Raises:
        UserError: No run has ended.
    """
    output, inputs = folder / "report", fingerprint(folder)
    try:
        parts = _split_parts(StudyRuns.read(folder), output)
        analyses = [Analysis(part.study) for part in parts]
    except UserError:
        _remove(output, _read_manifest(output)["files"])
        raise
    files = [
        _write(render_page(analysis, other_runs=part.other_runs), part.folder / PAGE)
        for analysis, part in zip(analyses, parts, strict=True)
    ]
    return _finish(output, parts, inputs, files)


def refresh_pages(folder: Path) -> list[Path]:
    """Write the pages of a study again if their inputs have changed.

    Args:
        folder: Folder of the study.

    Returns:
        Pages; the first is index.html.

    Raises:
        UserError: No run has ended.
    """
    manifest = _read_manifest(folder / "report")
    pages = [folder / "report" / name for name in manifest["pages"]]
    is_current = manifest["inputs"] == fingerprint(folder)
    if pages and is_current and all(path.exists() for path in pages):
        return pages
    return write_page(folder)


def print_page(folder: Path) -> None:
    """Write the page of a study if its inputs have changed, and print its path.

    An error is printed in one line, because a sweep is complete without its page.
    """
    try:
        pages = refresh_pages(folder)
    except Exception as error:
        message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        console.print(f"Report   not written: {message.splitlines()[0]}")
        return
    for path in pages:
        console.print(f"Report   {path}")


def fingerprint(folder: Path) -> str:
    """Hash the inputs of a page: names, sizes and times of files, and the version.

    Args:
        folder: Folder of the study.
    """
    cells = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [path for cell in cells for name in INPUTS if (path := cell / name).exists()]
    files += sorted((folder / "similarity").glob("*/*"))
    states = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
    described = [(name, state.st_size, state.st_mtime_ns) for name, state in states]
    return hashlib.sha256(json.dumps([bnstudy.__version__, described]).encode()).hexdigest()


def is_report(path: Path) -> bool:
    """Return whether a file is a page that bnstudy wrote."""
    return path.is_file() and SIGNATURE in path.read_text(encoding="utf-8", errors="replace")


def _read_manifest(output: Path) -> dict[str, Any]:
    """Read the manifest of an earlier report: inputs, pages and files, relative to its folder.

    If it cannot be read, for example because an earlier version wrote none, the pages are found by
    their signature.
    """
    try:
        manifest: dict[str, Any] = json.loads((output / MANIFEST).read_text())
    except (OSError, ValueError):
        possible = [output / PAGE, *output.glob(f"part*/{PAGE}")]
        pages = [path for path in possible if is_report(path)]
        names = [path.relative_to(output).as_posix() for path in pages]
        return {"inputs": None, "pages": names, "files": names}
    return manifest


def _finish(output: Path, parts: list[Part], inputs: str, files: list[Path]) -> list[Path]:
    """Complete a report: write the contents page and the manifest, and remove outdated files.

    Args:
        output: Folder of the report.
        parts: Parts of the study.
        inputs: `fingerprint` of the inputs.
        files: Files of the report.

    Returns:
        Pages.
    """
    pages = [part.folder / PAGE for part in parts]
    if len(parts) > 1:
        pages.insert(0, _write(_render_contents(parts), output / PAGE))
    names = {path.relative_to(output).as_posix() for path in (*pages, *files)}
    _remove(output, set(_read_manifest(output)["files"]) - names)
    manifest = {
        "inputs": inputs,
        "pages": [path.relative_to(output).as_posix() for path in pages],
        "files": sorted(names),
    }
    _write(json.dumps(manifest, indent=2) + "\n", output / MANIFEST)
    return pages


def _remove(output: Path, names: Iterable[str]) -> None:
    """Remove files of an earlier report, and folders that become empty."""
    for name in names:
        (output / name).unlink(missing_ok=True)
        for parent in Path(name).parents[:-1]:  # the innermost first, without the report's folder
            folder = output / parent
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _render_contents(parts: list[Part]) -> str:
    """Render the contents page, which links to the pages of the parts."""
    name = html.escape(parts[0].study.name)
    items = "\n".join(
        f'<li><a href="{part.folder.name}/{PAGE}">{part.folder.name}</a>: '
        f"{format_count(len(part.study.results), 'run')} of "
        f"{html.escape(part.study.measured_on)}</li>"
        for part in parts
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name} · bnstudy</title>
<style>{read_resource("page.css")}</style>
</head>
<body>
<header>
<h1>{name}</h1>
<p>Not all runs of this study are comparable. There are {len(parts)} groups, with a page each.</p>
</header>
<main>
<ul>
{items}
</ul>
</main>
<footer>{SIGNATURE} {bnstudy.__version__}.</footer>
</body>
</html>
"""


def _split_parts(study: StudyRuns, output: Path) -> list[Part]:
    """Split a study into parts, whose folders are below that of the report if there are several."""
    if len(study.parts) == 1:
        return [Part(study.parts[0], output, None)]
    return [
        Part(
            runs,
            output / f"part{number}",
            "; ".join(
                f"{format_count(len(others.results), 'run')} of {others.measured_on} (part{other})"
                for other, others in enumerate(study.parts, start=1)
                if others is not runs
            ),
        )
        for number, runs in enumerate(study.parts, start=1)
    ]


def _write(text: str, path: Path) -> Path:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _print_summary(analysis: Analysis, other_runs: str | None) -> None:
    console.print(f"\n{analysis.study.name}", style="bold")
    if other_runs:
        console.print(
            f"Other runs of this folder are not comparable with these: {other_runs}",
            style="yellow",
        )
    for sentence in compose_verdict(analysis):
        console.print(f"· {sentence}")
    runs = analysis.study.runs
    troubled = runs.loc[runs["remark"].notna(), ["cell", "status", "remark"]]
    for cell, status, remark in troubled[:MAX_LISTED_RUNS].to_numpy().tolist():
        problem = remark if status in ("completed", UNREADABLE) else status
        console.print(f"! {cell}: {problem}", style="yellow")
    if len(troubled) > MAX_LISTED_RUNS:
        console.print(
            f"! and {len(troubled) - MAX_LISTED_RUNS} more, which the page lists", style="yellow"
        )
    console.print()
