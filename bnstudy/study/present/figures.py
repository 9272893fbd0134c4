"""Figures of a study in publication size, drawn with Matplotlib."""

import textwrap
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from bnstudy.errors import UserError
from bnstudy.headline import CLUSTERING, FAMILIES, SPARSITY, choose_measured, in_words
from bnstudy.study.analysis import Analysis
from bnstudy.study.inference.columns import FloatArray
from bnstudy.study.inference.paired import CONFIDENCE, MIN_PAIRS_FOR_TEST
from bnstudy.study.load.matrix import are_activations, load_shared_columns
from bnstudy.study.present.drawing import MAX_PANELS, STYLE, WIDTH, choose_spread, draw_panels
from bnstudy.study.present.embedding_figure import draw_embeddings
from bnstudy.study.present.labels import label_of, layer_in_words
from bnstudy.study.present.verdict.wording import summarize_directions
from bnstudy.terms import choose_curve

MAX_METRICS = 2  # metrics of a family that are drawn over the layers
MAX_LABEL = 24  # characters per line of an axis label in a narrow panel
MAX_VECTOR_MARKERS = 1_000  # markers of a panel; more are rasterized in all formats
DODGE = 0.12  # largest distance between the bars of two treatments, in layers

# Colours for all kinds of colour vision (Okabe and Ito 2008), with markers for black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"

QUESTIONS = dict.fromkeys(SPARSITY, "How sparse is each layer?") | dict.fromkeys(
    CLUSTERING, "How well do classes cluster in each layer?"
)
BANDS = "Lines: means over runs; bands: ± standard deviation"


