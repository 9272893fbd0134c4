"""Records as tables, over studies with known numbers."""

import json
import math
import subprocess
import sys

import pytest

from bnstudy.errors import UserError
from bnstudy.runs.record import Row
from bnstudy.study.load import load
from bnstudy.study.statistics import wide
from tests.study.studies import Studies


def test_runs_and_what_was_measured_in_them(studies: Studies) -> None:
    studies.add("none", 3, layers={"silhouette": [0.1, 0.2]}, accuracy=0.75)
    study = load(studies.folder)
    (run,) = study.runs.to_dict("records")
    assert (run["treatment"], run["seed"], run["model"], run["depth"]) == ("none", 3, "cnn", 4)
    assert (run["test_accuracy"], run["train_accuracy"], run["last_epoch"]) == (0.75, 1, 5)
    found = study.query(
        "select place, value from final where metric = $metric order by layer_index",
        metric="silhouette",
    )
    assert found.to_dict("list") == {"place": ["block01", "block02"], "value": [0.1, 0.2]}


def test_only_the_last_epoch_is_final(studies: Studies) -> None:
    studies.add("none", layers={("silhouette", 0): [0.9], ("silhouette", 5): [0.1]})
    study = load(studies.folder)
    values = "select epoch, value from rows where metric = 'silhouette' order by epoch"
    assert study.query(values)["value"].tolist() == [0.9, 0.1]
    assert study.query("select value from final where layer_index = 0")["value"].tolist() == [0.1]


def test_runs_are_paired_by_everything_but_the_treatment(studies: Studies) -> None:
    for seed in (0, 1):
        for depth in (2, 4):
            for norm in ("none", "batchnorm"):
                studies.add(norm, seed, f"model.depth={depth}")
    study = load(studies.folder)
    assert study.design.grid == ("model.depth",)
    together = study.runs.groupby("pair")[["seed", "depth"]].nunique()
    assert len(together) == 4
    assert (together == 1).all(axis=None)
    assert set(study.runs["grid"]) == {"depth=2", "depth=4"}


def test_a_learning_rate_of_each_norms_own_belongs_to_the_treatment(studies: Studies) -> None:
    studies.add("none", 0, "optim.lr=0.01")
    studies.add("batchnorm", 0, "optim.lr=0.1")
    study = load(studies.folder)
    assert (study.design.own, study.runs["pair"].nunique()) == (("optim.lr",), 1)


def test_a_learning_rate_that_is_swept_is_an_axis(studies: Studies) -> None:
    for norm in ("none", "batchnorm"):
        for rate in (0.01, 0.1):
            studies.add(norm, 0, f"optim.lr={rate}")
    study = load(studies.folder)
    assert (study.design.grid, study.runs["pair"].nunique()) == (("optim.lr",), 2)


def test_regularizers_and_swept_options_are_treatments(studies: Studies) -> None:
    studies.add("none")
    for strength in (0.1, 1):
        words = ("regularizer=activation_l1", f"regularizer.strength={strength}")
        studies.add("none", 0, *words)
    study = load(studies.folder)
    with_it = "none + activation_l1 strength="
    assert study.treatments == ["none", f"{with_it}0.1", f"{with_it}1"]
    assert study.runs["pair"].nunique() == 1


def test_what_did_not_end_is_counted_with_its_reason(studies: Studies) -> None:
    studies.add("none", 0)
    studies.add("none", 1, status="diverged")
    studies.add("none", 2, status="failed", attempts=[{"status": "failed", "error": "OOM"}])
    studies.add("none", 3, status="interrupted")
    studies.add("none", 4).table_path.write_bytes(b"half of a table")
    (studies.add("none", 5).folder / "run.json").write_text("{")
    study = load(studies.folder)
    assert study.counts() == (
        "6 runs: 2 completed, 1 diverged, 1 failed, 1 interrupted, 1 unreadable"
    )
    assert len(study.results) == 2
    remarks = study.runs[~study.runs["ended"]].set_index("status")["remark"]
    assert remarks["failed"] == "OOM"
    assert "damaged" in remarks["completed"]
    assert "cannot be read" in remarks["unreadable"]


def test_without_a_result_there_is_nothing_to_query(studies: Studies) -> None:
    studies.add("none", status="failed")
    with pytest.raises(UserError, match="no run that has ended: 1 run: 1 failed"):
        load(studies.folder).query("from runs")


