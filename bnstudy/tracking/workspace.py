"""Dashboard of a W&B project, defined in code: a workspace view and its heat map."""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import escape
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from bnstudy.adapters.wandb_internals import name_view
from bnstudy.errors import UserError
from bnstudy.headline import HEADLINE_METRICS, choose_measured
from bnstudy.runs.long_table import LongTable
from bnstudy.runs.paths import TABLE, CellPaths
from bnstudy.terminal import console
from bnstudy.terms import SPLITS
from bnstudy.tracking.sync import connect
from bnstudy.tracking.wandb_run import HEAT_MAP, HEAT_MAP_FIELDS, TABLES, warn_once

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import BarPlot, Layout, LinePlot
    from wandb_workspaces.workspaces import Section, Workspace

NAME = "Normalizations, layer by layer"  # shown in W&B
NORM = "norm.name"  # in a run's configuration
EPOCH = "epoch"
COLUMNS, WIDTH, HEIGHT = 3, 8, 6  # panels per row, and a panel's size in W&B's grid of 24 columns


@dataclass(frozen=True)
class Measured:
    """Layers and metrics that the dashboard has panels for.

    Attributes:
        layers: Names of the layers as in the record, in the order of computation.
        metrics: Names of representation metrics.
    """

    layers: Sequence[str] = ("block01", "block02", "block03", "block04")
    metrics: Sequence[str] = HEADLINE_METRICS


def find_measured(study: Path) -> Measured:
    """Find the layers and the headline metrics that a study's runs have measured.

    If no headline metric was measured, all measured metrics are returned.

    Raises:
        UserError: No run of the study has measured a layer.
    """
    tables = [escape(str(path)) for path in _undamaged_tables(study)]
    rows = []
    if tables:
        with duckdb.connect() as connection:
            rows = connection.execute(
                """
                select layer, metric from read_parquet($tables, hive_partitioning = false)
                where site = 'act'
                group by layer, metric order by min(layer_index), layer, metric
                """,
                {"tables": tables},
            ).fetchall()
    if not rows:
        raise UserError(f"{study}: no run has ended and measured a layer")
    metrics = {metric for _, metric in rows}
    headline = choose_measured(HEADLINE_METRICS, metrics)
    return Measured(list(dict.fromkeys(layer for layer, _ in rows)), headline or sorted(metrics))


def _undamaged_tables(study: Path) -> Iterator[Path]:
    """Yield the long tables of a study's runs; print which are left out."""
    for path in sorted(study.glob(f"*/{TABLE}")):
        if damage := LongTable(CellPaths(path.parent)).find_damage():
            console.print(f"{path} is left out, as it is damaged ({damage})", style="yellow")
        else:
            yield path


