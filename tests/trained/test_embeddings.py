"""`python -m bnstudy.measure map`: samples in two dimensions."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness

from bnstudy import measure
from bnstudy.representations import Layer
from bnstudy.runs.embedding_file import EMBEDDINGS_SCHEMA
from bnstudy.trained import embeddings
from tests.conftest import SMALL, CommandLine
from tests.metrics.samples import sample

STUDY = "multirun/mnist5k_cnn"
RUN = (*SMALL, "metrics=none", "checkpoint_epochs=[0]")


@pytest.fixture(autouse=True)
def _pca_alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """UMAP compiles itself for half a minute."""
    if "umap" not in request.node.name:
        monkeypatch.setattr(embeddings, "list_methods", lambda: ["pca"])


@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.parametrize("shape", [(6, 5, 5), (500, 2, 2)])
def test_the_plane_is_scikit_learns(num_classes: int, shape: tuple[int, ...]) -> None:
    activations, labels = sample(num_classes, spread=0.5, shape=shape, offset=3.0)
    found, share = embeddings.compute_principal_components(Layer(activations, labels))
    reference = PCA(2, svd_solver="full")
    expected = reference.fit_transform(activations.flatten(1).double().numpy())
    expected *= np.sign((expected**3).sum(axis=0))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert share == pytest.approx(reference.explained_variance_ratio_.sum(), rel=1e-5)


def test_samples_on_a_line_are_a_line() -> None:
    along = torch.linspace(0, 1, 50)[:, None] ** 2
    found, share = embeddings.compute_principal_components(
        Layer(along * torch.ones(50, 8), torch.arange(50) % 5)
    )
    assert share == pytest.approx(1)
    assert np.abs(found[:, 1]).max() < 1e-3 * np.abs(found[:, 0]).max()


@pytest.mark.long
def test_umap_keeps_neighbours() -> None:
    activations, labels = sample(10, spread=0.5)
    layer = Layer(activations, labels)
    flat, found = activations.flatten(1).numpy(), embeddings.compute_umap(layer)
    assert found.shape == (len(labels), 2)
    plane = embeddings.compute_principal_components(layer)[0]
    assert trustworthiness(flat, found) > trustworthiness(flat, plane)
    np.testing.assert_array_equal(found, embeddings.compute_umap(layer))
    assert embeddings.list_methods() == ["pca", "umap"]


@pytest.mark.slow
def test_each_run_of_a_study_keeps_its_maps(command_line: CommandLine, tmp_path: Path) -> None:
    both = (*RUN, "norm=batchnorm,none", "-m")
    assert command_line(*both).returncode == 0
    options = ("map", STUDY, "--samples", "100", "--sites", "act", "features")
    result = command_line(*options, main=measure.main)
    assert result.returncode == 0, result.stderr
    paths = sorted((tmp_path / STUDY).glob("*/maps.parquet"))
    assert len(paths) == 2
    table = pq.read_table(paths[0])
    assert table.schema.equals(EMBEDDINGS_SCHEMA)
    frame = table.to_pandas()
    assert frame.groupby(["layer", "site", "method", "split", "epoch"]).size().to_dict() == {
        ("block01", "act", "pca", "test", 2): 100,
        ("block02", "act", "pca", "test", 2): 100,
        ("classifier", "features", "pca", "test", 2): 100,
    }
    assert frame["class"].value_counts().to_dict() == {str(digit): 30 for digit in range(10)}
    assert frame["class"].eq(frame["label"].astype(str)).all()
    assert np.isfinite(frame[["x", "y", "share"]]).all(axis=None)

    # What is there is not made again; what is damaged, or of something else, is.
    before = [path.stat().st_mtime_ns for path in paths]
    result = command_line(*options, main=measure.main)
    assert result.stdout.count("exists already") == 2
    assert [path.stat().st_mtime_ns for path in paths] == before
    paths[0].write_bytes(paths[0].read_bytes()[:-20])
    result = command_line(*options, main=measure.main)
    assert result.stdout.count("exists already") == 1
    assert pq.read_table(paths[0]).equals(table)
    result = command_line("map", STUDY, "--epoch", "0", "--samples", "50", main=measure.main)
    assert result.stdout.count("pca of epoch 0") == 2
    assert pq.read_table(paths[0], columns=["epoch"])["epoch"].unique().to_pylist() == [0]

    # A run that is trained anew has none.
    assert command_line(*both, "sweep.redo=all").returncode == 0
    assert not any(path.exists() for path in paths)


def test_umap_is_added_where_it_is_installed_later(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command_line(*RUN, "norm=none").returncode == 0
    options = ("map", STUDY, "--samples", "50", "--sites", "act", "act")
    for known in (["pca"], ["pca", "umap"], ["pca"]):
        monkeypatch.setattr(embeddings, "list_methods", lambda known=known: known)
        monkeypatch.setattr(
            embeddings, "compute_umap", lambda layer: np.ones((layer.num_samples, 2))
        )
        result = command_line(*options, main=measure.main)
        assert result.returncode == 0, result.stderr
    assert "exists already" in result.stdout
    (path,) = (tmp_path / STUDY).glob("*/maps.parquet")
    frame = pq.read_table(path).to_pandas()
    assert frame.groupby("method").size().to_dict() == {"pca": 100, "umap": 100}
    assert frame.groupby("method")["share"].count().to_dict() == {"pca": 100, "umap": 0}
    assert frame.loc[frame["method"] == "umap", "x"].eq(1).all()


def test_a_layer_without_distances_is_told_and_the_others_have_their_map(
    command_line: CommandLine, tmp_path: Path
) -> None:
    assert command_line(*RUN, "norm=none").returncode == 0
    (dead,) = (tmp_path / STUDY).glob("none-*/checkpoints/last.ckpt")
    content = torch.load(dead, weights_only=True)
    name = "network.block02.conv.bias"
    content["state_dict"][name] = torch.full_like(content["state_dict"][name], -1e6)
    torch.save(content, dead)
    result = command_line("map", str(dead.parents[1]), "--samples", "50", main=measure.main)
    assert result.returncode == 0, result.stderr
    assert "block02 has no embedding: all samples have the same representation" in result.stdout
    frame = pq.read_table(dead.parents[1] / "maps.parquet").to_pandas()
    reasons = frame.groupby("layer")["reason"].unique().str[0].to_dict()
    assert reasons["block02"] == "all samples have the same representation"
    assert frame["x"].isna().equals(frame["layer"] == "block02")


@pytest.mark.slow
def test_frozen_statistics_of_one_position_are_no_trouble(
    command_line: CommandLine, tmp_path: Path
) -> None:
    network = ("model=torchvision", "model.name=resnet18", "norm=batchnorm_frozen")
    options = ("metrics=none", *SMALL[3:], "trainer.max_epochs=1", "data.batch_size=8")
    assert command_line(*network, *options).returncode == 0
    (study,) = (tmp_path / "multirun").iterdir()
    result = command_line("map", str(study), "--samples", "20", main=measure.main)
    assert result.returncode == 0, result.stdout


def test_what_cannot_be_mapped_is_told(command_line: CommandLine, tmp_path: Path) -> None:
    assert command_line(*RUN, "norm=none").returncode == 0
    for arguments, words in (
        (("nowhere",), "nowhere: no run.json in it"),
        ((STUDY, "--epoch", "1"), "has the weights of epochs 0, 2"),
        ((STUDY, "--samples", "9999"), "the test split has 1000"),
        ((STUDY, "--samples", "3"), "expected an integer of at least 4"),
        ((STUDY, "--memory-budget", "0"), "expected a number above 0"),
        ((STUDY, "--memory-budget", "1e-4"), "is too small: measuring 1000 samples"),
    ):
        result = command_line("map", *arguments, main=measure.main)
        assert result.returncode != 0
        assert words in result.stdout + result.stderr
    assert not list((tmp_path / STUDY).glob("*/maps.parquet"))
