"""Records as tables, over studies with known numbers."""

import itertools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bnstudy.errors import UserError
from bnstudy.runs.long_table import Row
from bnstudy.runs.parts import Environment, MeasuredLater
from bnstudy.study.analysis import Analysis, choose_axes
from bnstudy.study.effects import compute_effects
from bnstudy.study.generalization import compute_relations
from bnstudy.study.load.matrix import load_columns, load_shared_columns
from bnstudy.study.present.figures import draw_figures
from bnstudy.study.present.page import render_page
from bnstudy.study.present.page.embedded import embed_numbers
from bnstudy.study.present.tables import format_latex_tables
from bnstudy.study.present.verdict import compose_verdict
from bnstudy.study.study import load
from tests.study.studies import Studies


def test_runs_and_their_values_are_tables(studies: Studies) -> None:
    studies.add("none", 3, layers={"silhouette": [0.1, 0.2]}, accuracy=0.75)
    study = load(studies.folder)
    (run,) = study.runs.to_dict("records")
    assert (run["treatment"], run["seed"], run["model"], run["depth"]) == ("none", 3, "cnn", 4)
    assert (run["test_accuracy"], run["train_accuracy"], run["last_epoch"]) == (0.75, 1, 5)
    found = study.query(
        "select layer, position, value from final where metric = $metric order by layer_index",
        metric="silhouette",
    )
    assert found.values.tolist() == [["block01", 1, 0.1], ["block02", 2, 0.2]]


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
    assert (study.design.per_treatment, study.runs["pair"].nunique()) == (("optim.lr",), 1)


def test_a_learning_rate_that_is_swept_is_an_axis(studies: Studies) -> None:
    for norm in ("none", "batchnorm"):
        for rate in (0.01, 0.1):
            studies.add(norm, 0, f"optim.lr={rate}")
    study = load(studies.folder)
    assert (study.design.grid, study.runs["pair"].nunique()) == (("optim.lr",), 2)


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("+model.block=basic", {"basic", "not set"}),
        ("+model.groups=2", {"2", "not set"}),
        ("+model.shortcuts=false", {"False", "not set"}),
        ("+model.block=null", {"null", "not set"}),
    ],
)
def test_a_model_without_an_option_is_a_point_of_its_own(
    studies: Studies, option: str, names: set[str]
) -> None:
    for norm in ("none", "batchnorm"):
        studies.add(norm, 0)
        studies.add(norm, 0, option)
    damaged = studies.folder / "damaged"
    damaged.mkdir()
    (damaged / "run.json").write_text("{")
    study = load(studies.folder)
    key = option.partition("=")[0].removeprefix("+")
    assert choose_axes(study) == (key,)
    assert set(study.results[key]) == names
    assert study.runs.set_index("cell").loc["damaged", [key]].isna().all()
    effects = Analysis(study).effects
    assert set(effects[key].dropna()) == names


def test_null_is_a_value_like_any_other(studies: Studies) -> None:
    for value in ("null", "10", "0.5", "2"):
        studies.add("none", 0, f"+model.clip={value}")
    study = load(studies.folder)
    assert choose_axes(study) == ("model.clip",)
    assert set(study.results["model.clip"]) == {"null", "0.5", "2", "10"}
    (axis,) = embed_numbers(Analysis(study))["axes"]
    assert axis["values"] == ["0.5", "2", "10", "null"]


def test_a_model_without_a_depth_leaves_the_depths_numbers(studies: Studies) -> None:
    studies.add("none", 0)
    studies.add("none", 0, "~model.depth", "model._target_=mine.Net")
    study = load(studies.folder)
    assert choose_axes(study) == ("model._target_",)
    assert study.query("select max(depth) + 1 from runs").iloc[0, 0] == 5


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
    studies.add("none", 4).paths.table.write_bytes(b"half of a table")
    (studies.add("none", 5).folder / "run.json").write_text("{")
    study = load(studies.folder)
    assert study.counts() == (
        "6 runs: 2 completed, 1 diverged, 1 failed, 1 interrupted, 1 unreadable"
    )
    assert len(study.results) == 2
    remarks = study.runs[~study.runs["ended"]].set_index("status")["remark"]
    assert remarks["failed"] == "OOM"
    assert "damaged" in remarks["completed"]
    assert "is damaged" in remarks["unreadable"]


