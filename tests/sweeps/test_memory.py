"""Jobs that one process runs one after the other leave nothing of one another in memory."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from bnstudy.training.build import build_classifier, build_trainer, load_data
from tests.conftest import QUICK, CommandLine

FAILING_SEED = 1


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Numbers of objects of earlier jobs that each job finds in memory when it begins.

    These are data, images, networks, weights and trainers. The job of one seed fails.
    """
    made: list[weakref.ref[Any]] = []
    found: list[int] = []

    def load(config: dict[str, Any]) -> Any:
        found.append(sum(reference() is not None for reference in made))
        data = load_data(config)
        made.extend(map(weakref.ref, (data, data.data.images["train"])))
        return data

    def build(config: dict[str, Any], data: Any) -> Any:
        classifier = build_classifier(config, data)
        made.extend(map(weakref.ref, (classifier, *classifier.network.parameters())))
        return classifier

    def trainer(config: dict[str, Any], callbacks: list[Any]) -> Any:
        built = build_trainer(config, callbacks)
        made.append(weakref.ref(built))
        if config["seed"] == FAILING_SEED:
            raise RuntimeError("it broke")
        return built

    monkeypatch.setattr("bnstudy.training.fit.load_data", load)
    monkeypatch.setattr("bnstudy.training.fit.build_classifier", build)
    monkeypatch.setattr("bnstudy.training.fit.build_trainer", trainer)
    gc.collect()
    gc.disable()  # it would run between some of the jobs, and not between others
    yield found
    gc.enable()


@pytest.mark.parametrize("logger", ["none", pytest.param("wandb", marks=pytest.mark.slow)])
def test_a_job_finds_nothing_of_the_jobs_before_it(
    command_line: CommandLine, left: list[int], logger: str
) -> None:
    result = command_line(*QUICK, "data=planted", f"logger={logger}", "seed=0,1,2", "-m")
    assert "1 failed" in result.stderr
    assert left == [0, 0, 0]
