"""Figures of a study, in publication size."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from bnstudy.errors import UserError
from bnstudy.study.analysis import Analysis
from bnstudy.study.present import figures
from bnstudy.study.present.drawing import FORMATS, WIDTH, write_figures
from bnstudy.study.study import load
from tests.study.studies import Studies


@pytest.fixture
def analysis(studies: Studies) -> Analysis:
    for seed in range(4):
        for norm, shift in (("none", 0.0), ("batchnorm", 0.1)):
            layers = {"silhouette": [0.1 + shift + seed / 50, 0.2], "unit_sparsity": [0.5, 0.6]}
            studies.add(norm, seed, layers=layers)
    return Analysis(load(studies.folder))


@pytest.mark.slow
def test_each_figure_is_written_in_every_format(analysis: Analysis, tmp_path: Path) -> None:
    written = list(write_figures(figures.draw_figures(analysis), tmp_path))
    names = {path.stem for path in written}
    assert names == {
        *("layers-unit_sparsity", "epochs-unit_sparsity", "accuracy-unit_sparsity"),
        *("layers-silhouette", "epochs-silhouette", "accuracy-silhouette"),
        *("effects-batchnorm", "performance"),
    }
    assert len(written) == 3 * len(names)
    for path in written:
        start = path.read_bytes()[:8]
        expected = {".svg": b"<?xml", ".pdf": b"%PDF", ".png": b"\x89PNG"}[path.suffix]
        assert start.startswith(expected)
    text = (tmp_path / "layers-silhouette.svg").read_text()
    for words in ("mean paired difference", "difference to no normalization", "block 2", "n = 4"):
        assert words in text
    with Image.open(tmp_path / "layers-silhouette.png") as image:
        assert image.width == round(WIDTH * 300)


@pytest.mark.slow
def test_the_same_study_gives_the_same_files(analysis: Analysis, tmp_path: Path) -> None:
    for name in ("first", "second"):
        first_figure = list(figures.draw_figures(analysis))[:1]
        assert len(list(write_figures(first_figure, tmp_path / name))) == len(FORMATS)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


def test_what_is_drawn_is_what_was_found(analysis: Analysis) -> None:
    levels, differences = figures.Plot(analysis).layers("silhouette").axes
    drawn = [
        (bars.get_label(), np.asarray(bars.lines[0].get_ydata(), dtype=float).round(9).tolist())
        for bars in [*levels.containers, *differences.containers]
    ]
    assert drawn == [
        ("no normalization, n = 4", [0.13, 0.2]),
        ("BatchNorm, n = 4", [0.23, 0.2]),
        ("BatchNorm, n = 4", [0.1, 0]),
    ]
    assert levels.get_ylabel() == "silhouette of the classes"
    assert [text.get_text() for text in levels.get_xticklabels()] == ["block 1", "block 2"]


def ends_of(axes: Axes) -> np.ndarray:
    """x, lower and upper end of each bar, by treatment and layer."""
    segments = [bars.lines[2][0].get_segments() for bars in axes.containers]
    return np.array([[(*low, high[1]) for low, high in bars] for bars in segments])


def test_bars_are_side_by_side_and_within_the_range_of_the_metric(studies: Studies) -> None:
    for seed, norm in itertools.product(range(3), ("none", "batchnorm", "groupnorm")):
        value = 0.0 if seed else 1.0  # mean 1 / 3, standard deviation 0.58
        studies.add(norm, seed, layers={"unit_sparsity": [value, 1 - value]})
    levels, _ = figures.Plot(Analysis(load(studies.folder))).layers("unit_sparsity").axes
    x, low, high = np.moveaxis(ends_of(levels), -1, 0)
    assert np.diff(x, axis=0).min() > 0.1
    assert low.min() == 0
    assert high.max() == 1


def test_a_figure_without_intervals_says_why(studies: Studies) -> None:
    for seed, norm in itertools.product(range(4), ("none", "batchnorm")):
        layers = {"silhouette": [0.5 * (norm == "none")], "unit_sparsity": [0.0]}
        studies.add(norm, seed, layers=layers if seed < 2 else {"silhouette": layers["silhouette"]})
    plot = figures.Plot(Analysis(load(studies.folder)))
    captions = [
        figure.get_supxlabel().rpartition("difference, ")[2]
        for figure in (plot.layers("silhouette"), plot.layers("unit_sparsity"))
    ]
    assert captions == ["no intervals (equal differences)", "no intervals (fewer than 3 pairs)"]


def test_values_before_training_do_not_stretch_the_axes(studies: Studies) -> None:
    values = {"loss": [9.0, 0.5, 0.4, 0.3, 0.2, 0.1], "accuracy": [0.1, 0.8, 0.85, 0.86, 0.87, 0.9]}
    for seed, norm in itertools.product(range(3), ("none", "batchnorm")):
        curves = {
            (f"probe_{metric}", split): [value + seed / 100 for value in values[metric]]
            for metric, split in itertools.product(values, ("train", "test"))
        }
        studies.add(norm, seed, curves=curves)
    accuracy, loss, _ = figures.Plot(Analysis(load(studies.folder))).performance().axes
    assert accuracy.get_ylim()[0] > 0.7
    assert loss.get_ylim()[1] < 1
    assert loss.get_yscale() == "log"


def test_a_metric_that_was_not_measured_is_told(analysis: Analysis) -> None:
    with pytest.raises(UserError, match=r"silhuette was not measured.*silhouette, unit_sparsity"):
        figures.Plot(analysis).layers("silhuette")


def labels(drawn: Axes | Figure) -> list[str]:
    legend = drawn.legends[0] if isinstance(drawn, Figure) else drawn.get_legend()
    return [str(text.get_text()) for text in legend.get_texts()]


@pytest.mark.slow
def test_every_mean_has_its_n(studies: Studies) -> None:
    for seed, norm, depth, lr in itertools.product(
        range(2), ("none", "batchnorm"), (2, 4), (0.1, 0.2)
    ):
        diverged = norm == "none" and (seed, lr) != (0, 0.1)
        words = (f"model.depth={depth}", f"model.width={depth}", f"optim.lr={lr}")
        studies.add(
            norm,
            seed,
            *words,
            layers={"silhouette": [math.nan if diverged else 0.1] * depth},
            accuracy=math.nan if diverged else 0.9,
            status="diverged" if diverged else "completed",
        )
    plot = figures.Plot(Analysis(load(studies.folder)))
    levels, differences = plot.layers("silhouette").axes
    assert labels(levels) == [
        "no normalization, n = 2 of 8, 6 diverged",
        "BatchNorm, n = 8",
    ]
    assert labels(differences) == ["BatchNorm, n = 2 of 8, 6 diverged"]
    assert labels(plot.epochs("silhouette"))[0] == "no normalization, n = 2 of 8, 6 diverged"
    assert labels(plot.performance())[2] == "no normalization, test, n = 2 of 8, 6 diverged"
    assert labels(plot.learning_rates().axes[0]) == [
        "BatchNorm, n = 4",
        "no normalization, n = 0 to 2 of 4, 4 diverged",
    ]
    panels = plot.depth_width().axes
    assert [text.get_text() for text in panels[1].texts] == ["n = 1", "n = 0", "n = 0", "n = 1"]


def test_one_pair_has_no_heat_map_of_effects(studies: Studies) -> None:
    for norm in ("none", "batchnorm"):
        studies.add(norm, layers={"silhouette": [0.1, 0.2]})
    names = {name for name, _ in figures.draw_figures(Analysis(load(studies.folder)))}
    assert not any(name.startswith("effects") for name in names)
