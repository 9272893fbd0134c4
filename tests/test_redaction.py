"""Tests that credentials stand in no record, log or file of a run."""

import json
import logging
import traceback
from pathlib import Path

import pytest
import yaml

from bnstudy.config.identity import compute_identity
from bnstudy.redaction import RedactingFormatter, redact, redact_values
from bnstudy.runs.description import RunDescription
from tests.conftest import SMALL, CommandLine, description, only_cell

SECRET = "hunter2hunter2hunter2"


@pytest.mark.parametrize(
    "text",
    [
        f"--api-key {SECRET}",
        f"--api-key={SECRET}",
        f"--hf_token '{SECRET} {SECRET}'",
        f"logger.api_key={SECRET}",
        f"'api_key': '{SECRET}', ",
        f"WANDB_API_KEY={SECRET}",
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"authorization: Basic {SECRET}",
        f"failed with Bearer {SECRET}",
        f"https://me:{SECRET}@host/x",
        f"data.root=https\\://me\\:{SECRET}@host/x",
        f"https://me:{SECRET}@{SECRET}@host/x",
        f"https:\\/\\/{SECRET}@host",
        f"https://host/x?token={SECRET}&y=1",
        f"ghp_{SECRET}",
        f"github_pat_11{SECRET}",
        f"glpat-{SECRET}",
        f"hf_{SECRET}",
        f"xoxb-1234-{SECRET}",
        f"wandb_v1_{SECRET}",
        f"eyJhbGciOiJI.{SECRET}.{SECRET}",
    ],
)
def test_credentials_are_removed(text: str) -> None:
    for one in (text, f"before, {text} after"):
        assert SECRET not in redact(one)
        assert SECRET not in json.dumps(redact_values({"x": [one]}))
    assert redact(f"before {text}").startswith("before ")
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize("text", ["AKIAIOSFODNN7EXAMPLE", "0123456789" * 4])
def test_keys_without_a_name_are_removed(text: str) -> None:
    assert text not in redact(f"with {text}, or")


@pytest.mark.parametrize(
    "text",
    [
        "norm=batchnorm,none 'optim.lr={batchnorm:0.02,none:0.01}' seed=0",
        "data.root=/data/me@lab/images output_root=s3://bucket/x",
        "model.class_token=true model.tokens=12 tokenizer=x author=me",
        "the bearer of news; a token; SHA-256 " + "0" * 64,
    ],
)
def test_other_text_is_kept(text: str) -> None:
    assert redact(text) == text
    assert redact_values({"x": [text], "class_token": True, "tokens": "8"})["x"] == [text]


def test_hashes_of_a_configuration_are_kept() -> None:
    config = {"model": {"revision": "0123456789" * 4, "api_key": "0123456789" * 4}}
    assert redact_values(config) == {
        "model": {"revision": "0123456789" * 4, "api_key": "[removed]"}
    }


def test_tracebacks_in_logs_are_redacted() -> None:
    try:
        raise OSError(f"https://me:{SECRET}@host: no answer")
    except OSError as error:
        info = (type(error), error, error.__traceback__)
    assert SECRET in "".join(traceback.format_exception(*info))
    record = logging.LogRecord("x", 40, "x", 1, f"token={SECRET}", (), info)
    assert SECRET not in RedactingFormatter().format(record)


def test_the_identity_is_that_of_the_true_value() -> None:
    config = {"study": "s", "seed": 0, "callbacks": {}, "norm": {}, "optim": {}, "regularizer": {}}
    config |= {"model": {"token": SECRET}, "data": {}, "trainer": {}, "probe": {}}
    run = RunDescription.new(config, "c", {}, [f"model.token={SECRET}"])
    assert run.identity == compute_identity(config)
    assert SECRET not in run.to_json()
    assert json.loads(run.to_json())["config"]["model"] == {"token": "[removed]"}
    assert run.config == config  # the run itself goes on with the true value


@pytest.mark.slow
def test_no_file_of_a_run_has_a_password(command_line: CommandLine, tmp_path: Path) -> None:
    arguments = (
        *SMALL, "trainer.max_epochs=1", "model.depth=1", "metrics=none", "norm=none",
        "logger=wandb", "logger.mode=offline", f"+data.name=https\\://me\\:{SECRET}@host/x",
    )  # fmt: skip
    for _ in range(2):  # trained, then recognized as complete
        result = command_line(*arguments, "-m")
        assert result.returncode == 0, result.stderr
        assert SECRET not in result.stdout + result.stderr
    assert "1 of 1 cells complete" in result.stdout
    cell = only_cell(tmp_path / "multirun")
    assert description(cell)["config"]["data"]["name"] == "https://[removed]@host/x"
    overrides = yaml.safe_load((cell / ".hydra" / "overrides.yaml").read_text())
    assert "norm=none" in overrides
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path


def test_no_error_message_has_a_password(command_line: CommandLine) -> None:
    result = command_line(*SMALL, f"data.root=/dev/null/https://me:{SECRET}@host")
    assert result.returncode == 1
    assert SECRET not in result.stdout + result.stderr
