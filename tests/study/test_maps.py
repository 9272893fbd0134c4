"""Maps of samples: what is read of the runs that kept them, drawn and put on the page."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bnstudy.errors import UserError
from bnstudy.runs.record import MAPS_SCHEMA, Record
from bnstudy.study import figures
from bnstudy.study.findings import Findings
from bnstudy.study.load import load
from bnstudy.study.page import embedded, page
from tests.study.studies import Studies
from tests.study.test_page import MARKUP, data_of, numbers

CLASSES = ("cat", MARKUP)
SAMPLES = 6


def keep_map(record: Record, layers: int, seed: int) -> np.ndarray:
    """A map of each layer; x and y, layers x samples x 2."""
    places = np.random.default_rng(seed).normal(size=(layers, SAMPLES, 2)).astype(np.float32)
    rows = [
        {
            "epoch": 5,
            "split": "test",
            "layer": f"block{layer + 1:02d}",
            "site": "act",
            "method": "pca",
            "sample": sample,
            "label": sample % 2,
            "class": CLASSES[sample % 2],
            "x": x,
            "y": y,
            "share": 0.25,
        }
        for layer, samples in enumerate(places.tolist())
        for sample, (x, y) in enumerate(samples)
    ]
    pq.write_table(pa.Table.from_pylist(rows, MAPS_SCHEMA), record.maps_path)
    return places


@pytest.fixture
def kept(studies: Studies) -> dict[tuple[str, int, int], np.ndarray]:
    """By norm, depth and seed, the maps of a study; two runs have none."""
    found = {}
    for number, (norm, depth, seed) in enumerate(
        (norm, depth, seed) for norm in ("none", "batchnorm") for depth in (2, 4) for seed in (0, 1)
    ):
        layers = {"silhouette": np.linspace(0, 1, depth).tolist()}
        record = studies.add(norm, seed, f"model.depth={depth}", layers=layers)
        if (depth, seed) != (4, 1):
            found[norm, depth, seed] = keep_map(record, depth, number)
    return found


def test_layers_are_at_their_places_and_of_two_the_last_is_taken(
    studies: Studies, kept: dict[tuple[str, int, int], np.ndarray]
) -> None:
    study = load(studies.folder)
    table = Findings(study).maps.merge(study.runs[["cell", "depth", "norm"]], on="cell")
    assert table["cell"].nunique() == len(kept) == 6
    assert table["seed"].is_monotonic_increasing
    assert set(table["place"]) == {"depth 50 %", "depth 100 %"}
    for (norm, depth, seed), places in kept.items():
        for place, layer in (("depth 50 %", depth // 2 - 1), ("depth 100 %", depth - 1)):
            rows = table[
                (table["norm"] == norm)
                & (table["depth"] == depth)
                & (table["seed"] == seed)
                & (table["place"] == place)
            ]
            assert rows["sample"].tolist() == list(range(SAMPLES))
            np.testing.assert_array_equal(rows[["x", "y"]], places[layer])


def test_the_page_has_them(studies: Studies, kept: dict[tuple[str, int, int], np.ndarray]) -> None:
    html = page(Findings(load(studies.folder)))
    maps = data_of(html)["maps"]
    assert maps["classes"] == {"0": "cat", "1": MARKUP}
    assert (maps["shown"], maps["runs"]) == (6, 6)
    x = numbers(maps["x"], -1)
    assert len(x) == 6 * 2 * SAMPLES
    picture = maps["pictures"][0]
    assert picture["point"] in (["2"], ["4"])
    norm = ("none", "batchnorm")[picture["treatment"]]
    places = kept[norm, int(picture["point"][0]), picture["seed"]]
    layer = len(places) // 2 - 1 if picture["place"] == "depth 50 %" else len(places) - 1
    shown = x[picture["first"] : picture["first"] + picture["count"]]
    np.testing.assert_array_equal(shown, places[layer, :, 0])
    assert 'id="maps"' in html
    assert MARKUP not in re.sub(r"(?s)<script.*", "", html)


def test_a_large_study_shows_the_first_seeds(
    studies: Studies,
    kept: dict[tuple[str, int, int], np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedded, "MOST_SAMPLES", 4 * 2 * 3)
    monkeypatch.setattr(embedded, "SAMPLES_OF_A_MAP", 3)
    html = page(Findings(load(studies.folder)))
    maps = data_of(html)["maps"]
    assert {picture["seed"] for picture in maps["pictures"]} == {0}
    assert {picture["count"] for picture in maps["pictures"]} == {3}
    assert "maps are of 4 of 6 runs" in html


def test_what_is_drawn_is_what_was_kept(
    studies: Studies, kept: dict[tuple[str, int, int], np.ndarray]
) -> None:
    findings = Findings(load(studies.folder))
    drawn = figures.Plot(findings).maps()
    titles = [ax.get_title() for ax in drawn.axes]
    assert titles == [
        f"{norm}, depth {depth} %" for norm in ("none", "batchnorm") for depth in (50, 100)
    ]
    offsets = np.asarray(drawn.axes[1].collections[0].get_offsets())
    assert any(
        np.array_equal(offsets.astype(np.float32), places[-1])
        for (norm, _, seed), places in kept.items()
        if norm == "none" and seed == 0
    )
    assert "maps-pca" in dict(figures.all_figures(findings))
    with pytest.raises(UserError, match=r"umap: no run of .* has a map by it"):
        figures.Plot(findings).maps("umap")


def test_without_maps_there_is_no_section(studies: Studies, tmp_path: Path) -> None:
    studies.add("none", layers={"silhouette": [0.5]})
    record = studies.add("batchnorm", layers={"silhouette": [0.6]})
    record.maps_path.write_bytes(b"damaged")
    html = page(Findings(load(studies.folder)))
    assert data_of(html)["maps"] == {"pictures": []}
    assert 'id="maps"' not in html
