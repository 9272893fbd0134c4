"""Two processes on one machine."""

import json
import multiprocessing
import time
import warnings
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from bnstudy.callbacks.first_process import others_wait
from bnstudy.callbacks.optimization import OptimizationMetrics
from bnstudy.models import Classifier
from bnstudy.models.regularizers import TargetSparsity
from tests.callbacks.training import QUIET, noise
from tests.conftest import (
    REPOSITORY,
    SMALL,
    CommandLine,
    description,
    read_rows,
    train_on_two_processes,
)

fork = multiprocessing.get_context("fork")


@pytest.mark.slow
def test_the_hessian_with_batch_statistics_does_not_wait_for_other_processes(
    tmp_path: Path,
) -> None:
    train_on_two_processes(
        tmp_path, *SMALL, "norm=batch_renorm", "metrics=none", "trainer.sync_batchnorm=true",
        "callbacks=hessian", "callbacks.hessian.batchnorm=train", "callbacks.hessian.num_probes=2",
        "probe.train=50",
    )  # fmt: skip
    (cell,) = (tmp_path / "multirun").glob("*/*-*/")
    assert any(row["metric"] == "hessian_trace" for row in read_rows(cell))


@pytest.mark.slow
def test_a_multirun_on_two_processes_has_the_numbers_of_one_process(
    command_line: CommandLine, tmp_path: Path
) -> None:
    arguments = [*SMALL, "trainer.limit_val_batches=1.0", "data.validation=0.2"]
    arguments += ["norm=none,batchnorm", "-m"]
    assert command_line(*arguments, "study=default").returncode == 0
    train_on_two_processes(tmp_path, *arguments, "study=ddp")
    values = {}
    for trainer in ("default", "ddp"):
        for cell in (tmp_path / "multirun" / trainer).glob("*-*/"):
            run = description(cell)
            assert run["status"] == "completed"
            assert len(run["attempts"]) == 1
            for row in read_rows(cell):
                key = (
                    run["choices"]["norm"],
                    *(row[k] for k in ("epoch", "split", "layer", "metric")),
                )
                values.setdefault(key, {})[trainer] = row["value"]
    at_ends = 2 * (2 * 16 + 4) + 2  # with whole splits, also of the validation split
    assert len(values) == 2 * (2 * at_ends + 2 * (2 * 16 + 2))
    for (norm, epoch, *what), value in values.items():
        # Without BatchNorm two halves of a batch give the gradient of the whole; with it, each
        # process has its own statistics, and only the start is the same.
        if norm == "none" or epoch == 0:
            close = 0.03 if str(what[2]).startswith(("kmeans", "knn", "intrinsic")) else 1e-3
            assert value["ddp"] == pytest.approx(value["default"], rel=close, abs=1e-5), what


class FailInFirst(OptimizationMetrics):
    """Fail in the first process, if there is no BatchNorm; the other one waits for gradients."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any
    ) -> None:
        with_norm = any(isinstance(module, nn.BatchNorm2d) for module in pl_module.modules())
        if trainer.is_global_zero and not with_norm:
            raise RuntimeError("it broke")


@pytest.mark.slow
def test_a_failure_of_the_first_process_ends_the_other_and_the_sweep_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    arguments = (*SMALL, "metrics=none", "data=planted", "norm=none,batchnorm", "-m")
    failing = "+callbacks.failing._target_=tests.test_ddp.FailInFirst"
    train_on_two_processes(tmp_path, *arguments, failing, returncode=1)
    status = {
        path.parent.name.partition("-")[0]: description(path.parent)["status"]
        for path in tmp_path.glob("multirun/*/*/run.json")
    }
    assert status == {"none": "failed", "batchnorm": "completed"}


def wait_or_work(folder: Path, rank: int, fails: bool) -> None:
    """Do work that takes longer than the process group's time-out, or wait for it."""
    distributed.init_process_group(
        "gloo", f"file://{folder}/store", timedelta(seconds=1), world_size=2, rank=rank
    )
    trainer = SimpleNamespace(is_global_zero=rank == 0, global_rank=rank)
    for turn in range(2):
        with others_wait(trainer) as is_first:
            if is_first:
                time.sleep(1.5)
                if fails:
                    raise SystemExit(3)
                (folder / f"turn {turn}").touch()
        assert (folder / f"turn {turn}").exists()
    distributed.barrier()


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_measuring_may_take_longer_than_the_time_out_of_the_process_group(
    tmp_path: Path, fails: bool
) -> None:
    processes = [fork.Process(target=wait_or_work, args=(tmp_path, n, fails)) for n in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == ([3, 1] if fails else [0, 0])


class Spy(L.Callback):
    """Write down what each process has; the last loss of the second one is infinite."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: dict[str, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: Classifier) -> None:
        self.seen["before"] = [one.sum().item() for one in pl_module.network.parameters()]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Classifier, batch: Any, batch_idx: int
    ) -> None:
        with torch.random.fork_rng():
            self.seen["mask"] = functional.dropout(torch.ones(50)).tolist()

        def logits(images: Tensor) -> Tensor:
            far = torch.tensor([3e38, -3e38, -3e38]) if overflows else torch.zeros(3)
            return pl_module.network(images) + far

        overflows = trainer.global_rank == 1 and trainer.global_step == 5  # the last one
        pl_module.compute_logits = logits

    def on_train_end(self, trainer: L.Trainer, pl_module: Classifier) -> None:
        self.seen["after"] = [one.sum().item() for one in pl_module.network.parameters()]
        self.seen["multipliers"] = pl_module.regularizer.multipliers.tolist()
        self.seen["diverged"] = pl_module.diverged.item()
        content = json.dumps(self.seen)
        (self.folder / f"{trainer.world_size}-{trainer.global_rank}.json").write_text(content)


def train_on(processes: int, folder: Path) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    optim = {"name": "sgd", "lr": 0.1, "schedule": "constant", "trainable": "all"}
    data = noise()
    module = Classifier(network, optim, 0, TargetSparsity(network, 1.0, ["*"], 0.9))
    strategy = {"strategy": "ddp_fork", "devices": processes} if processes > 1 else {"devices": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        L.Trainer(
            **QUIET,
            **strategy,
            max_epochs=2,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            callbacks=[Spy(folder)],
        ).fit(module, datamodule=data)
    return [
        json.loads((folder / f"{processes}-{rank}.json").read_text()) for rank in range(processes)
    ]


def test_processes_share_weights_constraint_and_divergence_but_no_dropout(tmp_path: Path) -> None:
    (alone,) = train_on(1, tmp_path)
    first, second = train_on(2, tmp_path)
    assert first["before"] == second["before"] == alone["before"]
    assert first["mask"] == alone["mask"] != second["mask"]
    assert first["multipliers"] == second["multipliers"]
    assert first["multipliers"] == pytest.approx(alone["multipliers"], rel=1e-3)
    assert max(map(abs, alone["multipliers"])) > 0.01
    assert (first["diverged"], second["diverged"], alone["diverged"]) == (True, True, False)
