"""Figures of a study, in publication size."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from bnstudy.errors import UserError
from bnstudy.study.analysis import Analysis
from bnstudy.study.present import figures
from bnstudy.study.present.drawing import FORMATS, write_figures
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
def test_each_is_written_in_every_format(analysis: Analysis, tmp_path: Path) -> None:
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
    for words in ("paired difference to no normalization", "batchnorm", "block02", "n = 4"):
        assert words in text
    with Image.open(tmp_path / "layers-silhouette.png") as image:
        assert image.width == round(figures.WIDTH * 300)


def test_the_same_study_gives_the_same_files(analysis: Analysis, tmp_path: Path) -> None:
    for name in ("one", "other"):
        one = list(figures.draw_figures(analysis))[:1]
        assert len(list(write_figures(one, tmp_path / name))) == len(FORMATS)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes(), path.name


def test_what_is_drawn_is_what_was_found(analysis: Analysis) -> None:
    levels, differences = figures.Plot(analysis).layers("silhouette").axes
    drawn = [
        (one.get_label(), np.asarray(one.lines[0].get_ydata(), dtype=float).round(9).tolist())
        for one in [*levels.containers, *differences.containers]
    ]
    assert drawn == [
        ("batchnorm, n = 4", [0.23, 0.2]),
        ("none, n = 4", [0.13, 0.2]),
        ("batchnorm, n = 4", [0.1, 0]),
    ]


def test_a_metric_that_was_not_measured_is_told(analysis: Analysis) -> None:
    with pytest.raises(UserError, match=r"silhuette was not measured.*silhouette, unit_sparsity"):
        figures.Plot(analysis).layers("silhuette")


def labels(axes: Axes) -> list[str]:
    return [str(text.get_text()) for text in axes.get_legend().get_texts()]


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
    assert labels(levels) == ["batchnorm, n = 8", "none, n = 2 of 8, 6 diverged"]
    assert labels(differences) == ["batchnorm, n = 2 of 8, 6 diverged"]
    assert labels(plot.epochs("silhouette").axes[0])[1] == "none, n = 2 of 8, 6 diverged"
    assert labels(plot.performance().axes[0])[3] == "none, test, n = 2 of 8, 6 diverged"
    assert labels(plot.learning_rates().axes[0]) == [
        "batchnorm, n = 4",
        "none, n = 0 to 2 of 4, 4 diverged",
    ]
    maps = plot.depth_width().axes
    assert [text.get_text() for text in maps[1].texts] == ["n = 1", "n = 0", "n = 0", "n = 1"]


def test_one_pair_has_no_map_of_effects(studies: Studies) -> None:
    for norm in ("none", "batchnorm"):
        studies.add(norm, layers={"silhouette": [0.1, 0.2]})
    names = {name for name, _ in figures.draw_figures(Analysis(load(studies.folder)))}
    assert not any(name.startswith("effects") for name in names)
