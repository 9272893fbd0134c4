"""`python -m bnstudy.report`, and the page that a multirun ends with."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

import bnstudy
from bnstudy import report
from bnstudy.errors import UserError
from bnstudy.runs.long_table import Row
from bnstudy.runs.record import Record
from bnstudy.study.present import report_files
from tests.conftest import PRINT_PAGE, REPOSITORY, SMALL, CommandLine, Compose
from tests.study.studies import Studies

RUN = (*SMALL, "model.depth=1", "metrics.names=[unit_sparsity]", "norm=batchnorm,none", "seed=0,1")


@pytest.fixture
def study(studies: Studies) -> Studies:
    """Four pairs of runs."""
    for seed in range(4):
        for norm in ("none", "batchnorm"):
            studies.add(norm, seed, layers={"silhouette": [seed / 10, 0.2]})
    return studies


@pytest.mark.slow
@pytest.mark.usefixtures("with_page")
def test_a_multirun_ends_with_a_page_and_a_report_has_more(
    command_line: CommandLine,
) -> None:
    result = command_line(*RUN, "-m")
    assert result.returncode == 0
    folder = Path("multirun/mnist5k_cnn")
    assert result.stdout.endswith(f"Report   {folder}/report/index.html\n")
    page = folder / "report" / "index.html"
    written = page.stat().st_mtime_ns
    assert f"Report   {page}\n" in command_line(*RUN, "-m").stdout
    assert page.stat().st_mtime_ns == written  # nothing has changed

    result = command_line(str(folder), main=report.main)
    assert result.returncode == 0, result.stderr
    assert (
        "in 2 pairs of runs (2 seeds). The two runs of a pair differ only in the norm"
        in result.stdout
    )
    assert "With only 2 pairs, values are shown but not tested" in " ".join(result.stdout.split())
    assert (folder / "report" / "figures" / "performance.pdf").exists()
    effects = pd.read_csv(folder / "report" / "tables" / "effects.csv")
    assert set(effects["n"]) == {2}
    assert "figures/performance.pdf" in page.read_text()


@pytest.mark.long
def test_the_baseline_and_the_output_folder_can_be_chosen(
    study: Studies, command_line: CommandLine, tmp_path: Path
) -> None:
    arguments = (str(study.folder), "--baseline", "batchnorm", "--output", "elsewhere")
    result = command_line(*arguments, main=report.main)
    assert result.returncode == 0
    assert "no normalization is compared with BatchNorm in 4 pairs" in result.stdout
    assert "Test accuracy is 0.500 with no normalization and 0.500 with BatchNorm" in result.stdout
    effects = pd.read_csv(tmp_path / "elsewhere" / "tables" / "effects.csv")
    assert set(effects["baseline"]) == {"batchnorm"}
    assert set(effects["treatment"]) == {"none"}
    assert not (study.folder / "report").exists()


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report draws one figure: all of them take long."""
    figure = Figure()
    monkeypatch.setattr("bnstudy.study.present.figures.draw_figures", lambda _: [("one", figure)])


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_runs_that_are_not_comparable_have_pages_of_their_own(
    study: Studies, command_line: CommandLine
) -> None:
    study.add("none", 9, layers={"silhouette": [0.1, 0.2]}, data="b" * 64)
    result = command_line(str(study.folder), main=report.main)
    assert result.returncode == 0
    assert "Other runs of this folder are not comparable" in result.stdout
    contents = (study.folder / "report" / "index.html").read_text()
    for part in ("part1", "part2"):
        assert (study.folder / "report" / part / "index.html").exists()
        assert f'href="{part}/index.html"' in contents


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_no_page_figure_or_table_outlives_its_runs(study: Studies) -> None:
    folder = study.folder / "report"
    assert report_files.write_report(study.folder) == [folder / "index.html"]
    whole = written(folder)
    assert {"figures/one.pdf", "tables/effects.csv"} <= whole
    (folder / "figures" / "mine.pdf").write_text("a user's own")
    (folder / "part1").mkdir()
    (folder / "part1" / "notes.txt").write_text("a user's own")
    own = {"figures/mine.pdf", "part1/notes.txt"}

    other = study.add("none", 9, layers={"silhouette": [0.1, 0.2]}, data="b" * 64)
    pages = report_files.write_report(study.folder)
    assert [path.relative_to(folder).as_posix() for path in pages] == [
        "index.html",
        "part1/index.html",
        "part2/index.html",
    ]
    of_part = "part1/tables/effects.csv"
    assert own | {of_part} <= written(folder)
    assert not {"figures/one.pdf", "tables/effects.csv"} & written(folder)

    shutil.rmtree(other.folder)
    assert report_files.write_report(study.folder) == [folder / "index.html"]
    assert written(folder) == whole | own


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
def test_a_page_alone_leaves_no_figures_of_an_earlier_state(study: Studies) -> None:
    folder = study.folder / "report"
    report_files.write_report(study.folder)
    study.add("none", 9, layers={"silhouette": [0.1, 0.2]}, data="b" * 64)
    PRINT_PAGE(study.folder)
    assert written(folder) == {
        ".bnstudy-report.json",
        *("index.html", "part1/index.html", "part2/index.html"),
    }


