"""The table at a multirun's end, over records with known numbers."""

import json
import math
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bnstudy.config.composition import resolve
from bnstudy.runs.description import RunDescription
from bnstudy.runs.long_table import Row
from bnstudy.runs.parts import Status
from bnstudy.runs.record import Record
from bnstudy.study.present.terminal_table import print_table
from tests.conftest import Compose
from tests.study.studies import Studies

DIRECTIONS = {"silhouette": "higher", "within_between_ratio": "lower", "unit_sparsity": None}


@pytest.fixture
def add(composed: Compose, tmp_path: Path) -> Any:
    def add_run(
        *overrides: str,
        norm: str,
        status: Status = "completed",
        splits: Sequence[str] = ("train", "test"),
        **values: float,
    ) -> None:
        config = resolve(composed(f"norm={norm}", *overrides))
        name = "-".join([norm, *overrides])
        choices = {"norm": norm, "model": "cnn", "data": "x"}
        described = RunDescription.new(config, name, choices, [])
        described.status, described.metrics = status, dict(DIRECTIONS)
        record = Record(tmp_path / "study" / name, described)
        performance = [
            Row(5, 9, split, -1, "model", None, metric, values.get(metric, 0.5), None)
            for split in splits
            for metric in ("loss", "accuracy")
        ]
        layers = [
            Row(epoch, 9, "train", 0, "block01", "act", metric, values[metric] * epoch / 5, None)
            for metric in DIRECTIONS
            if metric in values
            for epoch in (0, 5)
        ]
        record.table.write_part(5, performance + layers)
        record.join_parts()
        record.remove_intermediate_files()
        record.save()

    return add_run


def table(tmp_path: Path) -> list[str]:
    output = StringIO()
    print_table(tmp_path / "study", Console(file=output, width=60))
    return [" ".join(line.split()) for line in output.getvalue().splitlines()]


@pytest.mark.slow
def test_mean_and_standard_deviation_over_seeds(add: Any, tmp_path: Path) -> None:
    for seed, (ours, theirs) in enumerate([(0.1, 0.3), (0.2, 0.5)]):
        for norm, value in (("batchnorm", ours), ("none", theirs)):
            metrics = {"silhouette": value, "within_between_ratio": value}
            add(f"seed={seed}", norm=norm, accuracy=0.9, **metrics)
    lines = table(tmp_path)
    assert "metric layer batchnorm none" in lines
    assert "5 epochs 2 seeds 2 seeds" in lines
    assert "silhouette ↑ block01 0.150 ± 0.071 0.400 ± 0.141 *" in lines
    assert "within_between_ratio ↓ block01 0.150 ± 0.071 * 0.400 ± 0.141" in lines
    assert "test accuracy ↑ 0.900 ± 0.000 0.900 ± 0.000" in lines  # a tie is nobody's


@pytest.mark.slow
def test_means_that_differ_by_rounding_alone_are_a_tie(add: Any, tmp_path: Path) -> None:
    for seed, (ours, theirs) in enumerate([(970, 975), (980, 975)]):
        for norm, right in (("batchnorm", ours), ("none", theirs)):
            add(f"seed={seed}", norm=norm, accuracy=float(np.float32(right / 1000)))
    (row,) = (line for line in table(tmp_path) if line.startswith("test accuracy"))
    assert "*" not in row


@pytest.mark.slow
def test_each_point_of_the_grid_is_compared_for_itself(add: Any, tmp_path: Path) -> None:
    for depth, sparsity in ((2, 0.2), (4, 0.4), (10, 0.9)):
        for norm in ("batchnorm", "none"):
            add(f"model.depth={depth}", norm=norm, unit_sparsity=sparsity)
    lines = table(tmp_path)
    assert lines.index("depth=2 1 seed 1 seed") < lines.index("unit_sparsity block01 0.200 0.200")
    assert lines.index("depth=4 1 seed 1 seed") < lines.index("unit_sparsity block01 0.400 0.400")
    assert lines.index("depth=4 1 seed 1 seed") < lines.index("depth=10 1 seed 1 seed")


