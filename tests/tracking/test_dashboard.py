"""The dashboard: pushed, printed, drawn; and a project as studies again."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bnstudy.dashboard import main
from bnstudy.tracking.workspace import find_measured, make_heat_map
from tests.conftest import CommandLine, description
from tests.study.studies import Studies
from tests.tracking.runs import RUN, table
from tests.tracking.server import KEY, ServedRun, Server


def panels(spec: dict[str, Any]) -> list[dict[str, Any]]:
    sections = spec["section"]["panelBankConfig"]["sections"]
    return [panel for section in sections for panel in section["panels"]]


def test_the_spec_is_one_that_w_and_b_reads(command_line: CommandLine) -> None:
    result = command_line("push", "--json", "--entity", "team", main=main)
    assert result.returncode == 0, result.stderr
    from wandb_workspaces.workspaces.internal import WorkspaceViewspec  # without its warnings now

    WorkspaceViewspec.model_validate_json(result.stdout)
    spec = json.loads(result.stdout)
    views = {panel["viewType"] for panel in panels(spec)}
    assert views == {
        "Run History Line Plot",
        "Bar Chart",
        "Scatter Plot",
        "Parallel Coordinates Plot",
        "Vega2",
    }
    curves = [panel["config"] for panel in panels(spec) if "Line" in panel["viewType"]]
    assert ["rep/train/block01/silhouette"] in [curve["metrics"] for curve in curves]
    for curve in curves:
        assert curve["xAxis"] == "epoch"
        assert (curve["groupBy"], curve["groupAgg"]) == ("norm.value.name", "mean")
        assert curve["groupArea"] == "stddev"


def test_a_dashboard_that_is_pushed_twice_is_there_once(
    command_line: CommandLine, server: Server
) -> None:
    first = command_line("push", "--project", "p", main=main)
    assert first.returncode == 0, first.stderr
    second = command_line("push", "--project", "p", main=main)
    assert second.returncode == 0, second.stderr
    assert first.stdout == second.stdout
    assert "/tester/p?nw=" in first.stdout
    assert len(server.views) == 1
    assert list(server.charts) == ["tester/bnstudy-layer-epoch"]
    command_line("push", "--project", "another", main=main)
    assert len(server.views) == 2


def test_the_layers_and_metrics_of_a_study_are_found(studies: Studies) -> None:
    studies.add("batchnorm", layers={"silhouette": [0.1, 0.2], "unit_sparsity": [0.3, 0.4]})
    measured = find_measured(studies.folder)
    assert list(measured.layers) == ["block01", "block02"]
    assert list(measured.metrics) == ["unit_sparsity", "silhouette"]


def filled(spec: dict[str, Any], fields: dict[str, str], strings: dict[str, str]) -> dict[str, Any]:
    """A custom chart as W&B draws it."""
    text = json.dumps(spec)
    for kind, values in (("field", fields), ("string", strings)):
        for name, value in values.items():
            text = text.replace(f"${{{kind}:{name}}}", value)
    assert "${" not in text
    drawn: dict[str, Any] = json.loads(text)
    return drawn


@pytest.mark.slow
def test_the_heat_map_draws_what_was_logged(
    command_line: CommandLine, server: Server, tmp_path: Path
) -> None:
    vl_convert = pytest.importorskip("vl_convert")
    assert command_line(*RUN, "norm=batchnorm,none", "-m").returncode == 0
    rows = []
    for run in server.runs.values():
        panel = run.config["_wandb"]["value"]["visualize"]["representations"]["panel_config"]
        assert panel["panelDefId"] == "tester/bnstudy-layer-epoch"
        columns, data = table(run, "representations_table")
        rows += [dict(zip(columns, row, strict=True)) | {"name": run.name} for row in data]
    spec = filled(make_heat_map(), panel["fieldSettings"], panel["stringSettings"])
    spec["data"] = {"values": rows}
    svg = vl_convert.vegalite_to_svg(json.dumps(spec))
    for name in ("block01", "block02", *(run.name for run in server.runs.values())):
        assert name in svg
    assert svg.count('aria-roledescription="rect mark"') == 2 * 2 * 3  # runs, layers, epochs
    (tmp_path / "heat_map.png").write_bytes(vl_convert.vegalite_to_png(json.dumps(spec), scale=2))


@pytest.mark.slow
def test_a_project_comes_back_as_it_was(
    command_line: CommandLine, server: Server, tmp_path: Path
) -> None:
    assert command_line(*RUN, "norm=batchnorm,none", "-m").returncode == 0
    server.runs["x7"] = ServedRun("x7", "tester", "bnstudy", name="another's", job_type="train")
    result = command_line("pull", "--output-root", "pulled", main=main)
    assert result.returncode == 0, result.stderr
    assert "2 pulled" in result.stdout
    for cell in (tmp_path / "multirun" / "mnist5k_cnn").glob("*-*/"):
        pulled = tmp_path / "pulled" / "mnist5k_cnn" / cell.name
        table = pq.read_table(cell / "metrics.parquet")
        assert pq.read_table(pulled / "metrics.parquet").equals(table)
        ours, theirs = description(cell), description(pulled)
        for key in ("identity", "status", "final", "config", "metrics", "choices", "data"):
            assert theirs[key] == ours[key]
    again = command_line("pull", "--output-root", "pulled", main=main)
    assert "2 here already" in again.stdout


def test_names_that_lead_elsewhere_are_refused(
    command_line: CommandLine, server: Server, tmp_path: Path
) -> None:
    run_id = "01234567-01234567-1"
    server.runs[run_id] = ServedRun(run_id, "tester", "bnstudy", "../../elsewhere", "study")
    result = command_line("pull", "--output-root", "pulled", main=main)
    assert result.returncode == 1
    assert "1 without a valid folder name" in result.stderr
    assert "Rename the runs" in result.stderr  # the same command would refuse them again
    assert not (tmp_path / "pulled").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sync", "multirun"), "Not logged in"),
        (("pull",), "Not logged in"),
        (("push",), "Not logged in"),
        (("push", "--json", "--study", "nowhere"), "nowhere: no run has ended"),
    ],
)
def test_mistakes_are_told(
    command_line: CommandLine, arguments: tuple[str, ...], message: str
) -> None:
    result = command_line(*arguments, main=main)
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) <= 2


def test_a_server_that_does_not_answer_is_told(
    command_line: CommandLine, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnstudy.tracking.sync.TIMEOUT", 1)
    server.go_away()
    result = command_line("pull", main=main)
    assert result.returncode == 1
    assert "does not answer like a W&B server" in result.stderr
    assert KEY not in result.stderr


@pytest.mark.slow
def test_the_api_key_is_in_no_output_file_or_upload(
    command_line: CommandLine, server: Server, tmp_path: Path
) -> None:
    result = command_line(*RUN)
    outputs = [result.stdout, result.stderr]
    for arguments in (("sync", "multirun/mnist5k_cnn"), ("pull",), ("push",)):
        result = command_line(*arguments, main=main)
        outputs += [result.stdout, result.stderr]
    assert KEY not in "".join(outputs)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    for content in server.storage.values():
        assert KEY.encode() not in content