def test_without_a_result_there_is_nothing_to_query(studies: Studies) -> None:
    studies.add("none", status="failed")
    with pytest.raises(UserError, match="no run that has ended: 1 run: 1 failed"):
        load(studies.folder).query("from runs")


def test_a_folder_without_runs_is_the_users_mistake(studies: Studies) -> None:
    with pytest.raises(UserError, match=r"no run\.json"):
        load(studies.folder)


@pytest.mark.parametrize(
    ("change", "measured_on"),
    [({"data": "b" * 64}, "bbbbbbbbbbbb"), ({"version": "0.2.0"}, "bnstudy 0.2")],
)
def test_runs_that_are_not_comparable_are_parts(
    studies: Studies, change: dict[str, str], measured_on: str
) -> None:
    studies.add("none", 0)
    studies.add("none", 1)
    studies.add("none", 2, **change)
    study = load(studies.folder)
    first, second = study.parts
    assert (len(first.results), len(second.results)) == (2, 1)
    assert measured_on in second.measured_on
    assert measured_on not in first.measured_on
    with pytest.raises(UserError, match="not comparable"):
        load_shared_columns(study)
    assert load_shared_columns(first)[1].shape[0] == 2


def test_a_metric_that_was_redefined_splits_the_study(studies: Studies) -> None:
    studies.add("none", 0)
    studies.add("none", 1, metrics={"silhouette": "lower"})
    directions = {part.measured_on.rpartition(", ")[2] for part in load(studies.folder).parts}
    assert directions == {"silhouette: higher", "silhouette: lower"}


def test_a_patch_of_a_version_changes_no_number(studies: Studies) -> None:
    studies.add("none", 0)
    studies.add("none", 1, version="0.1.7")
    (part,) = load(studies.folder).parts
    assert part.measured_on.endswith("bnstudy 0.1")


def test_rows_that_another_version_measured_are_left_out(studies: Studies) -> None:
    record = studies.add("none", 0, layers={"silhouette": [0.1, 0.2], "unit_sparsity": [0.3, 0.4]})
    studies.add("none", 1, layers={"silhouette": [0.1, 0.2], "unit_sparsity": [0.3, 0.4]})
    environment = Environment(packages={"bnstudy": "0.2.1"})
    record.description.add_measurement(
        MeasuredLater(epochs=[5], metrics=["silhouette"], environment=environment)
    )
    record.save()
    study = load(studies.folder)
    assert len(study.parts) == 1
    counts = study.query("select metric, count(*) as n from final group by all order by all")
    assert counts.values.tolist() == [["accuracy", 4], ["silhouette", 2], ["unit_sparsity", 4]]
    (remark,) = study.runs["remark"].dropna()
    assert remark == "not included, because measured by bnstudy 0.2: silhouette of epoch 5"


def test_epochs_of_another_version_are_left_out(studies: Studies) -> None:
    attempts = [
        {"status": "interrupted", "version": "0.2.0", "resumed_from_epoch": None},
        {"status": "completed", "version": "0.3.1", "resumed_from_epoch": 2},
    ]
    layers = {("silhouette", epoch): [epoch / 10] for epoch in range(6)}
    studies.add("none", 0, layers=layers, attempts=attempts)
    study = load(studies.folder)
    assert study.measured_on.endswith("bnstudy 0.3")
    epochs = study.query("select distinct epoch from rows order by all")
    assert epochs["epoch"].tolist() == [3, 4, 5]