def test_a_validation_split_is_shown_where_there_is_one(add: Any, tmp_path: Path) -> None:
    add(norm="none", accuracy=0.8)
    assert not any(line.startswith("validation") for line in table(tmp_path))
    splits = ("train", "validation", "test")
    for norm, accuracy in (("none", 0.6), ("batchnorm", 0.7)):
        add("data.validation=0.1", norm=norm, splits=splits, accuracy=accuracy)
    lines = table(tmp_path)
    shown = [line for line in lines if line.startswith("validation accuracy")]
    assert shown == ["validation accuracy ↑ 0.700 * 0.600"]
    assert "validation=0.1 1 seed 1 seed" in lines
    assert "validation=0 0 seeds 1 seed" in lines
    assert "test accuracy ↑ – 0.800" in lines


def test_options_of_a_norm_are_variants_of_it(add: Any, tmp_path: Path) -> None:
    for momentum in (0.1, 0.5):
        add(f"norm.momentum={momentum}", norm="batchnorm", silhouette=momentum)
    add(norm="none", silhouette=0.2)
    lines = table(tmp_path)
    assert "metric layer batchnorm momentum=0.1 batchnorm momentum=0.5 none" in lines


@pytest.mark.slow
def test_runs_that_diverged_or_have_not_ended_are_told(add: Any, tmp_path: Path) -> None:
    add("seed=0", norm="none", silhouette=0.1)
    add("seed=1", norm="none", silhouette=math.nan, status="diverged")
    add("seed=2", norm="none", silhouette=0.9, status="failed")
    add("seed=0", norm="batchnorm", silhouette=0.2)
    add("seed=1", norm="batchnorm", silhouette=0.2)
    lines = table(tmp_path)
    assert "5 epochs 2 seeds 2 seeds, 1 diverged" in lines
    assert "silhouette ↑ block01 0.200 ± 0.000 0.100 (1 of 2)" in lines  # which is not marked
    assert any("5 runs: 3 completed, 1 diverged, 1 failed" in line for line in lines)


def test_counts_of_zeros_are_left_out_without_a_relu(add: Any, tmp_path: Path) -> None:
    add(norm="evonorm_s0", unit_sparsity=0.0, silhouette=0.1)
    add(norm="none", unit_sparsity=0.5, silhouette=0.2)
    lines = table(tmp_path)
    assert "metric layer evonorm_s0 none" in lines or "metric layer none evonorm_s0" in lines
    (row,) = [line for line in lines if line.startswith("unit_sparsity")]
    assert sorted(row.split()[2:]) == ["0.500", "–"]
    note = "Counts of zeros are left out for norms without a ReLU (evonorm_s0)."
    assert note in " ".join(lines)


def test_a_study_without_a_complete_cell_has_no_table(add: Any, tmp_path: Path) -> None:
    add(norm="none", status="failed")
    assert table(tmp_path)[0].endswith("(1 run: 1 failed)")


def test_directions_come_from_the_record(add: Any, tmp_path: Path) -> None:
    add(norm="none", silhouette=0.1)
    record = tmp_path / "study" / "none" / "run.json"
    content = json.loads(record.read_text())
    content["metrics"]["silhouette"] = "lower"
    record.write_text(json.dumps(content))
    assert any(line.startswith("silhouette ↓") for line in table(tmp_path))


def test_runs_of_different_versions_have_tables_of_their_own(studies: Studies) -> None:
    for seed, version in enumerate(("0.1.0", "0.1.0", "0.2.0")):
        studies.add("none", seed, layers={"unit_sparsity": [0.1 * seed]}, version=version)
    output = StringIO()
    print_table(studies.folder, Console(file=output, width=60))
    lines = [" ".join(line.split()) for line in output.getvalue().splitlines()]
    assert [line for line in lines if "not comparable with the others" in line] == [
        "2 runs of digits (SHA-256 aaaaaaaaaaaa), probe of 10 train + 10 test, bnstudy 0.1, "
        "not comparable with the others:",
        "1 run of digits (SHA-256 aaaaaaaaaaaa), probe of 10 train + 10 test, bnstudy 0.2, "
        "not comparable with the others:",
    ]
    shown = [line for line in lines if line.startswith("unit_sparsity")]
    assert shown == ["unit_sparsity block01 0.050 ± 0.071", "unit_sparsity block01 0.200"]