@pytest.mark.slow
def test_where_no_run_has_a_result_there_is_no_page(
    study: Studies, capsys: pytest.CaptureFixture[str]
) -> None:
    report_files.write_page(study.folder)
    for path in study.folder.glob("*/metrics.parquet"):
        path.unlink()
    PRINT_PAGE(study.folder)
    assert "Report   not written: " in capsys.readouterr().out
    assert written(study.folder / "report") <= {".bnstudy-report.json"}


@pytest.mark.slow
@pytest.mark.parametrize("change", ["added", "removed", "measured", "version", "maps", "nothing"])
def test_what_a_page_is_made_of_decides_whether_it_is_written_again(
    study: Studies, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (page,) = report_files.write_page(study.folder)
    before = page.stat().st_mtime_ns
    record = Record.read(next(path.parent for path in study.folder.glob("*/run.json")))
    match change:
        case "added":
            study.add("layernorm", 0, layers={"silhouette": [0.3, 0.4]})
        case "removed":
            shutil.rmtree(record.folder)
        case "measured":
            record.table.add_rows([Row(5, 9, "train", 0, "block01", "act", "hoyer", 0.5, None)])
        case "version":
            monkeypatch.setattr(bnstudy, "__version__", "99.0.0")
        case "maps":
            record.paths.embeddings.write_bytes(b"damaged, which is said")
    assert report_files.refresh_pages(study.folder) == [page]
    assert (page.stat().st_mtime_ns == before) == (change == "nothing")


@pytest.mark.slow
def test_a_page_of_a_version_that_listed_no_files_is_replaced(study: Studies) -> None:
    folder = study.folder / "report"
    for name in ("part1", "part2"):
        (folder / name).mkdir(parents=True)
        (folder / name / "index.html").write_text("Written by bnstudy 0.1.0")
    (folder / "part3").mkdir()
    (folder / "part3" / "index.html").write_text("a user's own")
    report_files.write_page(study.folder)
    expected = {".bnstudy-report.json", "index.html", "part3/index.html"}
    assert written(folder) == expected


@pytest.mark.usefixtures("study")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], ["nowhere: no run.json"]),
        (["study", "--baseline", "layernorm"], ["baseline=layernorm", "none, batchnorm"]),
    ],
)
def test_a_mistake_is_told_in_two_lines(
    command_line: CommandLine, arguments: list[str], words: list[str]
) -> None:
    result = command_line(*arguments, main=report.main)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) <= 2
    assert all(word in result.stderr for word in words), result.stderr


def test_a_study_of_failed_runs_has_no_report(studies: Studies, command_line: CommandLine) -> None:
    studies.add("none", status="failed", attempts=[{"status": "failed", "error": "so it is"}])
    result = command_line(str(studies.folder), main=report.main)
    assert result.returncode == 1
    assert "no run that has ended: 1 run: 1 failed" in result.stderr


@pytest.mark.slow
def test_a_page_that_cannot_be_written_stops_no_sweep(
    study: Studies, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report_files, "_write", full)
    PRINT_PAGE(study.folder)
    assert (
        capsys.readouterr().out
        == "Report   not written: OSError: [Errno 28] No space left on device\n"
    )


def test_a_study_is_loaded_as_data_frames(study: Studies) -> None:
    found = bnstudy.load(study.folder)
    assert len(found.runs) == 8
    silhouette = found.metrics("silhouette", split="train")
    assert list(silhouette.loc[silhouette["layer"] == "block01", "value"]) == [0, 0.1, 0.2, 0.3] * 2
    assert set(found.metrics()["metric"]) == {"accuracy", "silhouette"}
    assert set(found.effects("batchnorm")["baseline"]) == {"batchnorm"}
    assert found.plot.layers("silhouette").axes[0].get_ylabel() == "silhouette of the classes"
    with pytest.raises(UserError, match=r"metric=silhuette is not in .*; it has accuracy, silho"):
        found.metrics("silhuette")
    with pytest.raises(UserError, match="split=validation is not in"):
        found.metrics(split="validation")


@pytest.mark.slow
def test_the_example_of_the_documentation_runs(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/examples/study.py, as it stands, on a study of its name."""
    monkeypatch.chdir(tmp_path)
    study = Studies(composed, tmp_path / "multirun" / "mnist5k_cnn")
    for seed in range(4):
        for norm in ("none", "batchnorm"):
            study.add(norm, seed, layers={"unit_sparsity": [seed / 10, 0.2]})
    example = REPOSITORY / "docs" / "examples" / "study.py"
    exec(compile(example.read_text(), str(example), "exec"), {"__name__": "__main__"})
    assert (tmp_path / "unit_sparsity.pdf").exists()


def test_an_output_folder_that_cannot_be_written_is_told_with_this_commands_option(
    study: Studies, command_line: CommandLine
) -> None:
    (study.folder / "report").write_text("no folder")
    result = command_line(str(study.folder), main=report.main)
    assert result.returncode == 1
    assert "--output FOLDER" in result.stderr
    assert "output_root" not in result.stderr
    result = command_line(str(study.folder), "--output", "/proc/new", main=report.main)
    assert result.returncode == 1
    assert result.stderr.startswith("/proc/new: No such file or directory\n")
    assert len(result.stderr.splitlines()) == 2