class Plot:
    """Figures of a study; each method returns a Matplotlib figure.

    Args:
        analysis: Analysis of the study.
    """

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.baseline = in_words(analysis.baseline)
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
        averages, effects = (
            (self.analysis.averages, self.analysis.overall_effects)
            if depth is None
            else self.analysis.select_depth(depth)
        )
        means, differences = (_select_layers(table, metric, split) for table in (averages, effects))
        words, low, high = label_of(metric)
        figure, (left, right) = draw_panels(2, 2.8)
        bars = pd.DataFrame(
            {"low": means["mean"] - means["sd"], "high": means["mean"] + means["sd"]}
        )
        self._draw_bars(left, means.assign(value=means["mean"], **bars.clip(low, high)), "-")
        left.set(title=QUESTIONS.get(metric, words), ylabel=words)
        caption = f"{split} split, after the last epoch. Left: mean ± standard deviation over runs"
        right.axhline(0, color="0.5", linewidth=0.8)
        if differences.empty:
            right.set_title("no differences: only one treatment")
        else:
            ends = differences[["low", "high"]].clip(low - high, high - low)
            self._draw_bars(right, differences.assign(value=differences["difference"], **ends))
            right.set(
                title=self._title_differences(differences),
                ylabel=f"difference to {self.baseline}",
            )
            caption += f". Right: mean paired difference, {_describe_intervals(differences)}"
        figure.supxlabel(caption)
        return figure

    def _title_differences(self, differences: pd.DataFrame) -> str:
        """Return a title: where one treatment differs or, for several treatments, a question."""
        treatments = differences["treatment"].unique()
        if len(treatments) > 1:
            return f"Where do norms differ from {self.baseline}?"
        directions = summarize_directions(list(differences.itertuples()))
        return f"{in_words(treatments[0])}: {directions}"

    def _draw_bars(self, ax: Axes, table: pd.DataFrame, line: str = "") -> None:
        """Draw the column `value`, with bars from `low` to `high`, side by side per treatment."""
        places = list(table.sort_values("place_index")["place"].unique())
        names = [name for name in self.looks if (table["treatment"] == name).any()]
        step = min(DODGE, 0.7 / len(names))
        for number, name in enumerate(names):
            rows = table[table["treatment"] == name]
            shift = step * (number - (len(names) - 1) / 2)
            margins = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
            ax.errorbar(
                [places.index(place) + shift for place in rows["place"]],
                rows["value"],
                np.nan_to_num(np.stack(margins)).clip(0),
                linestyle=line,
                label=f"{in_words(name)}, {_format_counts(rows)}",
                **self.looks[name],
            )
        ax.set_xticks(range(len(places)), map(layer_in_words, places), rotation=45, ha="right")
        ax.legend()

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
        metrics = [metric for metric in self.analysis.study.directions if metric in grid.index]
        grid = grid.reindex(index=metrics, columns=places)
        height, width = grid.shape
        figure, (ax,) = draw_panels(1, 1.6 + 0.2 * height, min(WIDTH, 3.6 + 0.4 * width))
        image = ax.imshow(grid, vmin=-1, vmax=1, cmap="RdBu_r", aspect="auto")
        ax.set_xticks(range(width), map(layer_in_words, grid.columns), rotation=90)
        ax.set_yticks(range(height), [label_of(metric).words for metric in grid.index])
        ax.spines[:].set_visible(False)
        ax.set_title(f"Where does {in_words(treatment)} differ from {self.baseline}?")
        figure.supxlabel(f"{split} split, after the last epoch; pairs: {_format_counts(table)}")
        figure.colorbar(
            image, ax=ax, label="rank-biserial correlation\n(1: higher where pairs differ)"
        )
        return figure

    @mpl.rc_context(STYLE)
    def epochs(self, metric: str, split: str = "train") -> Figure:
        """Draw a metric from initialization to the end of training, in up to four layers.

        Args:
            metric: Name of the metric.
            split: Split whose probe set is shown.
        """
        return self._draw_over_time(self.analysis.averages_by_epoch, metric, split)

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
        return self._draw_over_time(table[table["step"] > 0], metric, split)

    def _draw_over_time(self, table: pd.DataFrame, metric: str, split: str) -> Figure:
        table = _select_layers(table, metric, split)
        places = list(dict.fromkeys(table["place"]))
        chosen = [places[i] for i in choose_spread(len(places), MAX_PANELS)]
        figure, panels = draw_panels(len(chosen), 2.6, sharey=True)
        for ax, place in zip(panels, chosen, strict=True):
            curves = self._draw_curves(ax, table[table["place"] == place], metric)
            ax.set_title(layer_in_words(place))
        panels[0].set_ylabel(label_of(metric).words)
        counts = [
            f"{in_words(name)}, {_format_counts(table[table['treatment'] == name])}"
            for name in curves
        ]
        title = "When does the difference arise?"
        figure.legend(curves.values(), counts, loc="outside upper center", ncols=4, title=title)
        figure.supxlabel(f"{split} split. {BANDS}")
        return figure

    def _draw_curves(
        self, ax: Axes, table: pd.DataFrame, metric: str, style: str = "-"
    ) -> dict[str, Line2D]:
        """Draw means over time with bands, and return the line of each treatment."""
        time = "step" if "step" in table else "epoch"
        _, lowest, highest = label_of(metric)
        lines = {}
        for name in self.looks:
            curve = table[table["treatment"] == name].sort_values(time)
            if curve.empty:
                continue
            colour = self.looks[name]["color"]
            (lines[name],) = ax.plot(curve[time], curve["mean"], style, color=colour)
            low = (curve["mean"] - curve["sd"]).clip(lowest)
            high = (curve["mean"] + curve["sd"]).clip(upper=highest)
            ax.fill_between(curve[time], low, high, color=colour, alpha=0.15, linewidth=0)
        ax.set_xlabel("training step" if time == "step" else "epoch")
        if time == "step":
            ax.set_xscale("log")
        else:
            ax.locator_params(axis="x", integer=True)
        return lines

    @mpl.rc_context(STYLE)
    def performance(self) -> Figure:
        """Draw accuracy and loss over the epochs, and the generalization gap of every run."""
        figure, (accuracy, loss, gap) = draw_panels(3, 3.2)
        epochs = self.analysis.averages_by_epoch
        legend: dict[str, Line2D] = {}
        for ax, outcome in ((accuracy, "accuracy"), (loss, "loss")):
            metric = choose_curve(outcome, set(epochs["metric"]))
            curves = epochs[(epochs["metric"] == metric) & (epochs["place_index"] == 0)]
            for split, style in (("train", ":"), ("test", "-")):
                table = curves[curves["split"] == split]
                for name, line in self._draw_curves(ax, table, metric, style).items():
                    n = _format_counts(table[table["treatment"] == name])
                    legend.setdefault(f"{in_words(name)}, {split}, {n}", line)
            _limit_to_training(ax, curves, is_logarithmic=outcome == "loss")
            ax.set_ylabel(label_of(metric).words)
            ax.set_title(f"Does {outcome} differ?")
        figure.legend(legend.values(), legend.keys(), loc="outside upper center", ncols=2)
        runs = self.analysis.study.results
        for position, name in enumerate(self.looks):
            rows = runs[runs["treatment"] == name]
            gaps = rows["train_accuracy"] - rows["test_accuracy"]
            shift = np.linspace(-0.15, 0.15, len(gaps))
            self._draw_runs(gap, name, position + shift, gaps)
        gap.set_xticks(range(len(self.looks)), map(in_words, self.looks), rotation=30, ha="right")
        gap.set(ylabel="train − test accuracy", title="Does the gap differ?")
        figure.supxlabel(f"{BANDS}; right: each run. Values before training may lie outside")
        return figure

    @mpl.rc_context(STYLE)
    def against_accuracy(self, metric: str, split: str = "train") -> Figure:
        """Draw test accuracy against a metric in up to four layers, one marker per run.

        Args:
            metric: Name of the metric.
            split: Split whose probe set is shown.
        """
        keys, values = load_shared_columns(self.analysis.study)
        chosen = _select_layers(keys, metric, split)
        columns = chosen.index.to_numpy()[choose_spread(len(chosen), MAX_PANELS)]
        runs = self.analysis.study.results
        words = label_of(metric).words
        figure, panels = draw_panels(len(columns), 2.7, sharey=True)
        for ax, column in zip(panels, columns, strict=True):
            for name in self.looks:
                rows = np.flatnonzero(runs["treatment"] == name)
                self._draw_runs(ax, name, values[rows, column], runs["test_accuracy"].iloc[rows])
            ax.set_title(layer_in_words(keys.loc[column, "place"]))
            ax.set_xlabel(textwrap.fill(words, MAX_LABEL))
        panels[0].set_ylabel("test accuracy")
        handles = panels[0].get_legend_handles_labels()
        title = f"Does the {words} go with test accuracy?"
        figure.legend(*handles, loc="outside upper center", ncols=4, title=title)
        figure.supxlabel(f"{split} split, after the last epoch; {len(runs)} runs, each a marker")
        return figure

    def _draw_runs(self, ax: Axes, name: str, x: FloatArray, y: pd.Series) -> None:
        is_rasterized = len(self.analysis.study.results) > MAX_VECTOR_MARKERS
        label, look = in_words(name), self.looks[name]
        ax.plot(x, y, linestyle="", alpha=0.7, label=label, rasterized=is_rasterized, **look)

    @mpl.rc_context(STYLE)
    def embeddings(self, method: str = "pca", site: str = "act") -> Figure:
        """Draw the embeddings of one run per treatment, in up to four layers.

        The runs are those of the first pair in which the most treatments have embeddings.

        Args:
            method: pca or umap.
            site: Site in the block.

        Raises:
            UserError: No run has such an embedding.
        """
        table = self.analysis.embeddings
        sites = " ".join(sorted({*table["site"], site}))
        table = table[(table["method"] == method) & (table["site"] == site)]
        if table.empty:
            folder = self.analysis.study.folder
            raise UserError(
                f"{method}, {site}: no run of {folder} has such an embedding; make it with "
                f"python -m bnstudy.measure map {folder} --sites {sites}"
                + (", which needs umap-learn" if method == "umap" else "")
            )
        pair = table.groupby("pair", sort=False)["treatment"].nunique().idxmax()
        table = table[table["pair"] == pair]
        treatments = [name for name in self.looks if (table["treatment"] == name).any()]
        run = self.analysis.study.results.set_index("cell").loc[table["cell"].iloc[0]]
        return draw_embeddings(table, treatments, run)

    @mpl.rc_context(STYLE)
    def learning_rates(self) -> Figure:
        """Draw test accuracy after the last epoch over the learning rates."""
        figure, (ax,) = draw_panels(1, 2.6, 3.4)
        for name, runs in self.analysis.study.results.groupby("treatment"):
            rates = runs.groupby("lr")
            accuracy = rates["test_accuracy"]
            mean, sd = accuracy.mean(), accuracy.std().fillna(0)
            counts = pd.DataFrame(
                {
                    "n": accuracy.count(),
                    "undefined": rates.size() - accuracy.count(),
                    "diverged": (runs["status"] == "diverged").groupby(runs["lr"]).sum(),
                }
            )
            label = f"{in_words(str(name))}, {_format_counts(counts)}"
            margins = np.stack([sd.clip(upper=mean), sd.clip(upper=1 - mean)])
            ax.errorbar(mean.index, mean, margins, label=label, **self.looks[str(name)])
        ax.set(xscale="log", xlabel="learning rate", ylabel="test accuracy")
        ax.set_title("Which learning rates work?")
        ax.legend()
        figure.supxlabel("Mean ± standard deviation over runs, after the last epoch")
        return figure

    @mpl.rc_context(STYLE)
    def depth_width(self) -> Figure:
        """Draw mean test accuracy over depth and width, with n, one panel per treatment."""
        results = self.analysis.study.results
        points = results.groupby(["treatment", "depth", "width"])["test_accuracy"]
        means, counts = points.mean(), points.count()
        low, high = means.min(), means.max()  # NaN without values; Matplotlib then chooses
        names = list(means.index.get_level_values("treatment").unique())
        figure, panels = draw_panels(len(names), 2.6)
        for ax, name in zip(panels, names, strict=True):
            grid, n = means[name].unstack(), counts[name].unstack()
            image = ax.imshow(grid, vmin=low, vmax=high, origin="lower", aspect="auto")
            for (row, column), count in np.ndenumerate(n.fillna(0).to_numpy(int)):
                ax.text(column, row, f"n = {count}", ha="center", va="center", fontsize=5)
            ax.set_xticks(range(len(grid.columns)), grid.columns)
            ax.set_yticks(range(len(grid)), grid.index)
            ax.set(title=in_words(name), xlabel="width", ylabel="depth")
        figure.colorbar(image, ax=panels, label="mean test accuracy")
        figure.suptitle("Does test accuracy depend on depth and width?")
        return figure


