"""Two processes on one machine."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import SMALL, CommandLine, description, train_on_two_processes

pytestmark = pytest.mark.slow


def test_a_multirun_on_two_processes(command_line: CommandLine, tmp_path: Path) -> None:
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
            for row in pq.read_table(cell / "metrics.parquet").to_pylist():
                key = (
                    run["choices"]["norm"],
                    *(row[k] for k in ("epoch", "split", "layer", "metric")),
                )
                values.setdefault(key, {})[trainer] = row["value"]
    assert len(values) == 2 * 3 * (2 * (2 * 16 + 2) + 2)
    for (norm, epoch, *what), value in values.items():
        # Without BatchNorm two halves of a batch give the gradient of the whole; with it, each
        # process has its own statistics, and only the start is the same.
        if norm == "none" or epoch == 0:
            close = 0.03 if str(what[2]).startswith(("kmeans", "knn", "intrinsic")) else 1e-3
            assert value["ddp"] == pytest.approx(value["default"], rel=close, abs=1e-5), what
