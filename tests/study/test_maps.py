"""Maps of samples: what is read of the runs that kept them, drawn and put on the page."""

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bnstudy.errors import UserError
from bnstudy.runs.embedding_file import EMBEDDINGS_SCHEMA, read_embedding_file
from bnstudy.runs.record import Record
from bnstudy.study.analysis import Analysis
from bnstudy.study.load import embedding_tables as maps
from bnstudy.study.present import figures
from bnstudy.study.present.page import embedded, render_page
from bnstudy.study.study import load
from tests.study.present.test_page import MARKUP, data_of, numbers
from tests.study.studies import Studies

CLASSES = ("cat", f"{MARKUP}%{{x}}")
SAMPLES = 6


def keep_map(record: Record, layers: int, seed: int, **facts: Any) -> np.ndarray:
    """A map of each layer; x and y, layers x samples x 2."""
    places = np.random.default_rng(seed).normal(size=(layers, SAMPLES, 2)).astype(np.float32)
    facts = {"epoch": 5, "split": "test", "site": "act", "method": "pca", "share": 0.25} | facts
    rows = [
        {
            "layer_index": layer,
            "layer": f"block{layer + 1:02d}",
            "sample": sample,
            "label": sample % 2,
            "class": CLASSES[sample % 2],
            "x": x,
            "y": y,
            **facts,
        }
        for layer, samples in enumerate(places.tolist())
        for sample, (x, y) in enumerate(samples)
    ]
    add_maps(record, pa.Table.from_pylist(rows, EMBEDDINGS_SCHEMA))
    return places


def add_maps(record: Record, table: pa.Table) -> None:
    if record.paths.embeddings.exists():
        table = pa.concat_tables([read_embedding_file(record.paths.embeddings), table])
    pq.write_table(table, record.paths.embeddings)


@pytest.fixture
def kept(studies: Studies) -> dict[tuple[str, int, int], np.ndarray]:
    """Maps of a study by norm, depth and seed; two runs have none."""
    found = {}
    for number, (norm, depth, seed) in enumerate(
        (norm, depth, seed) for norm in ("none", "batchnorm") for depth in (2, 4) for seed in (0, 1)
    ):
        layers = {"silhouette": np.linspace(0, 1, depth).tolist()}
        record = studies.add(norm, seed, f"model.depth={depth}", layers=layers)
        if (depth, seed) != (4, 1):
            found[norm, depth, seed] = keep_map(record, depth, number)
    return found


def test_layers_are_those_of_each_run(
    studies: Studies, kept: dict[tuple[str, int, int], np.ndarray]
) -> None:
    study = load(studies.folder)
    table = Analysis(study).embeddings.merge(study.runs[["cell", "depth", "norm"]], on="cell")
    assert table["cell"].nunique() == len(kept) == 6
    assert table["seed"].is_monotonic_increasing
    assert (table["layers"] == table["depth"]).all()
    for (norm, depth, seed), places in kept.items():
        for layer in range(depth):
            rows = table[
                (table["norm"] == norm)
                & (table["depth"] == depth)
                & (table["seed"] == seed)
                & (table["position"] == layer + 1)
            ]
            assert set(rows["layer"]) == {f"block0{layer + 1}"}
            assert rows["sample"].tolist() == list(range(SAMPLES))
            np.testing.assert_array_equal(rows[["x", "y"]], places[layer])


@pytest.mark.slow
def test_the_page_has_the_maps_of_the_runs(
    studies: Studies, kept: dict[tuple[str, int, int], np.ndarray]
) -> None:
    html = render_page(Analysis(load(studies.folder)))
    found = data_of(html)["embeddings"]
    assert found["classes"] == {"0": CLASSES[0], "1": CLASSES[1]}
    assert (found["shown"], found["runs"]) == (6, 6)
    x = numbers(found["x"], -1)
    assert len(x) == sum(map(len, kept.values())) * SAMPLES
    picture = found["pictures"][0]
    assert picture["point"] in (["2"], ["4"])
    norm = ("none", "batchnorm")[picture["treatment"]]
    places = kept[norm, int(picture["point"][0]), picture["seed"]]
    assert (picture["layers"], picture["layer"]) == (len(places), f"block0{picture['position']}")
    shown = x[picture["first"] : picture["first"] + picture["count"]]
    np.testing.assert_array_equal(shown, places[picture["position"] - 1, :, 0])
    assert 'id="embeddings"' in html
    assert MARKUP not in re.sub(r"(?s)<script.*", "", html)


