"""run.json: what is read is written again, and a run goes from state to state by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bnstudy import __version__, load
from bnstudy.errors import DamagedFile, UserError
from bnstudy.runs import description as module
from bnstudy.runs.description import RunDescription
from bnstudy.runs.long_table import WHOLE_MODEL, Row, extract_final_numbers
from bnstudy.runs.parts import Environment, Final, MeasuredLater
from bnstudy.runs.record import Record
from tests.conftest import KEPT


@pytest.fixture(autouse=True)
def _no_printed_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test print the unknown fields that another test has printed."""
    monkeypatch.setattr(module, "_printed_fields", set())


@pytest.fixture
def run() -> RunDescription:
    return RunDescription(
        identity="a" * 64,
        status=None,
        attempts=[],
        config={"trainer": {"max_epochs": 4}, "callbacks": {}, "metrics": {"names": ["hoyer"]}},
    )


def written(run: RunDescription) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(run.to_json())
    return content


@pytest.mark.parametrize("path", sorted(KEPT.glob("*/run.json")), ids=lambda path: path.parent.name)
def test_a_kept_record_is_written_as_it_was(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = path.read_text()
    run = RunDescription.from_json(before, path)
    after = run.to_json()
    assert json.loads(after) == {"format": 1} | json.loads(before)
    shared = ["study", "cell", "status", "attempts", "config", "final", "environment", "data"]
    assert [key for key in json.loads(after) if key in shared] == shared
    assert after.startswith('{\n  "format": 1,\n  "identity"')
    assert RunDescription.from_json(after, path).to_json() == after
    assert not capsys.readouterr().out  # no field of theirs is unknown


def test_what_a_field_that_is_absent_means() -> None:
    (path,) = KEPT.glob("batchnorm-depth2-width2-seed0-*/run.json")
    run = RunDescription.from_json(path.read_bytes(), path)
    assert run.format == 1
    assert run.attempts[0].version is None
    assert run.version == "0.1"  # that of the environment
    (later,) = run.measured_later
    assert later.splits is None  # all of them
    assert later.sites is None
    assert run.target_sparsity is None


def test_unknown_fields_are_kept_and_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (kept,) = KEPT.glob("none-depth1-width2-seed1-*")
    for name in ("first", "second"):
        cell = tmp_path / name
        shutil.copytree(kept, cell)
        content = json.loads((cell / "run.json").read_text())
        content["tool"] = {"by": "somebody"}
        content["attempts"][0]["mood"] = None
        content["environment"]["git"]["branch"] = "main"
        (cell / "run.json").write_text(json.dumps(content))
        record = Record.read(cell)
        record.save()
        assert json.loads((cell / "run.json").read_text()) == {"format": 1} | content
    told = capsys.readouterr().out
    assert told.count("unknown fields") == 1
    assert f"{tmp_path / 'first' / 'run.json'}: unknown fields" in told
    for name in ("tool", "attempts.mood", "environment.git.branch"):
        assert name in told
    assert load(tmp_path).runs["status"].tolist() == ["completed"] * 2


def test_a_later_format_is_refused_and_left_alone(run: RunDescription, tmp_path: Path) -> None:
    later = json.dumps(written(run) | {"format": 2, "attempts": "in another file"})
    (tmp_path / "run.json").write_text(later)
    with pytest.raises(
        UserError, match=r"run\.json: format 2 was written by a newer bnstudy"
    ) as raised:
        Record.read(tmp_path)
    assert not isinstance(raised.value, DamagedFile)
    with pytest.raises(UserError, match="written by a newer bnstudy"), Record.open(tmp_path, run):
        pass
    assert (tmp_path / "run.json").read_text() == later
    assert not list(tmp_path.glob("*.damaged"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"identity": ""}', "status: Field required"),
        ('{"identity": "", "status": "lost", "attempts": [], "config": {}}', "status: Input"),
        ("[]", "Input should be an object"),
        ("{", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
    ],
)
def test_what_is_wrong_with_a_damaged_file_is_told(content: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as raised:
        RunDescription.from_json(content, Path("run.json"))
    assert "\n" not in str(raised.value)


def test_a_count_of_samples_is_not_negative() -> None:
    (path,) = KEPT.glob("batchnorm-depth2-width2-seed0-*/run.json")
    content = json.loads(path.read_text())
    content["data"]["train"] = -1
    with pytest.raises(ValueError, match=r"data.train: Input should be greater than or equal to 0"):
        RunDescription.from_json(json.dumps(content), path)


def test_an_attempt_that_completes(run: RunDescription) -> None:
    attempt = run.start_attempt(Environment(packages={"bnstudy": __version__}))
    assert (run.status, attempt.status, attempt.version) == ("running", "running", __version__)
    entry = written(run)["attempts"][0]
    assert list(entry) == ["started", "ended", "status", "host", "pid", "version"]
    assert entry["ended"] is None
    assert not attempt.has_chosen_start
    attempt.resumed_from_epoch = None
    assert attempt.has_chosen_start
    run.update_progress(2.0, 0.5, False)
    assert not run.has_diverged
    run.finish(3.0)
    assert run.status == attempt.status == "completed"
    assert written(run)["timing"] == {"seconds": 3.0, "measure_seconds": 0.5}
    entry = written(run)["attempts"][0]
    assert entry["resumed_from_epoch"] is None
    assert entry["ended"] is not None
    assert "error" not in entry


def test_an_attempt_that_diverges(run: RunDescription) -> None:
    run.start_attempt(Environment())
    run.update_progress(1.0, 0.0, True)
    assert run.has_diverged
    run.finish(2.0)
    assert run.status == run.attempts[0].status == "diverged"


def test_attempts_that_fail_are_interrupted_or_killed(run: RunDescription) -> None:
    run.start_attempt(Environment())
    run.update_progress(1.0, 0.25, False)
    run.fail(RuntimeError("out of memory"), 2.0)
    assert (run.status, run.num_failures) == ("failed", 1)
    assert run.attempts[0].error == "RuntimeError: out of memory"
    run.start_attempt(Environment())
    run.interrupt(3.0)
    assert (run.status, run.num_failures) == ("interrupted", 1)
    run.start_attempt(Environment())
    run.start_attempt(Environment())  # as the one before was killed
    assert [one.status for one in run.attempts] == [
        "failed", "interrupted", "interrupted", "running",
    ]  # fmt: skip
    run.update_progress(4.0, 0.5)
    assert run.timing.seconds == 2.0 + 3.0 + 0.0 + 4.0
    assert run.timing.measure_seconds == 0.75


def test_the_version_of_earlier_attempts_is_noted_before_the_environment_changes(
    run: RunDescription,
) -> None:
    run.start_attempt(Environment(packages={"bnstudy": "0.1.3"}))
    run.attempts[0].version = None  # as version 0.1 left it
    run.start_attempt(Environment(packages={"bnstudy": __version__}))
    assert [one.version for one in run.attempts] == ["0.1", __version__]


def test_a_run_that_starts_over_keeps_its_attempts(run: RunDescription) -> None:
    run.start_attempt(Environment())
    run.data = module.DataFacts(sha256="b" * 64, train=10, test=5)
    run.target_sparsity = {"block01": 0.5}
    run.add_measurement(MeasuredLater(epochs=[1], metrics=["hoyer"]))
    run.final = Final(epoch=4)
    run.finish(1.0)
    assert written(run).keys() >= {"data", "target_sparsity", "measured_later"}
    run.start_over()
    content = written(run)
    assert content["status"] == "interrupted"
    assert content["final"] == {}
    assert not content.keys() & {"data", "target_sparsity", "measured_later"}
    assert len(content["attempts"]) == 1


def test_a_run_that_goes_on_keeps_the_options_of_its_callbacks(run: RunDescription) -> None:
    first = run.config | {"callbacks": {"drift": {"batches": 1}, "landscape": {}}}
    run.set_config(first)
    now = run.config | {"callbacks": {"drift": {"batches": 9}, "gradients": {"x": 1}}}
    used = run.update_config(now)
    assert used["callbacks"] == {"drift": {"batches": 1}, "gradients": {"x": 1}}
    assert run.callbacks == ["drift"]  # the others lack epochs
    assert run.config["callbacks"] == {
        "drift": {"batches": 1},
        "landscape": {},
        "gradients": {"x": 1},
    }


def test_numbers_that_are_not_finite_are_null(run: RunDescription) -> None:
    values = {"loss": float("nan"), "accuracy": 0.5, "loss_range": float("inf")}
    run.final = extract_final_numbers(
        [Row(3, 9, "train", -1, WHOLE_MODEL, None, "loss", 2.0, None)]
        + [Row(4, 9, "train", -1, WHOLE_MODEL, None, name, x, None) for name, x in values.items()]
        + [Row(4, 9, "train", 0, "block01", "act", "hoyer", 0.1, None)]
    )
    assert written(run)["final"] == {
        "epoch": 4, "train_loss": None, "train_accuracy": 0.5, "train_loss_range": None,
    }  # fmt: skip
    assert "NaN" not in run.to_json()
    assert "Infinity" not in run.to_json()
    again = RunDescription.model_validate_json(run.to_json())
    assert again.final.numbers == run.final.numbers