def make_heat_map() -> dict[str, Any]:
    """Make the Vega-Lite specification of the custom chart, layer by epoch.

    It contains W&B's placeholders `${...}`. The chart draws one metric of one split from a table in
    long form, as one heat map per run.
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


def make_workspace(entity: str, project: str, measured: Measured) -> "Workspace":
    """Make the workspace view.

    It has sections for accuracy and loss by norm, for the relations between metrics and accuracy,
    and for each metric.

    Args:
        entity: W&B user or team.
        project: W&B project.
        measured: Layers and metrics to make panels for.

    Raises:
        UserError: The package wandb-workspaces is not installed.
    """
    try:
        # wandb-workspaces uses functions that pydantic 2 has deprecated.
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            from wandb_workspaces import workspaces as ws
            from wandb_workspaces.reports.v2 import interface as wr
    except ImportError:
        raise UserError(
            "The package wandb-workspaces is not installed; pip install 'bnstudy[dashboard]'"
        ) from None

    accuracy = wr.SummaryMetric("final/test_accuracy")

    layouts = _layouts()
    panels: list[Any] = [
        _curve(f"{split}/{name}", f"{split} {name}", next(layouts))
        for name in ("probe_accuracy", "probe_loss")
        for split in SPLITS
    ]
    panels.append(_bars("final/test_accuracy", "final test accuracy", next(layouts)))
    general = ws.Section("Accuracy and loss by norm", is_open=True, panels=panels)

    layouts = _layouts()
    scatter_plots = [
        wr.ScatterPlot(
            title=f"{metric} against test accuracy",
            x=wr.SummaryMetric(f"final/{metric}"),
            y=accuracy,
            layout=next(layouts),
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
        title="depth, width and norm", columns=columns, layout=next(layouts)
    )
    dependencies = ws.Section(
        "Sparsity, clustering and accuracy", is_open=True, panels=[*scatter_plots, parallel]
    )
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            general,
            dependencies,
            *(_metric_section(metric, measured.layers, entity) for metric in measured.metrics),
        ],
        settings=ws.WorkspaceSettings(x_axis=EPOCH, max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=ws.And(
                ws.Metric("JobType") == "train", ws.Metric("State").isin(["running", "finished"])
            ),
            groupby=[ws.Config(NORM)],
            pinned_columns=[
                f"config:{NORM}",
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
    """Create the dashboard of a project, or update the existing one.

    The name is derived from the project, so that there is only one dashboard per project. Changes
    made by hand are overwritten.

    Args:
        project: W&B project, created if it does not exist.
        entity: W&B user or team; None for the default one.
        measured: Layers and metrics to make panels for.

    Returns:
        URL of the dashboard.

    Raises:
        UserError: W&B is not available.
    """
    api, entity = connect(entity)
    view = make_workspace(entity, project, measured)
    try:
        name_view(view, _view_name(entity, project))
    except ValueError as error:  # the view does not exist, and possibly neither does the project
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
            spec=make_heat_map(),
        )
    except Exception as error:  # of several types; W&B does not update an existing chart
        if "exist" not in str(error):
            warn_once(f"W&B did not make {entity}/{HEAT_MAP}, the chart of the heat maps ({error})")
    url: str = view.url
    return url


def _view_name(entity: str, project: str) -> str:
    """Return the view's name: in the format of W&B's names, but fixed for a project."""
    return f"nw-{hashlib.sha256(f'{entity}/{project}'.encode()).hexdigest()[:11]}-v"


def _metric_section(metric: str, layers: Sequence[str], entity: str) -> "Section":
    """Make a metric's section: its heat maps, and its curve over epochs per layer, by norm."""
    from wandb_workspaces import workspaces as ws
    from wandb_workspaces.reports.v2 import interface as wr

    layouts = _layouts()
    panels: list[Any] = [
        wr.CustomChart(
            query={"summaryTable": {"tableKey": TABLES["representations"]}},
            chart_name=f"{entity}/{HEAT_MAP}",
            chart_fields=HEAT_MAP_FIELDS,
            chart_strings={"metric": metric, "split": split},
            layout=next(layouts),
        )
        for split in SPLITS
    ]
    panels.append(_bars(f"final/{metric}", f"{metric} at the end, mean over layers", next(layouts)))
    panels += [
        _curve(f"rep/train/{layer}/{metric}", f"{metric}, {layer}", next(layouts))
        for layer in layers
    ]
    return ws.Section(metric, is_open=False, panels=panels)


def _bars(name: str, title: str, layout: "Layout") -> "BarPlot":
    """Make a bar plot of a final value: mean and standard deviation over the runs of each norm."""
    from wandb_workspaces.reports.v2 import interface as wr

    return wr.BarPlot(
        title=title,
        metrics=[wr.SummaryMetric(name)],
        groupby=wr.Config(NORM),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        layout=layout,
    )


def _curve(name: str, title: str, layout: "Layout") -> "LinePlot":
    """Make a line plot of a value over epochs: mean and standard deviation of each norm's runs."""
    from wandb_workspaces.reports.v2 import interface as wr

    return wr.LinePlot(
        title=title,
        x=EPOCH,
        y=[name],
        groupby=wr.Config(NORM),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        max_runs_to_show=100,
        layout=layout,
    )


def _layouts() -> "Iterator[Layout]":
    """Yield the layouts of successive panels, row by row."""
    from wandb_workspaces.reports.v2 import interface as wr

    for number in count():
        row, column = divmod(number, COLUMNS)
        yield wr.Layout(x=column * WIDTH, y=row * HEIGHT, w=WIDTH, h=HEIGHT)
