"""A search finds a learning rate for each norm, by held-out samples, and goes on where it was."""

import math
import multiprocessing
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

optuna = pytest.importorskip("optuna")

from bnstudy.errors import UserError  # noqa: E402
from bnstudy.runs.description import RunDescription  # noqa: E402
from bnstudy.runs.parts import Final, Status  # noqa: E402
from bnstudy.runs.record import Record  # noqa: E402
from bnstudy.sweeps.job import Outcome  # noqa: E402
from bnstudy.sweeps.search import search, split_axes  # noqa: E402
from bnstudy.sweeps.search_config import OPTIONS  # noqa: E402
from tests.conftest import QUICK, CommandLine, description  # noqa: E402

SEARCH = (*QUICK, "data.validation=0.1", "hydra/sweeper=optuna", "norm=batchnorm,none", "-m")

pytestmark = pytest.mark.filterwarnings("ignore::Warning")  # optuna 2.10 is old


def trials(folder: Path) -> dict[str, list[tuple[str, float, float]]]:
    storage = f"sqlite:///{folder}/multirun/mnist5k_cnn/search.db"
    return {
        summary.user_attrs["point"]: [
            (trial.state.name, trial.params["optim.lr"], trial.value)
            for trial in optuna.load_study(summary.study_name, storage).trials
        ]
        for summary in optuna.get_all_study_summaries(storage)
    }


@pytest.mark.slow
def test_one_search_for_each_norm_which_goes_on(command_line: CommandLine, tmp_path: Path) -> None:
    result = command_line(*SEARCH, "hydra.sweeper.n_trials=2")
    assert result.returncode == 0, result.stderr
    found = trials(tmp_path)
    assert found.keys() == {"norm=batchnorm", "norm=none"}
    runs = [description(path.parent) for path in tmp_path.glob("multirun/mnist5k_cnn/*/run.json")]
    tried = {
        (f"norm={run['choices']['norm']}", run["config"]["optim"]["lr"]): run["final"]
        for run in runs
    }
    for name, of_norm in found.items():
        assert len(of_norm) == 2
        for state, rate, value in of_norm:
            assert state == "COMPLETE"
            assert 1e-4 <= rate <= 1
            assert value == tried[name, rate]["validation_accuracy"]
    best = max(found["norm=none"], key=lambda trial: trial[2])
    assert f"{best[1]:.4g}" in result.stdout
    assert f"{best[2]:.4f}" in result.stdout

    # One was killed in the midst of its training: it is tried again first.
    storage = f"sqlite:///{tmp_path}/multirun/mnist5k_cnn/search.db"
    (name,) = (
        one.study_name
        for one in optuna.get_all_study_summaries(storage)
        if one.user_attrs["point"] == "norm=none"
    )
    study = optuna.load_study(name, storage)
    study.enqueue_trial({"optim.lr": 0.0321})
    study.ask({"optim.lr": optuna.distributions.LogUniformDistribution(1e-4, 1.0)})
    result = command_line(*SEARCH, "hydra.sweeper.n_trials=3")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("2 of 3 trials complete") == 2
    states = [(state, round(rate, 4)) for state, rate, _ in trials(tmp_path)["norm=none"][2:]]
    assert states == [("FAIL", 0.0321), ("COMPLETE", 0.0321)]
    assert len(trials(tmp_path)["norm=batchnorm"]) == 3

    # Where something else differs it is another search.
    result = command_line(*SEARCH, "hydra.sweeper.n_trials=1", "trainer.max_epochs=1")
    assert result.stdout.count("0 of 1 trials complete") == 2


def test_what_cannot_be_searched_is_told(command_line: CommandLine) -> None:
    result = command_line(*SEARCH, "optim.lr=tag(log,interval(0,1))", "hydra.sweeper.n_trials=1")
    assert result.returncode == 1
    assert "cannot be searched" in result.stderr


@pytest.mark.slow
def test_a_trial_that_fails_is_told_and_a_diverged_one_is_the_worst(
    command_line: CommandLine, tmp_path: Path
) -> None:
    arguments = (
        *SEARCH,
        "norm=none",
        "hydra.sweeper.n_trials=1",
        "sweep.objective=validation_loss",
    )
    result = command_line(*arguments, "optim.lr=interval(1e12,1e13)")
    assert result.returncode == 0, result.stderr
    assert trials(tmp_path)["search"][0][2] == math.inf
    assert "inf" not in result.stdout  # none is the best
    result = command_line(*arguments, "optim.lr=interval(-2.0,-1.0)", "study=other")
    assert result.returncode == 1
    assert "1 trial failed" in result.stderr


