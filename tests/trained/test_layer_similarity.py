"""`python -m bnstudy.measure similarity`: matrices between the layers of two runs."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bnstudy import measure
from bnstudy.metrics import SIMILARITIES
from tests.conftest import SMALL, CommandLine, description, edit_description

STUDY = "multirun/mnist5k_cnn"


def read(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    header, *rows = csv.reader(path.read_text().splitlines())
    values = np.array([[float(value) for value in row[1:]] for row in rows])
    return [row[0] for row in rows], header[1:], values


@pytest.fixture
def cells(command_line: CommandLine, tmp_path: Path) -> list[Path]:
    arguments = ("metrics=none", "checkpoint_epochs=[0]", "norm=batchnorm,none", "-m")
    assert command_line(*SMALL, *arguments).returncode == 0
    return sorted((tmp_path / STUDY).glob("*-*/"))


@pytest.mark.slow
def test_two_runs_are_compared_layer_by_layer(
    command_line: CommandLine, tmp_path: Path, cells: list[Path]
) -> None:
    with_norm, without = (str(cell.relative_to(tmp_path)) for cell in cells)
    sites = ("--samples", "300", "--sites", "act", "features")
    result = command_line("similarity", with_norm, without, *sites, main=measure.main)
    assert result.returncode == 0, result.stderr
    (output,) = (tmp_path / STUDY / "similarity").iterdir()
    assert output.name == f"{cells[0].name}~{cells[1].name}"
    for name, similarity in SIMILARITIES.items():
        rows, columns, values = read(output / f"{name}.csv")
        assert rows == columns == ["block01", "block02", "classifier.features"]
        low, high = similarity.bounds
        assert ((values >= low) & (values <= high)).all()
        assert "<svg" in (output / f"{name}.svg").read_text()
        with Image.open(output / f"{name}.png") as image:
            assert image.width > 400
    facts = json.loads((output / "similarity.json").read_text())
    assert [run["epoch"] for run in facts["runs"]] == [2, 2]
    assert (facts["split"], facts["samples"]) == ("test", 300)
    assert facts["similarities"].keys() == SIMILARITIES.keys()
    assert facts["similarities"]["procrustes"] == {
        "direction": "lower",
        "is_metric": True,
        "is_symmetric": True,
        "invariant_to": ["rotation", "scale", "translation"],
    }

    # Of one run: symmetric, and every layer is like itself.
    assert command_line("similarity", with_norm, *sites, main=measure.main).returncode == 0
    itself = tmp_path / STUDY / "similarity" / cells[0].name
    for name, same in (("cka", 1), ("cka_debiased", 1), ("procrustes", 0)):
        _, _, values = read(itself / f"{name}.csv")
        np.testing.assert_allclose(values, values.T)
        np.testing.assert_allclose(values.diagonal(), same, atol=5e-3)

    # The other way round it is the transpose; elsewhere, where that is asked for.
    there = ("--output", "there")
    assert (
        command_line("similarity", without, with_norm, *sites, *there, main=measure.main).returncode
        == 0
    )
    np.testing.assert_allclose(
        read(tmp_path / "there" / "cka.csv")[2], read(output / "cka.csv")[2].T, rtol=1e-5
    )


@pytest.mark.slow
def test_before_training_the_first_convolution_is_the_same_and_batchnorm_changes_the_second(
    command_line: CommandLine, tmp_path: Path, cells: list[Path]
) -> None:
    epoch = ("--epoch", "0", "--samples", "200", "--output", "there", "--sites", "conv")
    result = command_line("similarity", *map(str, cells), *epoch, main=measure.main)
    assert result.returncode == 0, result.stderr
    rows, _, values = read(tmp_path / "there" / "cka.csv")
    assert rows[0] == "block01.conv"
    assert values[0, 0] == pytest.approx(1, abs=1e-5)
    assert values[1, 1] < 0.9999  # it reads what has been normalized
    assert values[0, 1] < 0.999


@pytest.mark.long
@pytest.mark.parametrize(
    "other",
    ["data.validation=0", "data.samples_per_class=360"],
    ids=["of another size", "of the same size"],
)
def test_with_different_training_samples_only_the_test_split_is_compared(
    command_line: CommandLine, tmp_path: Path, other: str
) -> None:
    for option in ("data.validation=0.1", other):
        arguments = ("metrics=none", "model.depth=1", option)
        assert command_line(*SMALL[1:], *arguments).returncode == 0
    cells = sorted(map(str, (tmp_path / STUDY).glob("*-*/")))
    sites = ("--samples", "100")
    result = command_line("similarity", *cells, "--split", "train", *sites, main=measure.main)
    assert result.returncode == 1
    assert "differ in data.validation" in result.stderr
    assert command_line("similarity", *cells, *sites, main=measure.main).returncode == 0


@pytest.mark.slow
def test_what_cannot_be_compared_is_told(
    command_line: CommandLine, tmp_path: Path, cells: list[Path]
) -> None:
    for arguments, words in (
        (("nowhere",), "nowhere: no run.json in it"),
        ((str(cells[0]), "--epoch", "1"), "has the weights of epochs 0, 2"),
        ((str(cells[0]), "--samples", "9999"), "the test split has 1000"),
    ):
        result = command_line("similarity", *arguments, main=measure.main)
        assert result.returncode == 1
        assert words in result.stderr
    edit_description(cells[1], data=description(cells[1])["data"] | {"sha256": "other"})
    result = command_line("similarity", *map(str, cells), main=measure.main)
    assert "were trained on different images" in result.stderr
    assert not (tmp_path / STUDY / "similarity").exists()