def draw_figures(analysis: Analysis) -> Iterator[tuple[str, Figure]]:
    """Draw all figures that a study has values for, and yield their names and figures.

    Args:
        analysis: Analysis of the study.
    """
    plot = Plot(analysis)
    measured = analysis.depths_by_metric
    for family in FAMILIES.values():
        metrics = choose_measured(family, measured)
        for metric in metrics[:MAX_METRICS]:
            yield f"layers-{metric}", plot.layers(metric)
            for depth in measured[metric]:
                yield f"layers-{metric}-depth{depth}", plot.layers(metric, depth=depth)
        for metric in metrics[:1]:
            yield f"epochs-{metric}", plot.epochs(metric)
            if not analysis.averages_by_step.empty:
                yield f"steps-{metric}", plot.steps(metric)
            yield f"accuracy-{metric}", plot.against_accuracy(metric)
    effects = analysis.overall_effects
    for treatment in analysis.study.treatments if measured and len(effects) else []:
        layers = (effects["treatment"] == treatment) & (effects["place_index"] > 0)
        if effects.loc[layers, "rank_biserial"].notna().any():
            name = "".join(letter if letter.isalnum() else "-" for letter in treatment)
            yield f"effects-{name}", plot.effects(treatment)
    for method, site in (
        analysis.embeddings[["method", "site"]].drop_duplicates().itertuples(index=False)
    ):
        name = f"embeddings-{method}" + f"-{site}" * (site != "act")
        yield name, plot.embeddings(method, site)
    yield "performance", plot.performance()
    if "lr" in analysis.axes:
        yield "learning_rates", plot.learning_rates()
    if {"depth", "width"} <= set(analysis.axes):
        yield "depth_width", plot.depth_width()


