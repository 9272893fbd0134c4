"""Figure of the samples' embeddings: treatments x layers."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bnstudy.headline import in_words
from bnstudy.study.present.drawing import MAX_PANELS, WIDTH, choose_spread
from bnstudy.study.present.labels import layer_in_words


def draw_embeddings(table: pd.DataFrame, treatments: list[str], run: pd.Series) -> Figure:
    """Draw the embeddings of one run per treatment, in up to four layers.

    Args:
        table: Rows of `Analysis.embeddings` of one method, site and pair of runs.
        treatments: Treatments, one per row of the figure.
        run: A run of the pair, as in `StudyRuns.runs`.
    """
    columns = min(MAX_PANELS, table["layers"].max())
    measured_on = table["split"] + " split, epoch " + table["epoch"].astype(str)
    is_same = measured_on.nunique() == 1
    figure = Figure((WIDTH, 0.5 + 1.6 * len(treatments)), layout="constrained")
    panels = figure.subplots(len(treatments), columns, squeeze=False)
    for axes, treatment in zip(panels, treatments, strict=True):
        is_treatment = table["treatment"] == treatment
        positions = choose_spread(table.loc[is_treatment, "layers"].max(), columns)
        for ax, position in zip(axes, positions, strict=False):
            samples = table[is_treatment & (table["position"] == position + 1)]
            _scatter(ax, samples, table["label"].max())
            ax.set_title(layer_in_words(samples["layer"].iloc[0]))
        epoch = "" if is_same else f"\n{measured_on[is_treatment].iloc[0]}"
        axes[0].set_ylabel(in_words(treatment) + epoch)
    facts = [run["grid"], f"seed {run['seed']}", *(measured_on.unique() if is_same else [])]
    figure.suptitle(f"Do classes separate? {table['method'].iloc[0].upper()} embeddings of samples")
    most = int(table.groupby(["cell", "layer"]).size().max())
    figure.supxlabel(
        f"{', '.join(filter(None, facts))}; points are at most {most} samples, colours are classes"
    )
    return figure


def _scatter(ax: Axes, samples: pd.DataFrame, last_label: int) -> None:
    """Draw the samples of an embedding, or the reason why there is none."""
    ax.scatter(
        samples["x"],
        samples["y"],
        2,
        samples["label"],
        cmap="tab10" if last_label < 10 else "turbo",
        vmin=0,
        vmax=max(9, last_label),
        linewidths=0,
        rasterized=True,
    )
    ax.set(xticks=[], yticks=[], aspect="equal")
    ax.set_adjustable("datalim")
    for reason in samples["reason"].dropna().unique():
        ax.set_xlabel(f"no embedding: {reason}", fontsize=5)