@pytest.mark.slow
def test_of_a_large_study_whole_pairs_are_shown(
    studies: Studies, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = ("batchnorm", "none", "groupnorm")
    for seed in range(4):
        for norm in norms if seed else norms[:2]:
            keep_map(studies.add(norm, seed), 2, seed)
    monkeypatch.setattr(maps, "MAX_EMBEDDINGS", 2 * 3 * 2)
    monkeypatch.setattr(embedded, "MAX_SAMPLES_OF_EMBEDDING", 5)
    html = render_page(Analysis(load(studies.folder)))
    found = data_of(html)["embeddings"]
    shown = [(picture["seed"], picture["treatment"]) for picture in found["pictures"][::2]]
    assert sorted(shown) == [(seed, norm) for seed in (1, 2) for norm in range(3)]
    assert {picture["count"] for picture in found["pictures"]} == {5}
    assert len(set(numbers(found["labels"], -1))) == 2
    assert "the embeddings of 6 of the 11 runs" in html
    monkeypatch.setattr(embedded, "MAX_SAMPLES", 3 * len(found["pictures"]))
    again = data_of(render_page(Analysis(load(studies.folder))))["embeddings"]
    assert {picture["count"] for picture in again["pictures"]} == {3}


def test_runs_beside_each_other_are_a_pair(studies: Studies) -> None:
    """Draw the first pair that all norms have, not the first run of each norm."""
    for norm, depth in (("none", 2), ("none", 4), ("batchnorm", 4)):
        keep_map(studies.add(norm, 0, f"model.depth={depth}"), depth, depth)
    studies.add("batchnorm", 0, "model.depth=2")
    drawn = figures.Plot(Analysis(load(studies.folder))).embeddings()
    assert "depth=4, seed 0" in drawn.get_supxlabel()
    assert len(drawn.axes) == 2 * 4


@pytest.mark.slow
def test_layers_that_were_not_measured_have_maps(studies: Studies) -> None:
    for number, norm in enumerate(("none", "batchnorm")):
        record = studies.add(norm)  # of which nothing but accuracy is known
        keep_map(record, 12, number)
        keep_map(record, 12, number, site="conv")
        keep_map(record, 12, number, method="umap", share=None)
    analysis = Analysis(load(studies.folder))
    names = [f"block{layer:02d}" for layer in range(1, 13)]
    shown = {
        picture["layer"] for picture in data_of(render_page(analysis))["embeddings"]["pictures"]
    }
    assert shown == {*names, *(f"{name}.conv" for name in names)}
    drawn = dict(figures.draw_figures(analysis))
    assert {"embeddings-pca", "embeddings-pca-conv", "embeddings-umap"} <= drawn.keys()
    titles = [ax.get_title() for ax in drawn["embeddings-pca-conv"].axes]
    assert titles[:2] == ["block 1.conv", "block 5.conv"]


def test_maps_of_other_epochs_are_told_apart(studies: Studies) -> None:
    keep_map(studies.add("none"), 1, 0, epoch=0)
    keep_map(studies.add("batchnorm"), 1, 1)
    drawn = figures.Plot(Analysis(load(studies.folder))).embeddings()
    assert [ax.get_ylabel() for ax in drawn.axes] == [
        "no normalization\ntest split, epoch 0",
        "BatchNorm\ntest split, epoch 5",
    ]
    assert "epoch" not in drawn.get_supxlabel()


@pytest.mark.slow
def test_a_layer_without_a_map_keeps_its_place(studies: Studies) -> None:
    places = {"x": None, "y": None, "share": None, "reason": "all samples are alike"}
    for norm in ("none", "batchnorm"):
        record = studies.add(norm)
        dead = keep_map(record, 2, 0, **(places if norm == "none" else {}))
        assert len(dead) == 2
    analysis = Analysis(load(studies.folder))
    found = data_of(render_page(analysis))["embeddings"]["pictures"]
    assert [(one["reason"], one["count"]) for one in found] == [
        *[(None, SAMPLES)] * 2,
        *[("all samples are alike", 0)] * 2,
    ]
    labels = [ax.get_xlabel() for ax in figures.Plot(analysis).embeddings().axes]
    assert labels == ["no embedding: all samples are alike"] * 2 + [""] * 2


@pytest.mark.slow
def test_what_is_drawn_is_what_was_kept(
    studies: Studies, kept: dict[tuple[str, int, int], np.ndarray]
) -> None:
    analysis = Analysis(load(studies.folder))
    drawn = figures.Plot(analysis).embeddings()
    assert [ax.get_title() for ax in drawn.axes] == 2 * ["block 1", "block 2"]
    assert [ax.get_ylabel() for ax in drawn.axes][::2] == ["no normalization", "BatchNorm"]
    offsets = np.asarray(drawn.axes[1].collections[0].get_offsets())
    assert any(
        np.array_equal(offsets.astype(np.float32), places[-1])
        for (norm, _, seed), places in kept.items()
        if norm == "none" and seed == 0
    )
    assert "embeddings-pca" in dict(figures.draw_figures(analysis))
    with pytest.raises(UserError, match=r"umap, act: no run of .* has such an embedding"):
        figures.Plot(analysis).embeddings("umap")


@pytest.mark.slow
@pytest.mark.parametrize("of_body", [False, True])
def test_what_is_damaged_is_told_and_left_out(
    studies: Studies, capsys: pytest.CaptureFixture[str], of_body: bool
) -> None:
    studies.add("none", layers={"silhouette": [0.5]})
    record = studies.add("batchnorm", layers={"silhouette": [0.6]})
    keep_map(record, 1, 0)
    whole = record.paths.embeddings.read_bytes()
    damaged = whole[:4] + bytes(400) + whole[404:] if of_body else b"damaged"
    record.paths.embeddings.write_bytes(damaged)
    html = render_page(Analysis(load(studies.folder)))
    assert "maps.parquet is damaged" in " ".join(capsys.readouterr().out.split())
    assert data_of(html)["embeddings"] == {"pictures": []}
    assert 'id="embeddings"' not in html
