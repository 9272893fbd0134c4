"""Runs with the real SDK online, against a local server."""

from collections import Counter
from pathlib import Path

from bnstudy.models import Classifier
from tests.conftest import SMALL, CommandLine, description, only_cell
from tests.dashboards.server import Server

QUICK = (*SMALL[:-1], "logger=wandb", "metrics.names=[unit_sparsity,silhouette]")


def test_a_run_is_there_whole(command_line: CommandLine, server: Server, tmp_path: Path) -> None:
    result = command_line(*QUICK)
    assert result.returncode == 0, result.stderr
    print(result)
    (run,) = server.runs.values()
    cell = only_cell(tmp_path / "multirun")
    print(run)
    print(run.files.keys())
    print(server.artifacts, server.operations)
    assert 0