def test_runs_that_lack_a_newer_option_count_as_runs_with_its_former_value(
    studies: Studies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnstudy.study.load.records.ADDED_TO_ALL", {"model.start": "he"})
    for norm in ("none", "batchnorm"):
        studies.add(norm, 0)
        record = studies.add(norm, 0, "model.width=16.0")
        record.description.config["model"]["start"] = "torch"
        record.save()
    study = load(studies.folder)
    assert "model.start" in study.design.grid
    assert study.runs["pair"].nunique() == 2
    assert set(study.runs["model.start"]) == {"he", "torch"}
    assert {words for grid in study.runs["grid"] for words in grid.split()} >= {
        "start=he",
        "start=torch",
    }


def copy_run(folder: Path, name: str) -> Path:
    copied = folder.with_name(name)
    shutil.copytree(folder, copied)
    return copied


def test_copies_of_runs_count_once(studies: Studies) -> None:
    for seed in (0, 1):
        studies.add("none", seed, layers={"silhouette": [0.1 + seed, 0.2]})
        studies.add("batchnorm", seed, layers={"silhouette": [0.4 + seed, 0.2]})
    names = sorted(path.name for path in studies.folder.iterdir())
    for number in range(5):
        for name in names:
            copied = copy_run(studies.folder / name, f"{name}-copy{number}")
            if number == 4:  # edited by hand, and still the same run
                text = (copied / "run.json").read_text()
                (copied / "run.json").write_text(text.replace('"test_accuracy": 0.5', '"x": 1'))
    study = load(studies.folder)
    assert sorted(study.results["cell"]) == names
    assert study.runs["duplicate_of"].value_counts().to_dict() == dict.fromkeys(names, 5)
    table = compute_effects(study)
    assert set(table["n"]) == {2}
    verdict = compose_verdict(Analysis(study))
    assert (
        "20 of 24 runs have the same settings or exactly the same values as another" in verdict[1]
    )
    assert set(compute_relations(study)["n"]) == {4}


def test_of_copies_a_finished_one_counts_preferably_in_the_folder_of_its_name(
    studies: Studies,
) -> None:
    record = studies.add("none", 0)
    copy_run(record.folder, "a")
    copy_run(record.folder, f"a-{record.folder.name}")
    assert load(studies.folder).results["cell"].tolist() == [record.folder.name]
    (record.folder / "metrics.parquet").unlink()
    study = load(studies.folder)
    assert study.results["cell"].tolist() == ["a"]
    assert "metrics.parquet is not there" in " ".join(study.runs["remark"].dropna())


def test_what_has_no_effect_makes_no_other_run(studies: Studies) -> None:
    studies.add("none", 0)
    studies.add("none", 0, "trainer.accelerator=gpu")
    studies.add("none", 0, "logger=none", "cell=mine")
    studies.add("none", 1)
    assert sorted(load(studies.folder).results["seed"]) == [0, 1]


def test_a_seed_without_effect_makes_no_other_observation(studies: Studies) -> None:
    numbers = {f"metric{n}": [n / 7, n / 3] for n in range(10)}
    for seed in range(6):
        studies.add("none", seed, layers=numbers, loss=0.123)
        studies.add("batchnorm", seed, layers=numbers | {"metric1": [0.5, 0.6]}, loss=0.1)
    study = load(studies.folder)
    assert study.results["seed"].tolist() == [0, 0]
    assert set(compute_effects(study)["n"]) == {1}


@pytest.mark.slow
def test_of_repetitions_the_one_with_a_partner_counts(studies: Studies) -> None:
    for norm, widths in (("none", (8, 16)), ("batchnorm", (8,))):  # the network ignores the width
        for seed, width in itertools.product(range(3), widths):
            value = seed + 0.5 * (norm == "none")
            layers = {"silhouette": [value + 0.1 * layer for layer in range(25)]}
            studies.add(norm, seed, f"model.width={width}", layers=layers, loss=value)
    table = compute_effects(load(studies.folder))
    assert set(table["n"]) == {3}


def test_few_numbers_that_are_equal_are_no_repetition(studies: Studies) -> None:
    for seed in range(6):
        studies.add("none", seed, layers={"silhouette": [0.1]}, loss=0.5)
    assert len(load(studies.folder).results) == 6


@pytest.mark.slow
def test_a_network_that_ignores_the_norm_is_not_compared(studies: Studies) -> None:
    for seed in range(8):
        numbers = {"silhouette": [0.1 * seed, math.nan]}
        for norm in ("none", "batchnorm"):
            studies.add(norm, seed, layers=numbers, accuracy=0.5 + seed / 100, loss=0.1 * seed)
        changed = {"silhouette": [0.1 * seed, 0.1]}
        studies.add("layernorm", seed, layers=changed, accuracy=0.5 + seed / 100, loss=0.1 * seed)
    study = load(studies.folder)
    assert study.identical == {"batchnorm": "none"}
    table = compute_effects(study)
    assert set(table["treatment"]) == {"layernorm"}
    assert compute_effects(study, "batchnorm")["treatment"].unique().tolist() == ["layernorm"]
    assert compute_relations(study)["n"].max() == 16
    verdict = compose_verdict(Analysis(study))
    assert (
        "BatchNorm and no normalization are not compared, because the two runs of every pair (8 "
        "pairs) have identical values. The network probably ignores the norm."
    ) in verdict
    for path in study.folder.glob("norm=layernorm*"):
        shutil.rmtree(path)
    analysis = Analysis(load(studies.folder))  # no two treatments can be compared
    assert analysis.overall_effects.empty
    assert "BatchNorm and no normalization are not compared" in render_page(analysis)
    assert not any(name.startswith("effects") for name, _ in draw_figures(analysis))
    assert all("difference" not in text for _, text in format_latex_tables(analysis))


def test_norms_are_identical_also_where_both_runs_of_a_pair_diverged(studies: Studies) -> None:
    for seed, norm in itertools.product(range(3), ("none", "batchnorm")):
        value, status = (math.nan, "diverged") if seed == 2 else (0.1 * seed, "completed")
        studies.add(norm, seed, layers={"silhouette": [value]}, loss=value, status=status)
    study = load(studies.folder)
    assert study.identical == {"batchnorm": "none"}
    assert compute_effects(study).empty


def test_norms_that_differ_in_one_pair_are_compared(studies: Studies) -> None:
    for seed in range(3):
        studies.add("none", seed, layers={"silhouette": [0.1]}, loss=0.1)
        studies.add("batchnorm", seed, layers={"silhouette": [0.1 + (seed == 2)]}, loss=0.1)
    study = load(studies.folder)
    assert study.identical == {}
    assert set(compute_effects(study)["n"]) == {3}


def test_a_layer_that_was_measured_with_others_later_is_one_layer(studies: Studies) -> None:
    for norm in ("none", "batchnorm"):
        record = studies.add(norm, layers={"silhouette": [0.1, 0.2]}, features={"silhouette": 0.3})
        if norm == "none":
            again = Row(5, 9, "train", 0, "classifier", "features", "unit_sparsity", 0.4, None)
            record.table.add_rows([again])
    study = load(studies.folder)
    layers = study.query("select layer, position from layers where site = 'features'")
    assert layers.values.tolist() == [["classifier.features", 1]] * 2
    assert len(study.query("from final where layer_index >= 0")) == 2 * 3 + 1
    keys, values = load_shared_columns(study)
    assert values[:, keys["place"] == "classifier.features"].shape == (2, 2)


def test_columns_can_be_of_every_epoch(studies: Studies) -> None:
    studies.add("none", layers={("silhouette", 0): [0.9], ("silhouette", 5): [0.1]})
    keys, values = load_columns(load(studies.folder), every="epoch")
    rows = keys["metric"] == "silhouette"
    assert keys[rows]["epoch"].tolist() == [0, 5]
    assert values[0, rows].tolist() == [0.9, 0.1]


def test_the_baseline_is_batchnorm_if_no_run_is_without_norm(studies: Studies) -> None:
    studies.add("layernorm")
    studies.add("batchnorm")
    study = load(studies.folder)
    assert study.baseline() == "batchnorm"
    assert study.baseline("layernorm") == "layernorm"
    with pytest.raises(UserError, match=r"baseline=none .* expected batchnorm, layernorm"):
        study.baseline("none")


@pytest.mark.slow
def test_reading_records_needs_no_torch(studies: Studies) -> None:
    studies.add("none", layers={"silhouette": [0.1]})
    code = (
        f"import bnstudy, json, sys; study = bnstudy.load({str(studies.folder)!r}); "
        "study.query('from final'); study.effects(); "
        "print(json.dumps(sorted({'torch', 'lightning', 'hydra', 'wandb'} & sys.modules.keys())))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