def search_slowly(
    folder: Path, n_trials: int, sampler: Any = None, failing: str | None = None
) -> None:
    """Search with trials that take a moment and note which process ran them.

    Args:
        folder: Output root.
        n_trials: Number of trials.
        sampler: Sampler; a partial one is a grid.
        failing: Override with which a trial fails.
    """

    def launch(jobs: list[list[str]], initial_job_idx: int) -> list[JobReturn]:
        time.sleep(0.1)
        with (folder / f"{multiprocessing.current_process().name}.txt").open("a") as file:
            file.writelines(f"{' '.join(job)}\n" for job in jobs)
        return [
            JobReturn(status=JobStatus.FAILED, _return_value=ValueError(failing))
            if failing in job
            else JobReturn(status=JobStatus.COMPLETED, _return_value=0.5)
            for job in jobs
        ]

    settings = {"redo": None, "dry_run": False, "objective": "train_accuracy"}
    config = {"sweep": settings, "output_root": str(folder), "study": "study"}
    options = OPTIONS | {"sampler": sampler or optuna.samplers.RandomSampler()}
    if failing is not None:
        options["max_failure_rate"] = 1.0
    is_grid = isinstance(sampler, partial)
    search(
        ["optim.lr=choice(0.1,0.2,0.3,0.1)" if is_grid else "optim.lr=interval(0.1,1.0)"],
        {"optim.lr": "0.1"} if is_grid else {},
        n_trials,
        options,
        OmegaConf.create(config),
        SimpleNamespace(launch=launch),  # type: ignore[arg-type]
    )


@pytest.mark.slow
def test_two_searches_at_once_share_the_trials(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    searches = [fork.Process(target=search_slowly, args=(tmp_path, 12)) for _ in range(2)]
    for process in searches:
        process.start()
    for process in searches:
        process.join(60)
    assert [process.exitcode for process in searches] == [0, 0]
    runs = [path.read_text().splitlines() for path in tmp_path.glob("*.txt")]
    assert len(runs) == 2
    assert min(map(len, runs)) >= 2
    assert len({run for runs_of_one in runs for run in runs_of_one}) == 12
    (summary,) = optuna.get_all_study_summaries(f"sqlite:///{tmp_path}/study/search.db")
    study = optuna.load_study(summary.study_name, f"sqlite:///{tmp_path}/study/search.db")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 12


def test_a_grid_ends_with_its_last_point(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = partial(optuna.samplers.GridSampler)
    for _ in range(2):
        search_slowly(tmp_path, 20, grid)
    (path,) = tmp_path.glob("*.txt")
    assert sorted(path.read_text().split()) == [f"optim.lr={rate}" for rate in (0.1, 0.2, 0.3)]
    assert "Trial 0: optim.lr=0." in capsys.readouterr().out


def test_the_failed_point_of_a_grid_is_tried_again(tmp_path: Path) -> None:
    grid = partial(optuna.samplers.GridSampler)
    with pytest.raises(UserError, match="1 trial failed"):
        search_slowly(tmp_path, 3, grid, failing="optim.lr=0.2")
    (path,) = tmp_path.glob("*.txt")
    assert sorted(path.read_text().split()) == [f"optim.lr={rate}" for rate in (0.1, 0.2, 0.3)]
    search_slowly(tmp_path, 3, grid)
    assert path.read_text().split()[3:] == ["optim.lr=0.2"]


def test_a_search_with_a_seed_goes_on_with_other_values(tmp_path: Path) -> None:
    for n_trials in (3, 6):
        search_slowly(tmp_path, n_trials, optuna.samplers.RandomSampler(seed=1))
    (path,) = tmp_path.glob("*.txt")
    assert len(set(path.read_text().split())) == 6


@pytest.mark.parametrize("objective", ["validation_accuracy", "train_loss"])
@pytest.mark.parametrize(
    ("status", "value", "expected"),
    [
        ("completed", 0.25, 0.25),
        ("diverged", 0.25, None),  # whatever number was recorded
        ("completed", None, None),
        ("completed", math.nan, None),
        ("completed", math.inf, None),
    ],
)
def test_the_objective_of_a_diverged_run_is_the_worst(
    objective: str, status: Status, value: float | None, expected: float | None
) -> None:
    final = Final.model_validate({objective: value})
    described = RunDescription(identity="", status=status, attempts=[], config={}, final=final)
    record = Record(Path(), described)
    worst = math.inf if objective == "train_loss" else 0.0
    assert float(Outcome(record, True, objective)) == (worst if expected is None else expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.validation=0"], "add data.validation=0.1"),
        (["sweep.objective=test_accuracy"], "sweep.objective=test_accuracy is not allowed"),
        (["sweep.dry_run=true"], "are for a grid"),
        (["optim.lr=0.1"], "nothing to search"),
    ],
)
def test_mistakes_are_told(
    command_line: CommandLine, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = command_line(*SEARCH, *arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) <= 2
    assert not list(tmp_path.glob("multirun/*/*/run.json"))


def test_what_is_searched_and_what_is_a_grid() -> None:
    points, searched = split_axes(
        ["norm=a,b", "seed=0", "optim.momentum=interval(0.5,0.9)", "model.depth=range(2,4)"],
        {"optim.lr": "tag(log, interval(0.001, 1))", "model.width": "choice(4,8)"},
    )
    assert searched == [
        "optim.lr=tag(log, interval(0.001, 1))",
        "model.width=choice(4,8)",
        "optim.momentum=interval(0.5,0.9)",
    ]
    assert [point.name for point in points] == [
        f"norm={norm} model.depth={depth}" for norm in "ab" for depth in (2, 3)
    ]
    assert points[0].overrides == ("norm=a", "seed=0", "model.depth=2")


def test_hydras_sweep_folder_cannot_be_set(command_line: CommandLine) -> None:
    result = command_line(*SEARCH, "optim.lr=interval(0.001,1)", "hydra.sweep.subdir=x")
    assert result.returncode == 1
    assert "hydra.sweep.subdir=x cannot be set" in result.stderr
