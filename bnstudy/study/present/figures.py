"""Figures of a study in publication size, drawn with Matplotlib."""

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bnstudy.errors import UserError
from bnstudy.headline import FAMILIES, choose_measured, in_words
from bnstudy.study.analysis import Analysis
from bnstudy.study.inference.columns import Numbers
from bnstudy.study.inference.paired import CONFIDENCE, MIN_PAIRS
from bnstudy.study.load.matrix import are_activations, load_shared_columns
from bnstudy.study.present.drawing import STYLE
from bnstudy.terms import choose_curve

WIDTH = 6.75  # inches; two columns of a paper
MAX_METRICS = 2  # metrics of a family that are drawn over the layers
MAX_PANELS = 4  # layers of a figure with one panel per layer
MAX_VECTOR_MARKERS = 1_000  # markers of a panel; more are rasterized in all formats

# Colours for all kinds of colour vision (Okabe and Ito 2008), with markers for black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"


class Plot:
    """Figures of a study; each method returns a Matplotlib figure.

    Args:
        analysis: Analysis of the study.
    """

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        treatments = analysis.study.treatments
        self.looks: dict[str, dict[str, Any]] = {
            name: {"color": colour, "marker": marker}
            for name, colour, marker in zip(
                treatments, cycle(COLOURS), cycle(MARKERS), strict=False
            )
        }

    @mpl.rc_context(STYLE)
    def layers(self, metric: str, split: str = "train", depth: int | None = None) -> Figure:
        """Draw a metric over the layers: means and standard deviations, and paired differences.

        Args:
            metric: Name of the metric.
            split: Split whose probe set is shown.
            depth: Depth of the networks that are shown; None: all networks, at relative depth if
                they have different numbers of layers.
        """
        found = self.analysis
        averages, effects = (
            (found.averages, found.overall_effects) if depth is None else found.select_depth(depth)
        )
        figure = Figure((WIDTH, 2.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        last = _of_layers(averages, metric, split)
        for name, table in last.groupby("treatment"):
            label = f"{name}, {_sample_size(table)}"
            left.errorbar(
                table["place"], table["mean"], table["sd"], label=label, **self.looks[str(name)]
            )
        left.set(title="mean ± standard deviation", ylabel=metric)
        differences = _of_layers(effects, metric, split)
        right.axhline(0, color="0.5", linewidth=0.8)
        if differences.empty:
            right.set_title("no differences: only one treatment")
        else:
            for name, table in differences.groupby("treatment"):
                self._differences(right, str(name), table)
            right.set(
                title=f"paired difference to {in_words(found.baseline)}, "
                f"{_describe_intervals(differences)}",
                ylabel=f"difference in {metric}",
            )
        for ax in (left, right):
            _name_places(ax)
            ax.legend(*ax.get_legend_handles_labels())
        return figure

    def _differences(self, ax: Axes, name: str, table: pd.DataFrame) -> None:
        looks = self.looks[name]
        margin = np.stack([table["difference"] - table["low"], table["high"] - table["difference"]])
        ax.errorbar(
            table["place"],
            table["difference"],
            np.nan_to_num(margin),
            linestyle="",
            label=f"{name}, {_sample_size(table)}",
            **looks,
        )

    @mpl.rc_context(STYLE)
    def effects(self, treatment: str, split: str = "train") -> Figure:
        """Draw a heat map of paired effect sizes, metrics x layers.

        Args:
            treatment: Treatment that is compared with the baseline.
            split: Split whose probe set is shown.
        """
        table = self.analysis.overall_effects
        table = table[
            (table["treatment"] == treatment)
            & (table["split"] == split)
            & (table["place_index"] > 0)
        ]
        grid = table.pivot_table(
            index="metric", columns="place", values="rank_biserial", sort=False, dropna=False
        )
        places = table.sort_values(["site", "place_index"])["place"].drop_duplicates()
        grid = grid.reindex(columns=places)
        height, width = grid.shape
        figure = Figure((min(WIDTH, 2.6 + 0.4 * width), 1.4 + 0.2 * height), layout="constrained")
        ax = figure.subplots()
        image = ax.imshow(grid, vmin=-1, vmax=1, cmap="RdBu_r", aspect="auto")
        ax.set_xticks(range(width), grid.columns, rotation=90)
        ax.set_yticks(range(height), grid.index)
        ax.spines[:].set_visible(False)
        ax.set_title(
            f"{in_words(treatment)} minus {in_words(self.analysis.baseline)}, {_sample_size(table)}"
        )
        figure.colorbar(image, ax=ax, label="paired rank-biserial correlation")
        return figure

    @mpl.rc_context(STYLE)
    def epochs(self, metric: str, split: str = "train") -> Figure:
        """Draw a metric from initialization to the end of training, in up to four layers.

        Args:
            metric: Name of the metric.
            split: Split whose probe set is shown.
        """
        return self._over_time(self.analysis.averages_by_epoch, metric, split)

    @mpl.rc_context(STYLE)
    def steps(self, metric: str, split: str = "train") -> Figure:
        """Draw a metric over the training steps on a logarithmic axis, in up to four layers.

        Args:
            metric: Name of the metric.
            split: Split whose probe set is shown.

        Raises:
            UserError: No run was measured within epochs.
        """
        table = self.analysis.averages_by_step
        if table.empty:
            raise UserError(
                "metrics.at_steps: no run was measured within epochs; train with "
                "metrics.at_steps=log2 in another study"
            )
        return self._over_time(table[table["step"] > 0], metric, split)

    def _over_time(self, table: pd.DataFrame, metric: str, split: str) -> Figure:
        table = _of_layers(table, metric, split)
        places = list(dict.fromkeys(table["place"]))
        chosen = [places[i] for i in _spread(len(places), MAX_PANELS)]
        figure = Figure((WIDTH, 2.1), layout="constrained")
        panels = figure.subplots(1, len(chosen), sharey=True, squeeze=False)[0]
        for ax, place in zip(panels, chosen, strict=True):
            self._curves(ax, table[table["place"] == place])
            ax.set_title(place)
        panels[0].set_ylabel(metric)
        return figure

    def _curves(self, ax: Axes, table: pd.DataFrame, style: str = "-", label: str = "") -> None:
        time = "step" if "step" in table else "epoch"
        for name, curve in table.groupby("treatment"):
            curve = curve.sort_values(time)
            colour = self.looks[str(name)]["color"]
            text = f"{name}{label}, {_sample_size(curve)}"
            ax.plot(curve[time], curve["mean"], style, color=colour, label=text)
            low, high = curve["mean"] - curve["sd"], curve["mean"] + curve["sd"]
            ax.fill_between(curve[time], low, high, color=colour, alpha=0.15, linewidth=0)
        ax.set_xlabel(time)
        if time == "step":
            ax.set_xscale("log")
        else:
            ax.locator_params(axis="x", integer=True)
        ax.legend(*ax.get_legend_handles_labels())

    @mpl.rc_context(STYLE)
    def performance(self) -> Figure:
        """Draw accuracy and loss over the epochs, and the generalization gap of every run."""
        figure = Figure((WIDTH, 2.4), layout="constrained")
        accuracy, loss, gap = figure.subplots(1, 3)
        epochs = self.analysis.averages_by_epoch
        for ax, name in ((accuracy, "accuracy"), (loss, "loss")):
            metric = choose_curve(name, set(epochs["metric"]))
            for split, style in (("train", ":"), ("test", "-")):
                table = epochs[(epochs["metric"] == metric) & (epochs["split"] == split)]
                self._curves(ax, table[table["place_index"] == 0], style, f", {split}")
            ax.set_ylabel(metric.replace("_", " "))
        runs = self.analysis.study.results
        for place, name in enumerate(self.analysis.study.treatments):
            of_treatment = runs[runs["treatment"] == name]
            gaps = of_treatment["train_accuracy"] - of_treatment["test_accuracy"]
            shift = np.linspace(-0.15, 0.15, len(gaps))
            self._markers(gap, str(name), place + shift, gaps)
        gap.set_xticks(range(len(self.looks)), list(self.looks), rotation=30, ha="right")
        gap.set(ylabel="train − test accuracy, each run")
        return figure

    @mpl.rc_context(STYLE)
    def against_accuracy(self, metric: str, split: str = "train") -> Figure:
        """Draw test accuracy against a metric in up to four layers, one marker per run.

        Args:
            metric: Name of the metric.
            split: Split whose probe set is shown.
        """
        keys, values = load_shared_columns(self.analysis.study)
        chosen = _of_layers(keys, metric, split)
        columns = chosen.index.to_numpy()[_spread(len(chosen), MAX_PANELS)]
        runs = self.analysis.study.results
        figure = Figure((WIDTH, 2.1), layout="constrained")
        panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        for ax, column in zip(panels, columns, strict=True):
            for name in self.looks:
                rows = np.flatnonzero(runs["treatment"] == name)
                self._markers(ax, name, values[rows, column], runs["test_accuracy"].iloc[rows])
            ax.set(title=keys.loc[column, "place"], xlabel=metric)
        panels[0].set_ylabel("test accuracy")
        panels[0].legend()
        return figure

    def _markers(self, ax: Axes, name: str, x: Numbers, y: pd.Series) -> None:
        many = len(self.analysis.study.results) > MAX_VECTOR_MARKERS
        looks = self.looks[name]
        ax.plot(x, y, linestyle="", alpha=0.7, label=name, rasterized=many, **looks)

    @mpl.rc_context(STYLE)
    def maps(self, method: str = "pca", site: str = "act") -> Figure:
        """Draw the embeddings of one run per treatment, in up to four layers.

        The runs are those of the first pair in which the most treatments have maps.

        Args:
            method: pca or umap.
            site: Site in the block.

        Raises:
            UserError: No run has such a map.
        """
        table = self.analysis.embeddings
        sites = " ".join(sorted({*table["site"], site}))
        table = table[(table["method"] == method) & (table["site"] == site)]
        if table.empty:
            raise UserError(
                f"{method}, {site}: no run of {self.analysis.study.folder} has such a map; make it "
                f"with python -m bnstudy.measure map {self.analysis.study.folder} --sites {sites}"
                + (", which needs umap-learn" if method == "umap" else "")
            )
        pair = table.groupby("pair", sort=False)["treatment"].nunique().idxmax()
        table = table[table["pair"] == pair]
        names = [name for name in self.looks if (table["treatment"] == name).any()]
        columns = min(MAX_PANELS, table["layers"].max())
        what = table["split"] + " split, epoch " + table["epoch"].astype(str)
        figure = Figure((WIDTH, 0.4 + 1.6 * len(names)), layout="constrained")
        panels = figure.subplots(len(names), columns, squeeze=False)
        for row, name in zip(panels, names, strict=True):
            of_run = table["treatment"] == name
            positions = _spread(table.loc[of_run, "layers"].max(), columns)
            for ax, position in zip(row, positions, strict=False):
                samples = table[of_run & (table["position"] == position + 1)]
                _map(ax, samples, table["label"].max())
                ax.set_title(f"{name}, {samples['layer'].iloc[0]}")
            if what.nunique() > 1:
                row[0].set_ylabel(what[of_run].iloc[0])
        run = self.analysis.study.results.set_index("cell").loc[table["cell"].iloc[0]]
        facts = [method.upper(), run["grid"], f"seed {run['seed']}"]
        facts += what.unique().tolist() if what.nunique() == 1 else []
        figure.suptitle(f"{', '.join(filter(None, facts))}; colours are classes", fontsize=8)
        return figure

    @mpl.rc_context(STYLE)
    def learning_rates(self) -> Figure:
        """Draw test accuracy after the last epoch over the learning rates."""
        figure = Figure((WIDTH / 2, 2.4), layout="constrained")
        ax = figure.subplots()
        for name, runs in self.analysis.study.results.groupby("treatment"):
            rates = runs.groupby("lr")
            of_rate = rates["test_accuracy"]
            mean, sd = of_rate.mean(), of_rate.std()
            counts = pd.DataFrame(
                {
                    "n": of_rate.count(),
                    "undefined": rates.size() - of_rate.count(),
                    "diverged": (runs["status"] == "diverged").groupby(runs["lr"]).sum(),
                }
            )
            label = f"{name}, {_sample_size(counts)}"
            ax.errorbar(mean.index, mean, sd.fillna(0), label=label, **self.looks[str(name)])
        ax.set(xscale="log", xlabel="learning rate", ylabel="test accuracy")
        ax.legend()
        return figure

    @mpl.rc_context(STYLE)
    def depth_width(self) -> Figure:
        """Draw mean test accuracy over depth and width, with n, one panel per treatment."""
        results = self.analysis.study.results
        points = results.groupby(["treatment", "depth", "width"])["test_accuracy"]
        means, counts = points.mean(), points.count()
        low, high = (
            means.min(),
            means.max(),
        )  # of finite values; if both are NaN, Matplotlib chooses
        names = list(means.index.get_level_values("treatment").unique())
        figure = Figure((WIDTH, 2.4), layout="constrained")
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        for ax, name in zip(panels, names, strict=True):
            grid, n = means[name].unstack(), counts[name].unstack()
            image = ax.imshow(grid, vmin=low, vmax=high, origin="lower", aspect="auto")
            for (row, column), count in np.ndenumerate(n.fillna(0).to_numpy(int)):
                ax.text(column, row, f"n = {count}", ha="center", va="center", fontsize=5)
            ax.set_xticks(range(len(grid.columns)), grid.columns)
            ax.set_yticks(range(len(grid)), grid.index)
            ax.set(title=name, xlabel="width", ylabel="depth")
        figure.colorbar(image, ax=panels, label="mean test accuracy")
        return figure


def draw_figures(analysis: Analysis) -> Iterator[tuple[str, Figure]]:
    """Draw all figures that a study has values for, and yield their names and figures.

    Args:
        analysis: Analysis of the study.
    """
    plot = Plot(analysis)
    measured = set(analysis.averages.loc[analysis.averages["place_index"] > 0, "metric"])
    for family in FAMILIES.values():
        there = choose_measured(family, measured)
        for metric in there[:MAX_METRICS]:
            yield f"layers-{metric}", plot.layers(metric)
            for depth in analysis.depths:
                yield f"layers-{metric}-depth{depth}", plot.layers(metric, depth=depth)
        for metric in there[:1]:
            yield f"epochs-{metric}", plot.epochs(metric)
            if not analysis.averages_by_step.empty:
                yield f"steps-{metric}", plot.steps(metric)
            yield f"accuracy-{metric}", plot.against_accuracy(metric)
    effects = analysis.overall_effects
    for treatment in analysis.study.treatments if measured and len(effects) else []:
        of_layers = (effects["treatment"] == treatment) & (effects["place_index"] > 0)
        if effects.loc[of_layers, "rank_biserial"].notna().any():
            name = "".join(letter if letter.isalnum() else "-" for letter in treatment)
            yield f"effects-{name}", plot.effects(treatment)
    for method, site in (
        analysis.embeddings[["method", "site"]].drop_duplicates().itertuples(index=False)
    ):
        yield f"maps-{method}" + f"-{site}" * (site != "act"), plot.maps(method, site)
    yield "performance", plot.performance()
    if "lr" in analysis.axes:
        yield "learning_rates", plot.learning_rates()
    if {"depth", "width"} <= set(analysis.axes):
        yield "depth_width", plot.depth_width()


def _map(ax: Axes, samples: pd.DataFrame, last: int) -> None:
    """Draw the samples of a map, or the reason why there is none; `last` is the largest label."""
    ax.scatter(
        samples["x"],
        samples["y"],
        2,
        samples["label"],
        cmap="tab10" if last < 10 else "turbo",
        vmin=0,
        vmax=max(9, last),
        linewidths=0,
        rasterized=True,
    )
    ax.set(xticks=[], yticks=[], aspect="equal")
    ax.set_adjustable("datalim")
    for reason in samples["reason"].dropna().unique():
        ax.set_xlabel(f"no map: {reason}", fontsize=5)


def _of_layers(table: pd.DataFrame, metric: str, split: str) -> pd.DataFrame:
    """Select a metric's rows of layers in order, preferably of activations.

    Raises:
        UserError: The metric was not measured.
    """
    if table.empty:
        return table
    layers = table[table["place_index"] > 0]
    chosen = (layers["metric"] == metric) & (layers["split"] == split)
    if not chosen.any():
        metrics, splits = (", ".join(sorted(layers[key].unique())) for key in ("metric", "split"))
        raise UserError(
            f"metric={metric} was not measured in layers on split={split}; measured: {metrics} on "
            f"{splits}"
        )
    found = layers[chosen]
    return found[are_activations(found)].sort_values("place_index", kind="stable")


def _spread(count: int, most: int) -> list[int]:
    """Choose evenly spaced indices below `count`, at most `most`, with the first and the last."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))})


def _sample_size(table: pd.DataFrame) -> str:
    """Format the number of runs or pairs with a value, of all, and the number of diverged ones."""
    low, high = int(table["n"].min()), int(table["n"].max())
    runs = int((table["n"] + table["undefined"]).max())
    text = f"n = {low}" if low == high else f"n = {low} to {high}"
    text += f" of {runs}" if low < runs else ""
    diverged = int(table["diverged"].max())
    return f"{text}, {diverged} diverged" if diverged else text


def _describe_intervals(table: pd.DataFrame) -> str:
    known = table["low"].notna().any()
    return (
        f"{CONFIDENCE:.0%} intervals" if known else f"no intervals (fewer than {MIN_PAIRS} pairs)"
    )


def _name_places(ax: Axes) -> None:
    ax.tick_params(axis="x", labelrotation=45)
    for label in ax.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
