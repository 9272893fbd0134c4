"""The dashboard of a project as code: a workspace view of W&B's, and the heat map it draws."""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from bnstudy.adapters.wandb_internals import name_view
from bnstudy.errors import UserError
from bnstudy.headline import METRICS, choose_measured
from bnstudy.runs.paths import TABLE
from bnstudy.tracking.wandb_run import HEAT_MAP, TABLES, warn_once

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import BarPlot, Layout, LinePlot
    from wandb_workspaces.workspaces import Section, Workspace

NAME = "Normalizations, layer by layer"
NORM = "norm.name"  # in a run's configuration
EPOCH = "epoch"
COLUMNS, WIDTH, HEIGHT = 3, 8, 6  # of panels, in W&B's grid of 24


@dataclass(frozen=True)
class Measured:
    """What runs measure, of which the dashboard has panels.

    Attributes:
        layers: As they are named in the record, in the order of computation.
        metrics: Of representations.
    """

    layers: Sequence[str] = ("block01", "block02", "block03", "block04")
    metrics: Sequence[str] = METRICS


def measured_in(study: Path) -> Measured:
    """Find the layers of a study's runs, and the headline metrics that they have.

    Raises:
        UserError: No run of it has measured a layer.
    """
    tables = [str(path) for path in study.glob(f"*/{TABLE}")]
    rows = (
        duckdb.execute(
            """
            select layer, metric from read_parquet($tables) where site = 'act'
            group by layer, metric order by min(layer_index), layer, metric
            """,
            {"tables": tables},
        ).fetchall()
        if tables
        else []
    )
    if not rows:
        raise UserError(f"{study}: none of its runs has ended and measured a layer")
    metrics = {metric for _, metric in rows}
    headline = choose_measured(METRICS, metrics)
    return Measured(list(dict.fromkeys(layer for layer, _ in rows)), headline or sorted(metrics))


def heat_map() -> dict[str, Any]:
    """The custom chart, layer by epoch: Vega-Lite, with W&B's fields `${...}` still to be filled.

    Of a table in the long form it draws one metric of one split, a picture for each run.
    """
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "title": "${string:metric}, ${string:split} split",
        "data": {"name": "wandb"},
        "transform": [
            {"filter": {"field": "${field:metric}", "equal": "${string:metric}"}},
            {"filter": {"field": "${field:split}", "equal": "${string:split}"}},
        ],
        "facet": {"field": "name", "type": "nominal", "title": None},
        "columns": 2,
        "spec": {
            "mark": {"type": "rect", "tooltip": True},
            "encoding": {
                "x": {"field": "${field:x}", "type": "ordinal", "title": "epoch"},
                "y": {"field": "${field:y}", "type": "ordinal", "title": "layer"},
                "color": {
                    "field": "${field:value}",
                    "type": "quantitative",
                    "title": None,
                    "scale": {"scheme": "viridis"},
                },
            },
        },
    }


def import_workspaces() -> None:
    """Import wandb-workspaces, which declares its models as pydantic 1 did, and is warned of it.

    Raises:
        UserError: The package is not installed.
    """
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            import wandb_workspaces.workspaces  # noqa: F401
    except ImportError:
        raise UserError(
            "The package wandb-workspaces is not installed; pip install 'bnstudy[dashboard]'"
        ) from None


def workspace(entity: str, project: str, measured: Measured) -> "Workspace":
    """The view: accuracy by norm, then a section for each metric, then what depends on what.

    Args:
        entity: W&B's user or team.
        project: W&B's project.
        measured: What there are panels of.

    Raises:
        UserError: The package wandb-workspaces is not installed.
    """
    import_workspaces()
    from wandb_workspaces import workspaces as ws
    from wandb_workspaces.reports.v2 import interface as wr

    accuracy = wr.SummaryMetric("final/test_accuracy")

    places = _places()
    panels: list[Any] = [
        _curve(f"{split}/{name}", f"{split} {name}", next(places))
        for name in ("accuracy", "loss")
        for split in ("train", "validation", "test")
    ]
    panels.append(_bars("final/test_accuracy", "final test accuracy", next(places)))
    general = ws.Section("Accuracy and loss by norm", is_open=True, panels=panels)

    places = _places()
    against = [
        wr.ScatterPlot(
            title=f"{metric} against test accuracy",
            x=wr.SummaryMetric(f"final/{metric}"),
            y=accuracy,
            layout=next(places),
        )
        for metric in measured.metrics
    ]
    columns = [
        *(
            wr.ParallelCoordinatesPlotColumn(metric=wr.Config(key), display_name=name)
            for key, name in (("model.depth", "depth"), ("model.width", "width"), (NORM, "norm"))
        ),
        *(
            wr.ParallelCoordinatesPlotColumn(
                metric=wr.SummaryMetric(f"final/{metric}"), display_name=metric
            )
            for metric in measured.metrics[:3]
        ),
        wr.ParallelCoordinatesPlotColumn(metric=accuracy, display_name="test accuracy"),
    ]
    parallel = wr.ParallelCoordinatesPlot(
        title="depth, width and norm", columns=columns, layout=next(places)
    )
    dependencies = ws.Section(
        "Sparsity, clustering and accuracy", is_open=True, panels=[*against, parallel]
    )
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            general,
            dependencies,
            *(_of_metric(metric, measured.layers, entity) for metric in measured.metrics),
        ],
        settings=ws.WorkspaceSettings(x_axis=EPOCH, max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=ws.And(
                ws.Metric("JobType") == "train", ws.Metric("State").isin(["running", "finished"])
            ),
            groupby=[ws.Config(NORM)],
            pinned_columns=[
                "config:norm.name",
                "config:model.depth",
                "config:model.width",
                "config:seed",
                "summary:status",
                "summary:final/test_accuracy",
                *(f"summary:final/{metric}" for metric in measured.metrics),
            ],
        ),
    )