def _select_layers(table: pd.DataFrame, metric: str, split: str) -> pd.DataFrame:
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
    selected = layers[chosen]
    return selected[are_activations(selected)].sort_values("place_index", kind="stable")


def _limit_to_training(ax: Axes, curves: pd.DataFrame, *, is_logarithmic: bool) -> None:
    """Limit the axis to the means after training began; those before it would stretch it."""
    means = curves.loc[curves["epoch"] > 0, "mean"]
    means = means[np.isfinite(means) & ((means > 0) | (not is_logarithmic))]
    if means.empty or means.min() == means.max():
        return
    if is_logarithmic:
        ax.set_yscale("log")
        ax.set_ylim(means.min() / 1.2, means.max() * 1.2)
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    else:
        margin = 0.1 * (means.max() - means.min())
        ax.set_ylim(means.min() - margin, means.max() + margin)


def _format_counts(table: pd.DataFrame) -> str:
    """Format the numbers of runs or pairs: with a value, in total if it is larger, and diverged."""
    low, high = int(table["n"].min()), int(table["n"].max())
    runs = int((table["n"] + table["undefined"]).max())
    text = f"n = {low}" if low == high else f"n = {low} to {high}"
    text += f" of {runs}" if low < runs else ""
    diverged = int(table["diverged"].max())
    return f"{text}, {diverged} diverged" if diverged else text


def _describe_intervals(table: pd.DataFrame) -> str:
    if table["low"].notna().any():
        return f"{CONFIDENCE:.0%} intervals"
    has_few_pairs = table["n"] < MIN_PAIRS_FOR_TEST
    reasons = has_few_pairs.map(
        {True: f"fewer than {MIN_PAIRS_FOR_TEST} pairs", False: "equal differences"}
    )
    return f"no intervals ({' or '.join(reasons.unique())})"
