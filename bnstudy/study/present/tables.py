"""Tables of a study: CSV files of all results, LaTeX tables for papers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from bnstudy.files import replacing
from bnstudy.headline import HEADLINE_METRICS, choose_measured, in_words
from bnstudy.study.analysis import Analysis

# LaTeX's special characters.
TO_LATEX = str.maketrans(
    {letter: f"\\{letter}" for letter in "#$%&_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # of formulas in spreadsheets
INTERNAL_COLUMNS = ["path", "comparable", "pair"]  # columns of runs that are not exported


def collect_tables(analysis: Analysis) -> dict[str, pd.DataFrame]:
    """Collect the tables that are not empty, by name.

    Args:
        analysis: Analysis of the study.
    """
    tables = {
        "runs": analysis.study.runs.drop(columns=INTERNAL_COLUMNS),
        "averages": analysis.averages_at_points,
        "epochs": analysis.averages_by_epoch,
        "effects": analysis.effects,
        "curves": analysis.effects_by_epoch,
        "steps": analysis.averages_by_step,
        "step_curves": analysis.effects_by_step,
        **{f"equal_{name}": table for name, table in analysis.equal_training.items()},
        "depth": analysis.profile_effects,
        "initial_layers": analysis.initial_layers,
        "two_sources": analysis.two_source_intervals,
        "factors": analysis.factors,
        "relations": analysis.relations,
        "mediation": analysis.mediation,
        "interventions": analysis.interventions,
    }
    return {name: table for name, table in tables.items() if not table.empty}


def format_latex_tables(analysis: Analysis) -> Iterator[tuple[str, str]]:
    """Format the tables of a paper as LaTeX (for the package booktabs).

    The tables contain means ± standard deviations over runs, and paired differences with intervals
    and adjusted p-values, each with its n. The caption contains the number of diverged runs.

    Args:
        analysis: Analysis of the study.
    """
    measured = set(analysis.averages[["split", "metric"]].itertuples(index=False, name=None))
    for split in ("test", "train"):
        if not measured.isdisjoint({(split, "accuracy"), (split, "loss")}):
            yield f"performance-{split}", _format_latex_table(analysis, ("accuracy", "loss"), split)
    for metric in choose_measured(HEADLINE_METRICS, analysis.depths_by_metric):
        yield f"layers-{metric}", _format_latex_table(analysis, (metric,), "train")
        for depth in analysis.depths_by_metric[metric]:
            yield (
                f"layers-{metric}-depth{depth}",
                _format_latex_table(analysis, (metric,), "train", depth),
            )


def _format_latex_table(
    analysis: Analysis, metrics: tuple[str, ...], split: str, depth: int | None = None
) -> str:
    by = ["metric", "site", "place_index", "place"]
    averages, effects = (
        table[table["metric"].isin(metrics) & (table["split"] == split)] if len(table) else table
        for table in (
            (analysis.averages, analysis.overall_effects)
            if depth is None
            else analysis.select_depth(depth)
        )
    )
    columns: dict[tuple[Any, str], pd.Series] = {}
    for name, of_treatment in averages.groupby("treatment"):
        table = of_treatment.set_index(by).sort_index()
        columns |= {
            (name, "mean ± SD"): table.apply(_format_mean, axis=1),
            (name, "n"): table.apply(_format_n, axis=1),
        }
    for name, of_treatment in effects.groupby("treatment") if len(effects) else ():
        table = of_treatment.set_index(by).sort_index()
        against = f"{name} − {analysis.baseline}"
        columns |= {
            (against, "difference [95 %]"): table.apply(_format_difference, axis=1),
            (against, "adjusted p"): table["p_adjusted"].map(_format_number),
            (against, "n"): table.apply(_format_n, axis=1),
        }
    table = pd.DataFrame(columns).droplevel(["site", "place_index"])
    table.index.names = [None, None]
    caption = f"{analysis.study.name}: {', '.join(metrics)}, {split} split, after the last epoch"
    if depth is not None:
        caption += f", networks of depth {depth}"
    if analysis.confounders:
        caption += f"; runs of a pair also differ in {'; '.join(analysis.confounders)}"
    for treatment, runs in analysis.study.results.groupby("treatment"):
        if diverged := int((runs["status"] == "diverged").sum()):
            caption += f"; {diverged} of {len(runs)} runs with {in_words(str(treatment))} diverged"
    text: str = table.fillna("").to_latex(
        escape=True,
        multicolumn_format="c",
        multirow=False,
        caption=caption.translate(TO_LATEX),
    )
    return text.replace("±", r"$\pm$").replace("−", "$-$")


def _format_mean(row: pd.Series) -> str:
    spread = "" if pd.isna(row["sd"]) else f" ± {_format_number(row['sd'])}"
    return f"{_format_number(row['mean'])}{spread}"


def _format_n(row: pd.Series) -> str:
    """Format n, and the number of all runs or pairs if some have no value."""
    return f"{row['n']} of {row['n'] + row['undefined']}" if row["undefined"] else str(row["n"])


def _format_difference(row: pd.Series) -> str:
    interval = (
        ""
        if pd.isna(row["low"])
        else f" [{_format_number(row['low'])}, {_format_number(row['high'])}]"
    )
    return f"{_format_number(row['difference'])}{interval}"


def _format_number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.3g}".replace("-", "−")


def _quote_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """Quote text that spreadsheets would take for a formula, such as a cell's name."""

    def quote(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value

    texts = table.select_dtypes(exclude="number")
    return table.assign(**{str(name): column.map(quote) for name, column in texts.items()})


def write_tables(analysis: Analysis, folder: Path) -> list[Path]:
    """Write all tables.

    Args:
        analysis: Analysis of the study.
        folder: Folder of the files.

    Returns:
        Written files.
    """
    texts = {
        f"{name}.csv": _quote_formulas(table).to_csv(index=False)
        for name, table in collect_tables(analysis).items()
    }
    texts |= {f"{name}.tex": text for name, text in format_latex_tables(analysis)}
    for name, text in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(text)
    return [folder / name for name in texts]