def push(project: str, entity: str | None, measured: Measured) -> str:
    """Make the dashboard, or bring the one that is there up to date.

    Its name follows from the project, so that there is only ever one; whatever was changed of it by
    hand is as before afterwards.

    Args:
        project: W&B's project, made if it is not there.
        entity: W&B's user or team; None: the default one.
        measured: What there are panels of.

    Returns:
        Its address.

    Raises:
        UserError: W&B cannot be asked.
    """
    from bnstudy.tracking.sync import connect

    api, entity = connect(entity)

    view = workspace(entity, project, measured)
    try:
        name_view(view, _view_name(entity, project))
    except ValueError as error:  # it is not there; perhaps nor is the project
        if "Project" in str(error):
            api.create_project(project, entity)
    view.save()  # type: ignore[no-untyped-call]
    try:
        api.create_custom_chart(
            entity=entity,
            name=HEAT_MAP,
            display_name="Layer by epoch",
            spec_type="vega2",
            access="private",
            spec=heat_map(),
        )
    except Exception as error:  # of several kinds; W&B changes no chart that is there
        if "exist" not in str(error):
            warn_once(f"W&B did not make {entity}/{HEAT_MAP}, the chart of the heat maps ({error})")
    url: str = view.url
    return url


def _view_name(entity: str, project: str) -> str:
    """As W&B makes them, but always the same for a project."""
    return f"nw-{hashlib.sha256(f'{entity}/{project}'.encode()).hexdigest()[:11]}-v"


def _of_metric(metric: str, layers: Sequence[str], entity: str) -> "Section":
    """A metric's section: its heat maps, and its course in each layer, by norm."""
    from wandb_workspaces import workspaces as ws
    from wandb_workspaces.reports.v2 import interface as wr

    places = _places()
    panels: list[Any] = [
        wr.CustomChart(
            query={"summaryTable": {"tableKey": TABLES["representations"]}},
            chart_name=f"{entity}/{HEAT_MAP}",
            chart_fields={"x": "epoch", "y": "layer", "value": "value"}
            | {"metric": "metric", "split": "split"},
            chart_strings={"metric": metric, "split": split},
            layout=next(places),
        )
        for split in ("train", "test")
    ]
    panels.append(_bars(f"final/{metric}", f"{metric} at the end, mean over layers", next(places)))
    panels += [
        _curve(f"rep/train/{layer}/{metric}", f"{metric}, {layer}", next(places))
        for layer in layers
    ]
    return ws.Section(metric, is_open=False, panels=panels)


def _bars(name: str, title: str, place: "Layout") -> "BarPlot":
    """A number that runs end with: the mean of each norm's runs, and their standard deviation."""
    from wandb_workspaces.reports.v2 import interface as wr

    return wr.BarPlot(
        title=title,
        metrics=[wr.SummaryMetric(name)],
        groupby=wr.Config(NORM),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        layout=place,
    )


def _curve(name: str, title: str, place: "Layout") -> "LinePlot":
    """A value's course over epochs: the mean of each norm's runs, and their standard deviation."""
    from wandb_workspaces.reports.v2 import interface as wr

    return wr.LinePlot(
        title=title,
        x=EPOCH,
        y=[name],
        groupby=wr.Config(NORM),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        max_runs_to_show=100,
        layout=place,
    )


def _places() -> "Iterator[Layout]":
    """Where panels go, row by row."""
    from wandb_workspaces.reports.v2 import interface as wr

    for number in count():
        row, column = divmod(number, COLUMNS)
        yield wr.Layout(x=column * WIDTH, y=row * HEIGHT, w=WIDTH, h=HEIGHT)