def test_a_folder_without_runs_is_the_users_mistake(studies: Studies) -> None:
    with pytest.raises(UserError, match=r"no run\.json"):
        load(studies.folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [({"data": "b" * 64}, "bbbbbbbbbbbb"), ({"version": "0.2.0"}, "bnstudy 0.2.0")],
)
def test_runs_that_are_not_comparable_are_parts(
    studies: Studies, change: dict[str, str], told: str
) -> None:
    studies.add("none", 0)
    studies.add("none", 1)
    studies.add("none", 2, **change)
    study = load(studies.folder)
    first, second = study.parts
    assert (len(first.results), len(second.results)) == (2, 1)
    assert told in second.what
    assert told not in first.what
    with pytest.raises(UserError, match="not comparable"):
        wide(study)
    assert wide(first)[1].shape[0] == 2


def test_a_metric_that_was_redefined_splits_the_study(studies: Studies) -> None:
    studies.add("none", 0)
    studies.add("none", 1, metrics={"silhouette": "lower"})
    told = {part.what.rpartition(", ")[2] for part in load(studies.folder).parts}
    assert told == {"silhouette: higher", "silhouette: lower"}


def test_layers_of_different_networks_meet_at_relative_depth(studies: Studies) -> None:
    studies.add("none", 0, "model.depth=2", layers={"silhouette": [1, 2]})
    studies.add("none", 0, "model.depth=4", layers={"silhouette": [1, 3, 5, math.nan]})
    study = load(studies.folder)
    depths = study.query("select relative_depth from places order by all")["relative_depth"]
    assert depths.tolist() == [0.25, 0.5, 0.5, 0.75, 1, 1]
    keys, values = wide(study)
    layers = keys["place_index"] > 0
    assert keys[layers]["place"].tolist() == ["depth 50 %", "depth 100 %"]
    of_depth = dict(zip(study.results["depth"], values[:, layers].tolist(), strict=True))
    assert of_depth[2] == [1, 2]
    assert of_depth[4][0] == 2  # the mean of the first two layers
    assert math.isnan(of_depth[4][1])  # one of the two is undefined


def test_three_layers_beside_two(studies: Studies) -> None:
    studies.add("none", 0, "model.depth=2", layers={"silhouette": [1, 2]})
    studies.add("none", 0, "model.depth=3", layers={"silhouette": [1, 3, 5]})
    study = load(studies.folder)
    places = study.query("select place_index from places where cell like '%depth=3%' order by all")
    assert places["place_index"].tolist() == [1, 2, 2]  # 1/3 of the way, 2/3 and all of it


def test_a_layer_that_was_measured_with_others_later_is_one_layer(studies: Studies) -> None:
    for norm in ("none", "batchnorm"):
        record = studies.add(norm, layers={"silhouette": [0.1, 0.2]}, features={"silhouette": 0.3})
        if norm == "none":
            again = Row(5, 9, "train", 0, "classifier", "features", "unit_sparsity", 0.4, None)
            record.add_rows([again])
    study = load(studies.folder)
    places = study.query("select place, place_index from places where site = 'features'")
    assert places.values.tolist() == [["classifier.features", 1]] * 2
    assert len(study.query("from final where layer_index >= 0")) == 2 * 3 + 1
    keys, values = wide(study)
    assert values[:, keys["place"] == "classifier.features"].shape == (2, 2)


def test_every_epoch(studies: Studies) -> None:
    studies.add("none", layers={("silhouette", 0): [0.9], ("silhouette", 5): [0.1]})
    keys, values = wide(load(studies.folder), every_epoch=True)
    rows = keys["metric"] == "silhouette"
    assert keys[rows]["epoch"].tolist() == [0, 5]
    assert values[0, rows].tolist() == [0.9, 0.1]


def test_the_baseline(studies: Studies) -> None:
    studies.add("layernorm")
    studies.add("batchnorm")
    study = load(studies.folder)
    assert study.baseline() == "batchnorm"
    assert study.baseline("layernorm") == "layernorm"
    with pytest.raises(UserError, match=r"baseline=none .* takes batchnorm, layernorm"):
        study.baseline("none")


def test_reading_records_needs_no_torch(studies: Studies) -> None:
    studies.add("none", layers={"silhouette": [0.1]})
    code = (
        "import sys, json; from pathlib import Path; from bnstudy.study.load import load; "
        f"load(Path({str(studies.folder)!r})).query('from final'); "
        "print(json.dumps('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False
