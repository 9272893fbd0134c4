"""The command line, as users call it."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from bnstudy import measure, report, train
from bnstudy.runs.long_table import SCHEMA
from tests.conftest import (
    DIVERGING,
    SMALL,
    CommandLine,
    assert_trains_without_torch,
    description,
    only_cell,
    read_rows,
    read_rows_by_cell,
    train_until,
)


def weights(cell: Path) -> dict[str, torch.Tensor]:
    return torch.load(cell / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.slow
def test_two_norms_are_trained_measured_and_compared(
    command_line: CommandLine, tmp_path: Path
) -> None:
    result = command_line("norm=batchnorm,none", *SMALL, "-m")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "Cell 2 of 2: norm=none" in result.stdout
    for shown in ("batchnorm", "none", "test accuracy ↑", "silhouette ↑", "block02", "run.json"):
        assert shown in result.stdout

    cells = sorted((tmp_path / "multirun" / "mnist5k_cnn").glob("*-*/"))
    assert [cell.name.rpartition("-")[0] for cell in cells] == [
        "batchnorm-depth2-width4-seed0",
        "none-depth2-width4-seed0",
    ]
    for cell in cells:
        run = description(cell)
        assert run["status"] == "completed"
        assert run["identity"].startswith(cell.name.rpartition("-")[2])
        assert run["config"]["optim"]["lr"] == 0.01
        assert run["environment"]["packages"]["torch"] == torch.__version__.partition("+")[0]
        assert run["data"]["probe"] == {"train": 400, "test": 200}
        assert run["final"].keys() == {
            "epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy"
        }  # fmt: skip
        table = pq.read_table(cell / "metrics.parquet")
        assert table.schema == SCHEMA
        assert not (cell / "metrics").exists()

    query = (
        "select layer, metric, avg(value) from 'multirun/*/*/metrics.parquet' "
        "where split='train' group by all order by all"
    )
    with duckdb.connect() as connection:
        rows = connection.sql(query.replace("multirun", str(tmp_path / "multirun"))).fetchall()
        counts = connection.sql(
            f"select epoch, split, count(*) from '{cells[0]}/metrics.parquet' "
            "group by all order by all"
        ).fetchall()
    layers = {layer for layer, _, _ in rows}
    assert layers == {"block01", "block02", "model"}
    assert len(rows) == 2 * 16 + 4
    # Epoch 0 is before training; every epoch has every metric, and loss and accuracy of the probe
    # set, on both splits. Loss and accuracy of whole splits are only at the first and last epoch.
    assert counts == [
        (epoch, split, 2 * 16 + (2 if epoch == 1 else 4))
        for epoch in (0, 1, 2)
        for split in ("test", "train")
    ]


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been_killed(
    command_line: CommandLine, tmp_path: Path
) -> None:
    arguments = (*SMALL, "trainer.max_epochs=4", "optim.schedule=cosine", "data.shift=2")
    train_until(tmp_path, *arguments, "study=killed", epoch=2)
    (killed,) = (tmp_path / "multirun" / "killed").glob("*-*/")
    assert description(killed)["status"] == "running"

    resumed = command_line(*arguments, "study=killed")
    assert resumed.returncode == 0, resumed.stderr
    whole = command_line(*arguments, "study=whole")
    assert whole.returncode == 0, whole.stderr

    (uninterrupted,) = (tmp_path / "multirun" / "whole").glob("*-*/")
    first, second = description(killed)["attempts"]
    assert (first["status"], second["status"]) == ("interrupted", "completed")
    assert second["resumed_from_epoch"] in (1, 2)
    assert pq.read_table(killed / "metrics.parquet").equals(
        pq.read_table(uninterrupted / "metrics.parquet")
    )
    torch.testing.assert_close(weights(killed), weights(uninterrupted), rtol=0, atol=0)


@pytest.mark.long
def test_a_terminated_run_is_recorded_as_interrupted(tmp_path: Path) -> None:
    arguments = (*SMALL, "trainer.max_epochs=200")
    status = train_until(tmp_path, *arguments, epoch=1, sent=signal.SIGTERM)
    assert status == 128 + signal.SIGTERM
    run = description(only_cell(tmp_path / "multirun"))
    assert run["status"] == run["attempts"][0]["status"] == "interrupted"


@pytest.mark.slow
def test_before_training_batchnorm_normalizes(command_line: CommandLine, tmp_path: Path) -> None:
    norms = ("batchnorm", "batchnorm_frozen", "none", "ghostbatchnorm", "batchnorm_noaffine")
    norms += ("batchnorm_centering", "batchnorm_scaling")
    data = ("data=planted", "data.samples_per_group={train:20,test:7}", "study=start")
    short = ("trainer.max_epochs=1", "trainer.limit_train_batches=1", "checkpoint_epochs=[0]")
    arguments = (*SMALL, *data, *short)
    result = command_line(*arguments, f"norm={','.join(norms)}", "-m")
    assert result.returncode == 0, result.stderr
    later = ("metrics.names=[mean,variance,linear_probe]", "metrics.sites=[conv,norm,act]")
    measured = command_line("multirun/start", *later, "--epochs", "0", main=measure.main)
    assert measured.returncode == 0, measured.stderr

    values: dict[str, dict[tuple[object, ...], float]] = {}
    for cell in (tmp_path / "multirun" / "start").glob("*-*/"):
        values[description(cell)["choices"]["norm"]] = {
            tuple(row[key] for key in ("split", "layer", "site", "metric")): row["value"]
            for row in read_rows(cell)
            if row["epoch"] == 0
        }
    assert values.keys() == set(norms)
    # For each split: loss and accuracy, also of the probe set; in both layers, 16 metrics of act
    # and 3 of each of the 3 sites.
    assert len(values["none"]) == 2 * (4 + 2 * 16 + 2 * 3 * 3)
    assert values["batchnorm"] == pytest.approx(values["batchnorm_frozen"], nan_ok=True)
    assert values["batchnorm"] == pytest.approx(values["batchnorm_noaffine"], nan_ok=True)
    for norm in set(norms) - {"none"}:
        for layer, site in (("block01", "norm"), ("block02", "norm"), ("block02", "act")):
            normalized, unnormalized = (
                [values[one]["test", layer, site, metric] for metric in ("mean", "variance")]
                for one in (norm, "none")
            )
            assert normalized != pytest.approx(unnormalized, rel=0.01), (norm, layer, site)
        loss = ("train", "model", None, "loss")
        assert values[norm][loss] != pytest.approx(values["none"][loss], rel=1e-4), norm
    for layer in ("block01", "block02"):
        variance = values["batchnorm"]["train", layer, "norm", "variance"]
        assert variance == pytest.approx(1, rel=0.05)


@pytest.mark.slow
def test_running_statistics_of_few_batches_are_warned_of(command_line: CommandLine) -> None:
    few = (*SMALL, "metrics=none", "trainer.limit_train_batches=4")
    warning = "still had a share of 66% in the running mean and variance"
    assert warning in command_line(*few).stdout
    assert "running mean" not in command_line(*few).stdout  # it was trained before
    assert "running mean" not in command_line(*few, "norm=none").stdout
    assert "running mean" not in command_line(*few, "norm.momentum=0.9", "study=fast").stdout


@pytest.mark.slow
def test_options_beyond_the_end_of_training_are_warned_of_once(command_line: CommandLine) -> None:
    options = ("metrics=none", "metrics.at_steps=[1,400]", "optim.warmup_epochs=5")
    result = command_line(*SMALL, *options)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("metrics.at_steps=[400]: not measured, because the last of") == 1
    assert result.stdout.count("optim.warmup_epochs=5 with trainer.max_epochs=2: ") == 1
    assert "not measured" not in command_line(*SMALL, *options).stdout  # it was trained before


@pytest.mark.slow
def test_folds_with_one_sample_of_a_class_are_warned_of(command_line: CommandLine) -> None:
    arguments = (*SMALL, "metrics.names=[unit_sparsity]")
    warning = "most metrics of clustering have no value on parts with one sample of a class"
    assert warning in command_line(*arguments, "metrics.folds=11").stdout
    fewer = command_line(*arguments, "metrics.folds=10", "study=fewer")
    assert fewer.returncode == 0
    assert warning not in fewer.stdout


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:block01 at epoch 1. an activation is not finite")
def test_a_diverged_run_is_a_result(command_line: CommandLine, tmp_path: Path) -> None:
    result = command_line("norm=none", *DIVERGING, *SMALL)
    assert result.returncode == 0, result.stderr
    cell = only_cell(tmp_path / "multirun")
    assert description(cell)["status"] == "diverged"
    rows = read_rows(cell)
    assert {row["epoch"] for row in rows} == {0, 1, 2}
    undefined = [row for row in rows if row["epoch"] == 2 and row["layer_index"] >= 0]
    assert {row["reason"] for row in undefined} == {"an activation is not finite"}
    losses = [row for row in rows if row["metric"] == "loss" and row["epoch"] == 2]
    assert {row["reason"] for row in losses} == {"the loss is not finite"}
    assert all(math.isnan(row["value"]) for row in losses)
    accuracies = [row for row in rows if row["metric"] == "accuracy" and row["epoch"] == 2]
    assert [row["value"] for row in accuracies] == [0, 0]  # NaN logits are no prediction of class 0
    assert "diverged, test accuracy" in command_line("norm=none", *DIVERGING, *SMALL).stdout


@pytest.mark.slow
def test_weights_that_the_last_step_blew_up_are_a_divergence(
    command_line: CommandLine, tmp_path: Path
) -> None:
    arguments = (*SMALL, "trainer.max_epochs=1", "trainer.limit_train_batches=1", "metrics=none")
    too_large = ("optim.lr=1e38", "optim.weight_decay=1e6")
    assert command_line(*arguments, "norm=none", *too_large).returncode == 0
    assert description(only_cell(tmp_path / "multirun"))["status"] == "diverged"


@pytest.mark.slow
def test_more_metrics_of_a_complete_cell_come_from_its_checkpoints(
    command_line: CommandLine, tmp_path: Path
) -> None:
    assert command_line(*SMALL, "checkpoint_epochs=[1]", "metrics=none").returncode == 0
    result = command_line(*SMALL)
    assert result.returncode == 0, result.stderr
    assert "measured from checkpoints: 16 metrics of epochs 1, 2\n" in result.stdout
    assert "not measured, because there is no checkpoint: 16 metrics of epoch 0 (" in result.stdout
    again = command_line(*SMALL)
    assert "measured from" not in again.stdout

    cell = only_cell(tmp_path / "multirun")
    assert len(description(cell)["attempts"]) == 1
    later = read_rows(cell)
    assert command_line(*SMALL, "study=at_once").returncode == 0
    (at_once,) = read_rows_by_cell(tmp_path / "multirun" / "at_once").values()

    def by_key(rows: list[dict[str, object]]) -> dict[tuple[object, ...], object]:
        return {
            (row["epoch"], row["split"], row["layer"], row["metric"]): row["value"]
            for row in rows
            if row["epoch"] in (1, 2)
        }

    assert by_key(later) == by_key(at_once)


@pytest.mark.slow
def test_the_learning_rate_can_be_each_norms_own(command_line: CommandLine, tmp_path: Path) -> None:
    result = command_line(
        "norm=batchnorm,none", "optim.lr={batchnorm:0.1,none:0.02}", "metrics=none", *SMALL, "-m"
    )
    assert result.returncode == 0, result.stderr
    used = {
        run["choices"]["norm"]: run["config"]["optim"]["lr"]
        for run in map(description, (tmp_path / "multirun" / "mnist5k_cnn").glob("*-*/"))
    }
    assert used == {"batchnorm": 0.1, "none": 0.02}
    assert "batchnorm lr=0.1" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["norm=bogus"], ["norm=bogus", "batchnorm", "none"]),
        (["model.depth=0"], ["model.depth=0", "at least 1"]),
        (["model=vgg", "model.depth=12"], ["model.depth=12", "11, 13, 16, 19"]),
        (["model=resnet", "model.depth=21"], ["model.depth=21", "20 or 26"]),
        (["model=torchvision", "model.name=resnet81"], ["model.name=resnet81", "resnet18"]),
        (["model=resnet", "model.residual_init={none:he}"], ["residual_init", "norm=batchnorm"]),
        (["norm=none", "optim.trainable=norm"], ["optim.trainable=norm", "choose another norm"]),
        (["norm.position=mid"], ["norm.position=mid", "pre, post"]),
        (["regularizer=cluster", "regularizer.layers=[block9]"], ["block9", "block01"]),
        (["norm=none", "regularizer=target_sparsity"], ["regularizer.target=batchnorm", "first"]),
        (["regularizer=target_sparsity", "regularizer.target=2"], ["target=2", "from 0 to 1"]),
        (["model.width=-3"], ["model.width=-3", "above 0"]),
        (["model.depth=40"], ["model.depth=40", "28x28", "1 to 8"]),
        (["model.dept=3"], ["model.dept=3", "depth"]),
        (["optim.lr=abc"], ["optim.lr=abc", "above 0"]),
        (["optim.lr={none:0.1}"], ["optim.lr", "norm=batchnorm"]),
        (["seed=-1"], ["seed=-1", "at least 0"]),
        (["data.root=FILE"], ["data.root", "is a file"]),
        (["data=cifar10", "data.root=."], ["CIFAR10", "data.root", "cifar-10-python.tar.gz"]),
        (["data=image_folder"], ["data.root is missing"]),
        (["data=image_folder", "data.root=nowhere"], ["data.root=nowhere", "train/<class>/"]),
        (["metrics.names=[silhouete]"], ["silhouete; did you mean silhouette"]),
        (["metrics.names=[cka]"], ["no metric cka\n", "python -m bnstudy.metrics lists"]),
        (["norm=groupnorm", "norm.num_groups=3"], ["norm.num_groups=3", "16 channels"]),
        (["output_root=FILE"], ["FILE", "output_root=FOLDER"]),
        (["output_root=/proc/new"], ["/proc/new", "output_root=FOLDER"]),
        (["study=a/b"], ["study=a/b", "folder"]),
        (["study=.."], ["study=..", "folder"]),
        (["trainer.max_epochs"], ["trainer.max_epochs"]),
        (["trainer.devices=auto"], ["trainer.devices=auto", "at least 1"]),
        (["+trainer.plugins=x"], ["trainer.plugins", "cannot be set"]),
        (["+trainer.max_steps=5"], ["trainer.max_steps", "trainer.max_epochs"]),
        (["+optim.foo=1", *SMALL], ["optim", "foo"]),
        (["optim.nesterov=true", "optim.momentum=0", *SMALL], ["Nesterov", "optim.momentum=0"]),
        (["trainer.limit_val_batches=0.0001", *SMALL[-3:]], ["limit_val_batches", "Try at least"]),
        (["model._target_=nowhere.Net", *SMALL[2:]], ["nowhere.Net cannot be imported"]),
        (["model._target_=bnstudy.models.CNNN", *SMALL[2:]], ["no CNNN; did you mean CNN"]),
        (
            ["+callbacks.mine._target_=bnstudy.callbacks.Hesian", *SMALL],
            ["callbacks.mine._target_=bnstudy.callbacks.Hesian: ", "did you mean Hessian?"],
        ),
        (["callbacks=[hesian]"], ["callbacks=[hesian]", "did you mean hessian?"]),
        (["study=", "-m"], ["study= is not allowed", "folder's name"]),
        (["output_root=", "-m"], ["output_root= is not allowed", "folder's path"]),
        (["study=50%j", "hydra/launcher=slurm_local", "-m"], ["study=50%j is not allowed"]),
        (["logger.project=a/b"], ["logger.project=a/b", "without /"]),
        (["logger.mode=foo"], ["logger.mode=foo", "offline"]),
        (["trainer.precision=foo", *SMALL], ["trainer.precision=foo", "16-mixed"]),
        (["trainer.accelerator=foo", *SMALL], ["trainer.accelerator=foo"]),
        (["metrics=none", "metrics.folds=4"], ["metrics.folds=4", "metrics=fast"]),
        (["metrics.folds=21", *SMALL], ["metrics.folds=21", "20 samples of class", "2 to 20"]),
        (["metrics.at_steps=[0,1]"], ["metrics.at_steps=[0, 1]", "begin at 1"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_told_in_at_most_two_lines(
    command_line: CommandLine, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "FILE").touch()
    result = command_line(*arguments)
    assert result.returncode == 1
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert 1 <= len(lines) <= 2, result.stderr
    for word in words:
        assert word in result.stderr
    assert "interpolation" not in result.stderr
    assert "Error in call" not in result.stderr
    assert not list(tmp_path.glob("multirun/*"))


def test_a_sweeps_folder_that_cannot_be_made_is_told(command_line: CommandLine) -> None:
    result = command_line("output_root=/proc/new", "-m")
    assert result.returncode == 1
    assert result.stderr.startswith("/proc/new/")
    assert "output_root=FOLDER" in result.stderr
    assert len(result.stderr.splitlines()) == 2


def test_a_deleted_working_folder_is_told(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (deleted := tmp_path / "deleted").mkdir()
    monkeypatch.chdir(deleted)
    deleted.rmdir()
    for main in (train.main, report.main):
        result = command_line("study", main=main)
        assert result.returncode == 1
        assert result.stderr.startswith("the working folder was deleted\n")
        assert len(result.stderr.splitlines()) == 2
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["WANDB_BASE_URL", "WANDB_PROJECT"])
def test_a_mistake_in_wandbs_environment_is_told(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import wandb

    wandb.teardown()  # it has read the environment
    monkeypatch.setenv(name, "a/b")
    result = command_line(*SMALL[:-1], "metrics=none")
    monkeypatch.undo()
    wandb.teardown()
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 2, result.stderr
    assert "WANDB_..." in result.stderr


@pytest.mark.slow
def test_an_empty_wandb_mode_counts_as_unset(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "")
    assert command_line(*SMALL[:-1], "metrics=none", "study=2026").returncode == 0
    (folder,) = Path("multirun/2026").glob("*/wandb/offline-run-*")
    assert description(folder.parents[1])["study"] == "2026"


@pytest.mark.slow
def test_a_key_that_only_the_swept_norms_have_is_set_in_each(command_line: CommandLine) -> None:
    norms = ("norm=groupnorm,weightstandardization", "norm.num_groups=2", "-m")
    result = command_line(*SMALL, "metrics=none", *norms)
    assert result.returncode == 0, result.stderr
    runs = [description(path.parent) for path in Path("multirun").glob("*/*/run.json")]
    assert [run["config"]["norm"]["num_groups"] for run in runs] == [2, 2]


@pytest.mark.slow
def test_synchronized_batchnorm_needs_a_gpu_or_a_single_process(command_line: CommandLine) -> None:
    options = ("+trainer.sync_batchnorm=true", "trainer.accelerator=cpu", "metrics=none")
    result = command_line(*SMALL, *options)
    assert result.returncode == 0, result.stderr  # one process has nothing to synchronize
    result = command_line(*SMALL, *options, "+trainer.strategy=ddp", "study=ddp")
    assert result.returncode == 1
    assert "Set it to false, or choose trainer.accelerator=gpu" in result.stderr
    assert not list(Path("multirun/ddp").glob("*/run.json"))


@pytest.mark.slow
def test_each_debug_command_has_its_own_study(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(["1", "2"])
    clock = SimpleNamespace(strftime=lambda pattern: next(times))
    monkeypatch.setattr("bnstudy.config.identity.time", clock)
    arguments = ("debug=fast", *SMALL[:2], "metrics=none", "norm=none,layernorm")
    for _ in range(2):
        assert command_line(*arguments, "-m").returncode == 0
    studies = Path("multirun").iterdir()
    assert {study.name: len(list(study.glob("*/run.json"))) for study in studies} == {
        "debug_1": 2,
        "debug_2": 2,
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_told(command_line: CommandLine) -> None:
    result = command_line("trainer=gpu")
    assert result.returncode == 1
    cause, advice = result.stderr.splitlines()
    assert cause == "No supported gpu backend found!"
    assert "trainer.accelerator=gpu" in advice


@pytest.mark.slow
def test_a_complete_cell_is_skipped_without_loading_torch(
    command_line: CommandLine, tmp_path: Path
) -> None:
    assert command_line(*SMALL, "metrics=none").returncode == 0
    assert_trains_without_torch(tmp_path, *SMALL, "metrics=none")


@pytest.mark.long
def test_a_second_process_neither_enters_nor_disturbs_a_cell(
    command_line: CommandLine, tmp_path: Path
) -> None:
    program = [sys.executable, "-m", "bnstudy.train", *SMALL, "metrics=none"]
    first = subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("multirun/*/*/.lease.1")):  # long before it has recorded anything
        assert time.monotonic() < deadline
        time.sleep(0.01)
    second = command_line(*SMALL, "metrics=none")
    assert second.returncode == 1
    assert "is working in this cell" in second.stderr
    assert first.wait(timeout=120) == 0
    run = description(only_cell(tmp_path / "multirun"))
    assert run["status"] == "completed"
    assert len(run["attempts"]) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.slow
def test_a_full_disk_is_told_and_loses_no_recorded_epoch(
    command_line: CommandLine, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=900k", "none", disk], check=False
    ).returncode:
        pytest.skip("mounting is not permitted")
    try:
        arguments = (*SMALL, "metrics=none", f"output_root={disk}", "checkpoint_epochs=all")
        arguments = (*arguments, "trainer.max_epochs=14", "model.width=16")
        result = command_line(*arguments)
        assert result.returncode == 1
        assert len(result.stderr.splitlines()) == 2, result.stderr
        assert "No space left on device" in result.stderr
        subprocess.run(["mount", "-o", "remount,size=40m", disk], check=True)
        assert command_line(*arguments).returncode == 0
        attempts = description(only_cell(disk))["attempts"]
        assert attempts[-1]["resumed_from_epoch"] > 0
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_epochs_without_a_metric_are_measured_from_their_checkpoints(
    command_line: CommandLine, tmp_path: Path
) -> None:
    names = "metrics.names=[unit_sparsity]"
    assert command_line(*SMALL, names, "checkpoint_epochs=[0,1]").returncode == 0
    cell = only_cell(tmp_path / "multirun")
    table = pq.read_table(cell / "metrics.parquet")
    layers = table.filter(pc.greater_equal(table["layer_index"], 0))
    incomplete = pa.concat_tables(  # the metric is missing at epochs 0 and 1
        [
            table.filter(pc.less(table["layer_index"], 0)),
            layers.filter(pc.equal(layers["epoch"], 2)),
        ]
    )
    pq.write_table(incomplete, cell / "metrics.parquet")
    assert "unit_sparsity of epochs 0, 1" in command_line(*SMALL, names).stdout
    mended = pq.read_table(cell / "metrics.parquet")
    order = [(name, "ascending") for name in ("epoch", "split", "layer_index", "metric")]
    assert mended.sort_by(order).equals(table.sort_by(order))


@pytest.mark.slow
def test_help_explains_groups_and_axes(command_line: CommandLine) -> None:
    result = command_line("--help")
    assert result.returncode == 0
    for words in (
        "norm: affine, batch_renorm, batchnorm",
        "data: cifar10",
        "model.depth=",
        "seed=0,1,2,3",
    ):
        assert words in result.stdout


@pytest.mark.slow
def test_a_run_with_the_earlier_default_of_probe_is_named(
    command_line: CommandLine, tmp_path: Path
) -> None:
    small = [word for word in SMALL if not word.startswith("probe")]
    small += ["data=planted", "data.samples_per_group={train:20,test:20}", "metrics=none"]
    earlier = command_line(*small, "probe.train=null", "probe.test=null")
    assert "earlier default" not in earlier.stdout
    cell = only_cell(tmp_path / "multirun")
    told = f"{cell.relative_to(tmp_path)} was trained before the default of probe changed"
    assert told in command_line(*small).stdout
    assert told not in command_line(*small).stdout  # complete
    assert told not in command_line(*small, "seed=1").stdout


@pytest.mark.parametrize("sweep", ["norm=batchnorm,none", "seed=range(3)"])
def test_a_forgotten_multirun_is_told(sweep: str, command_line: CommandLine) -> None:
    result = command_line(sweep)
    assert result.returncode == 1
    assert result.stderr.startswith(
        f"{sweep}: several values are a sweep, which bnstudy.train runs"
    )
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "words", [("norm=[batchnorm,none]",), ("norm=[batchnorm,none],none", "-m")]
)
def test_a_list_of_options_is_refused(words: tuple[str, ...], command_line: CommandLine) -> None:
    result = command_line(*words)
    assert result.returncode == 1
    assert result.stderr.startswith(f"{words[0]}: expected one option\n")
    assert len(result.stderr.splitlines()) == 2


@pytest.mark.parametrize("words", [("",), ("norm=batchnorm,none", "", "-m")])
def test_an_empty_argument_is_told(words: tuple[str, ...], command_line: CommandLine) -> None:
    result = command_line(*words)
    assert result.returncode == 1
    assert result.stderr.startswith("an argument is empty, perhaps a shell variable")
