"""The tables that a report writes."""

import itertools
import math
from pathlib import Path

import pandas as pd
import pytest

from bnstudy.study.analysis import Analysis
from bnstudy.study.present import tables
from bnstudy.study.present.figures import draw_figures
from bnstudy.study.study import load
from tests.study.studies import Studies


@pytest.fixture
def analysis(studies: Studies) -> Analysis:
    """BatchNorm is better by 0.1, but for a seed."""
    studies.folder = studies.folder.with_name("a_study")
    for seed in range(6):
        studies.add("none", seed, layers={"silhouette": [0.1, 0.2]}, accuracy=0.5 + seed / 100)
        better = 0.61 if seed == 5 else 0.6
        layers = {"silhouette": [0.1 + seed / 100, 0.3]}
        studies.add("batchnorm", seed, layers=layers, accuracy=better + seed / 100)
    return Analysis(load(studies.folder))


@pytest.mark.slow
def test_what_is_written_is_what_was_found(analysis: Analysis, tmp_path: Path) -> None:
    written = tables.write_tables(analysis, tmp_path / "tables")
    assert all(path.exists() for path in written)
    read = pd.read_csv(tmp_path / "tables" / "effects.csv").fillna({"site": ""})
    pd.testing.assert_frame_equal(
        read, analysis.overall_effects, check_dtype=False, check_like=True
    )
    runs = pd.read_csv(tmp_path / "tables" / "runs.csv")
    assert len(runs) == 12
    assert "path" not in runs


def test_no_text_is_a_formula(studies: Studies, tmp_path: Path) -> None:
    formula = '=HYPERLINK("https://example.org")'
    studies.add("none", layers={formula: [0.1]}, overrides=["+trainer.x=1"])
    tables.write_tables(Analysis(load(studies.folder)), tmp_path)
    for name, column in (("runs", "overrides"), ("averages", "place")):
        texts = pd.read_csv(tmp_path / f"{name}.csv")[column].dropna()
        assert len(texts)
        assert not any(text.startswith(("=", "+")) for text in texts)
    assert "'+trainer.x=1" in (tmp_path / "runs.csv").read_text()


def test_a_table_in_latex_has_means_differences_and_intervals(analysis: Analysis) -> None:
    found = dict(tables.format_latex_tables(analysis))
    assert set(found) == {"performance-test", "performance-train", "layers-silhouette"}
    accuracy = found["performance-test"]
    assert r"0.525 $\pm$ 0.0187" in accuracy  # of 0.50, 0.51, ... 0.55
    assert "0.102 [0.1, 0.11]" in accuracy  # sign flips of 6 pairs: 5 times 0.1, once 0.11
    assert accuracy.count(r"\begin{tabular}") == 1
    assert "_" not in accuracy.replace(r"\_", "").replace("multicolumn", "")
    assert r"\caption{a\_study: accuracy, loss, test split" in accuracy
    layers = found["layers-silhouette"]
    assert layers.index("block01") < layers.index("block02")


def test_a_caption_names_what_differs_besides_the_norm(studies: Studies) -> None:
    studies.add("none", 0, "optim.lr=0.01", layers={"silhouette": [0.1]})
    studies.add("batchnorm", 0, "optim.lr=0.1", layers={"silhouette": [0.2]})
    found = dict(tables.format_latex_tables(Analysis(load(studies.folder))))
    rates = "learning rate (0.1 with BatchNorm, 0.01 with no normalization)"
    words = f"runs of a pair also differ in {rates}"
    assert words in found["layers-silhouette"]


def test_every_mean_has_its_n_and_what_diverged_is_told(studies: Studies) -> None:
    for seed in range(4):
        studies.add("batchnorm", seed, layers={"silhouette": [0.1 * seed]})
        value = 0.2 if seed == 0 else math.nan
        status = "completed" if seed == 0 else "diverged"
        studies.add("none", seed, layers={"silhouette": [value]}, accuracy=value, status=status)
    found = dict(tables.format_latex_tables(Analysis(load(studies.folder))))
    (row,) = (line for line in found["layers-silhouette"].splitlines() if "block01" in line)
    cells = [cell.strip(" \\") for cell in row.split("&")]
    assert cells[2:6] == [r"0.15 $\pm$ 0.129", "4", "0.2", "1 of 4"]
    assert cells[6:] == ["$-$0.2", "", "1 of 4"]
    assert all("3 of 4 runs with no normalization diverged" in text for text in found.values())
    assert all("nan" not in text for text in found.values())


def test_without_a_second_norm_there_are_no_differences(studies: Studies) -> None:
    studies.add("none", layers={"silhouette": [0.1]})
    analysis = Analysis(load(studies.folder))
    assert set(tables.collect_tables(analysis)) == {"runs", "averages", "epochs"}
    assert all("difference" not in text for _, text in tables.format_latex_tables(analysis))


@pytest.mark.parametrize("norms", [("none", "batchnorm"), ("batchnorm",)])
def test_a_metric_that_was_measured_at_one_depth_has_tables_of_this_depth_only(
    studies: Studies, norms: tuple[str, ...]
) -> None:
    """An interrupted measurement leaves such a study, or another sweep with other metrics."""
    for norm, seed, depth in itertools.product(("none", "batchnorm"), range(2), (2, 3)):
        layers = {"unit_sparsity": [0.1 * seed] * depth}
        if depth == 2 and norm in norms:
            layers["silhouette"] = [0.1 + seed / 10, 0.2]
        studies.add(norm, seed, f"model.depth={depth}", layers=layers)
    analysis = Analysis(load(studies.folder))
    found = dict(tables.format_latex_tables(analysis))
    drawn = {name for name, _ in draw_figures(analysis)}
    for names in (set(found), drawn):
        assert {name for name in names if name.startswith("layers-silhouette")} == {
            "layers-silhouette", "layers-silhouette-depth2"
        }  # fmt: skip
        assert {"layers-unit_sparsity-depth2", "layers-unit_sparsity-depth3"} <= names


def test_layers_that_were_measured_on_the_test_split_only_have_no_figure_or_table(
    studies: Studies,
) -> None:
    studies.add("none", layers={"silhouette": [0.1]}, accuracy=0.5)
    analysis = Analysis(load(studies.folder))
    analysis.averages.loc[analysis.averages["place_index"] > 0, "split"] = "test"
    assert {name for name, _ in draw_figures(analysis)} == {"performance"}
    assert set(dict(tables.format_latex_tables(analysis))) == {
        "performance-test", "performance-train"
    }  # fmt: skip
