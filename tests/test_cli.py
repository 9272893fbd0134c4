"""Behaviour that all commands share: exit statuses and warnings."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from bnstudy import terminal
from bnstudy.cli import command_line
from tests.conftest import SMALL


def test_an_interrupted_command_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop, command_line("Interrupted; nothing was written"):
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr().err == "Interrupted; nothing was written\n"


def test_warnings_of_bnstudy_are_printed_without_a_line_of_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # restored afterwards
    terminal.shorten_warnings.__wrapped__()
    form = warnings.formatwarning
    assert form("too small", UserWarning, terminal.__file__, 1) == "Warning: too small\n"
    assert form("old", DeprecationWarning, terminal.__file__, 1) != "Warning: old\n"
    assert form("too small", UserWarning, pytest.__file__, 1) != "Warning: too small\n"


@pytest.mark.slow
def test_metrics_without_a_value_are_warned_of_in_one_line(tmp_path: Path) -> None:
    few = (*SMALL, "probe.train=10", "probe.test=10", "metrics.names=[silhouette]")
    result = subprocess.run(
        [sys.executable, "-m", "bnstudy.train", *few],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    warning = "block01 at epoch 0: every class has only one sample; NaN for silhouette"
    assert [line for line in result.stderr.splitlines() if "NaN" in line] == [f"Warning: {warning}"]
