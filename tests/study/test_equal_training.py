"""Tests of comparisons at equal training, on curves whose interpolation is done by hand."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

import bnstudy
from bnstudy.runs.long_table import Row
from bnstudy.study.analysis import Analysis
from bnstudy.study.effects import compute_averages
from bnstudy.study.equal_training import compute_equal_training
from bnstudy.study.present.figures import Plot
from bnstudy.study.present.page.embedded import embed_numbers
from bnstudy.study.present.page.render import render_page
from bnstudy.study.present.verdict import compose_verdict
from bnstudy.study.study import load
from tests.study.studies import Studies

FAST, SLOW = [2.0, 1.0, 0.5, 0.25, 0.2, 0.1], [2.0, 1.5, 1.2, 1.0, 0.8, 0.6]


def add_run(
    studies: Studies, norm: str, seed: int, losses: list[float], values: list[float], **options: str
) -> None:
    """Add a run with a silhouette at each epoch, and accuracies that rise as the loss falls."""
    curves = {
        ("probe_loss", "train"): losses,
        ("probe_accuracy", "train"): [1 - loss / 2 for loss in losses],
        ("probe_accuracy", "test"): [0.9 - loss / 4 for loss in losses],
    }
    layers = {("silhouette", epoch): [value] for epoch, value in enumerate(values)}
    studies.add(norm, seed, curves=curves, layers=layers, **options)


def add_norms_of_different_speed(studies: Studies, seeds: int = 6) -> None:
    """Add runs whose silhouette is noise minus the loss; batchnorm merely trains faster."""
    noise = np.random.default_rng(0).normal(scale=0.01, size=(seeds, 2))
    for seed in range(seeds):
        for norm, losses, shift in (
            ("batchnorm", FAST, noise[seed, 0]),
            ("none", SLOW, noise[seed, 1]),
        ):
            add_run(studies, norm, seed, losses, [shift - loss for loss in losses])


@pytest.mark.parametrize("criterion", ["loss", "accuracy"])
def test_each_run_is_compared_where_it_first_reaches_the_common_value(
    studies: Studies, criterion: str
) -> None:
    add_run(studies, "batchnorm", 0, FAST, [0.0, 0.1, 0.2, 0.9, 0.9, 0.9])
    add_run(studies, "none", 0, SLOW, [0.0, 0.0, 0.0, 0.0, 0.0, 0.05])
    table = compute_equal_training(load(studies.folder), criterion).set_index(["metric", "split"])
    # The loss 0.6 (accuracy 0.7) lies at 8/10 of the way from epoch 1 to epoch 2.
    silhouette = table.loc[("silhouette", "train")]
    assert silhouette["treatment_mean"] == pytest.approx(0.2 * 0.1 + 0.8 * 0.2)
    assert silhouette["baseline_mean"] == 0.05
    assert silhouette["used"] == pytest.approx(1.8 / 5)
    assert silhouette["baseline_used"] == 1
    assert table.loc[("probe_accuracy", "test"), "difference"] == pytest.approx(0, abs=1e-12)
    assert table.loc[("probe_loss", "train"), "treatment_mean"] == pytest.approx(0.6)
    assert "accuracy" not in table.index.get_level_values("metric")


def test_pairs_without_a_common_loss_are_counted(studies: Studies) -> None:
    add_norms_of_different_speed(studies, seeds=3)
    add_run(studies, "batchnorm", 3, FAST, FAST)
    above_the_first_loss_of_batchnorm = [2.0, 2.5, 2.5, 2.5, 2.5, 2.5]
    add_run(studies, "none", 3, above_the_first_loss_of_batchnorm, FAST)
    add_run(studies, "batchnorm", 4, FAST, FAST)
    add_run(studies, "none", 4, [2.0, *[math.nan] * 5], FAST, status="diverged")
    table = compute_equal_training(load(studies.folder), "loss")
    assert set(table["n"]) == {3}
    assert (set(table["apart"]), set(table["diverged"])) == ({1}, {1})
    assert set(table["undefined"]) == {0}


@pytest.mark.slow
def test_a_difference_caused_only_by_faster_training_disappears(studies: Studies) -> None:
    add_norms_of_different_speed(studies)
    analysis = Analysis(load(studies.folder))
    last = analysis.overall_effects.set_index("metric").loc["silhouette"]
    equal = analysis.equal_training["loss"].set_index("metric").loc["silhouette"]
    assert last["low"] > 0.4
    assert equal["low"] < 0 < equal["high"]
    text = "\n".join(compose_verdict(analysis))
    assert (
        "At equal training loss (6 pairs), each run is compared where it first reaches the larger "
        "of the two final training losses of its pair: runs with BatchNorm after 36% of their "
        "training on average, runs with no normalization after 100%." in text
    )
    assert (
        "At equal training accuracy and without adjustment for multiple tests, the outcome "
        "(higher, lower or not significant) for accuracy on the test split's probe set is the same "
        "as after the last epoch. The difference in silhouette in block01 (higher with BatchNorm "
        "after the last epoch) is no longer significant. Over all metrics, layers and splits, 1 of "
        "1 outcomes differ." in text
    )
    page = render_page(analysis)
    assert "Paired differences at equal training loss and accuracy" in page
    assert "Metric over the steps" not in page


def test_studies_without_a_probe_loss_have_no_such_comparison(studies: Studies) -> None:
    for norm in ("batchnorm", "none"):
        studies.add(norm, layers={"silhouette": [0.1]})
    analysis = Analysis(load(studies.folder))
    assert all(table.empty for table in analysis.equal_training.values())
    assert "equal training" not in "\n".join(compose_verdict(analysis))


def test_runs_recorded_without_steps_are_compared_by_their_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for norm, losses in (("batchnorm", FAST), ("none", SLOW)):
        with bnstudy.Run("mine", norm=norm, seed=0) as run:
            for epoch, loss in enumerate(losses):
                run.log(epoch=epoch, train_probe_loss=loss)
    study = load("multirun/mine")
    table = compute_equal_training(study, "loss")
    assert table["used"].tolist() == pytest.approx([1.8 / 5])
    assert table["baseline_used"].tolist() == [1]
    assert Analysis(study).averages_by_step.empty  # nothing was measured within an epoch


def test_rows_without_a_step_are_at_step_0_if_other_rows_have_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with bnstudy.Run("mine", norm="none", seed=0) as run:
        run.log(epoch=1, train_loss=2.0)
        run.log(epoch=2, step=200, train_loss=1.0)
    found = load("multirun/mine").query("select step, value from steps order by step")
    assert found.values.tolist() == [[0, 2.0], [200, 1.0]]


@pytest.mark.slow
def test_measurements_within_an_epoch_join_the_others(studies: Studies) -> None:
    for norm, seed in itertools.product(("batchnorm", "none"), range(3)):
        record = studies.add(norm, seed, layers={("silhouette", 0): [0.0], "silhouette": [0.5]})
        rows = [
            Row(0, step, "train", 0, "block01", "act", "silhouette", step / 10 + seed, None)
            for step in (1, 2, 4)
        ]
        record.table.add_steps(0, rows)
        record.table.add_steps(0, rows)  # an epoch that is trained again
    study = load(studies.folder)
    table = compute_averages(study, every="step")
    silhouettes = table[(table["treatment"] == "none") & (table["metric"] == "silhouette")]
    assert dict(zip(silhouettes["step"], silhouettes["mean"], strict=True)) == pytest.approx(
        {0: 0, 1: 1.1, 2: 1.2, 4: 1.4, 50: 0.5}
    )
    assert set(compute_averages(study, every="epoch")["epoch"]) == {0, 5}
    analysis = Analysis(study)
    assert embed_numbers(analysis)["steps"]["steps"] == [1, 2, 4, 50]  # 0 has no logarithm
    assert set(analysis.effects_by_step["step"]) == {0, 1, 2, 4, 50}
    (ax,) = Plot(analysis).steps("silhouette").axes
    assert ax.get_xscale() == "log"
    assert "Metric over the steps" in render_page(analysis)


def test_a_study_without_any_common_loss_says_so(studies: Studies) -> None:
    for seed in range(3):
        add_run(studies, "batchnorm", seed, FAST, FAST)
        add_run(studies, "none", seed, [2.0, 2.5, 2.5, 2.5, 2.5, 2.5], FAST)
    text = "\n".join(compose_verdict(Analysis(load(studies.folder))))
    words = (
        "At equal training loss, none of 3 pairs is compared: 3 with a run that has reached the "
        "larger of the two final training losses by its first measurement, or has no training loss."
    )
    assert words in text


@pytest.mark.parametrize(("epochs", "is_coarse"), [((0, 5), True), ((0, 2, 5), False)])
def test_values_from_only_two_measurements_are_said_to_be_interpolated(
    studies: Studies, epochs: tuple[int, ...], is_coarse: bool
) -> None:
    for norm, losses in (("batchnorm", FAST), ("none", SLOW)):
        measured = [loss if epoch in epochs else math.nan for epoch, loss in enumerate(losses)]
        add_run(studies, norm, 0, measured, measured)
    add_run(studies, "none", 1, SLOW, SLOW)  # without a partner
    text = "\n".join(compose_verdict(Analysis(load(studies.folder))))
    words = (
        "These runs were measured only twice, so values at equal training loss are interpolated "
        "over long stretches of training."
    )
    assert (words in text) is is_coarse


def test_the_verdict_says_why_test_accuracy_is_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for norm, losses in (("batchnorm", FAST), ("none", SLOW)):  # equal loss at epoch 1.8 and 5
        with bnstudy.Run("mine", norm=norm, seed=0) as run:
            for epoch, loss in enumerate(losses):
                run.log(epoch=epoch, train_probe_loss=loss)
                if epoch >= 2:
                    run.log(epoch=epoch, test_probe_accuracy=0.8)
    text = "\n".join(compose_verdict(Analysis(load("multirun/mine"))))
    assert (
        "Test accuracy is not compared: in no pair was the probe set of the test split measured "
        "before and after these points in both runs." in text
    )


def test_pretrained_networks_have_no_equal_training(studies: Studies) -> None:
    for norm in ("batchnorm", "none"):
        studies.add(
            norm, 0, layers={("silhouette", 0): [0.1]}, curves={("probe_loss", "train"): [0.5]}
        )
    text = "\n".join(compose_verdict(Analysis(load(studies.folder))))
    assert "BatchNorm is compared with" in text
    assert "equal training" not in text
