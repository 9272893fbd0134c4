"""Command lines before Hydra reads them."""

import pytest

from bnstudy.config.composition import REQUIRED_KEYS
from bnstudy.config.schema import Config
from tests.conftest import CommandLine


@pytest.mark.parametrize("key", ["norm", "seed", "data", "study", "metrics.names"])
def test_a_required_key_cannot_be_deleted(key: str, command_line: CommandLine) -> None:
    for words in ([f"~{key}"], [f"~{key}", "sweep.dry_run=true", "-m"]):
        result = command_line(*words)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.startswith(f"~{key}: {key} is required\nSet it with {key}=..., or ")


def test_every_group_and_every_value_outside_of_groups_is_required() -> None:
    assert {key for key in REQUIRED_KEYS if "." not in key} == set(Config.model_fields)
