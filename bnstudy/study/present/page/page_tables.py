"""Tables of the page. Columns have names in words, and tables of effects are sorted by size."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from bnstudy.headline import HEADLINE_METRICS, in_words
from bnstudy.runs.long_table import WHOLE_MODEL
from bnstudy.study.analysis import Analysis
from bnstudy.study.generalization import MIN_RUNS
from bnstudy.study.present.labels import label_of
from bnstudy.study.present.verdict.wording import format_p
from bnstudy.terms import NOT_APPLICABLE, PERFORMANCE

MAX_ROWS = 500  # rows of a table on the page; the CSV files contain all rows

# Columns by which tables are sorted: the first that a table has values of.
EFFECTS = ("cohens_d", "granulated", "share", "eta_squared", "difference")

# Columns that move to the caption if all rows have the same value, and the text before the value.
SHARED = {"treatment": "", "baseline": "compared with ", "split": "split: "}
NAMES = {  # names of columns in words; in other names, "_" becomes a space
    "treatment": "norm",
    "baseline": "compared with",
    "place": "layer",
    "n": "pairs",
    "baseline_mean": "mean of baseline",
    "treatment_mean": "mean of norm",
    "interval": "95 % interval",
    "probability_interval": "interval of probability",
    "granulated_interval": "interval of granulated tau",
    "p_adjusted": "adjusted p",
    "cohens_d": "Cohen’s d",
    "probability": "probability of larger value",
    "eta_squared": "share of variance (η²)",
    "df": "degrees of freedom",
    "df_residual": "residual degrees of freedom",
    "f": "F",
    "granulated": "granulated tau",
    "tau": "Kendall’s tau",
    "cmi": "mutual information",
    "cmi_null": "95th percentile of permuted runs",
    "data_sha256": "SHA-256 of the data",
    "gpus": "GPUs",
}
WORDS: dict[str, Callable[[Any], str]] = {  # functions that put a column's values into words
    "treatment": in_words,
    "baseline": in_words,
    "metric": lambda metric: label_of(metric).words,
    "p": format_p,
    "p_adjusted": format_p,
}
# Columns of tables.
ENVIRONMENT = "commit dirty version torch python processor gpus threads host data data_sha256 probe"
DIFFERENCE = "n baseline_mean treatment_mean difference low high p p_adjusted cohens_d"


def collect_page_tables(analysis: Analysis) -> dict[str, pd.DataFrame | None]:
    """Collect the page's tables by name; None for a table without rows.

    Args:
        analysis: Analysis of the study.
    """
    study, runs = analysis.study, analysis.study.runs
    of_network = of_outcomes = analysis.overall_effects
    if len(analysis.overall_effects):
        whole_model = analysis.overall_effects[analysis.overall_effects["place"] == WHOLE_MODEL]
        of_outcomes = whole_model[whole_model["metric"].isin(PERFORMANCE)]
        of_network = whole_model[~whole_model["metric"].isin(PERFORMANCE)]
    relations = analysis.relations
    if len(relations):
        relations = relations[(relations["split"] == "train") & (relations["n"] >= MIN_RUNS)]
        relations = relations.rename(columns={"n": "runs"})
    compared = (
        f"treatment split metric {DIFFERENCE} probability probability_low probability_high "
        "pairs_needed"
    )
    at_place = f"treatment split metric place {DIFFERENCE}"
    tables = {
        "performance": _format(of_outcomes, compared),
        "optimization": _format(of_network, compared),
        "equal": _format(_join_equal_training(analysis), f"at {at_place}"),
        "two_sources": _format(
            _select_main_metrics(analysis.two_source_intervals), f"{at_place} sample_share"
        ),
        "depth": _format(analysis.profile_effects, at_place),
        "relations": _format(
            relations,
            "target metric place runs granulated granulated_low granulated_high tau cmi cmi_null",
        ),
        "mediation": _format(analysis.mediation, " ".join(analysis.mediation.columns)),
        "interventions": _format(analysis.interventions, f"baseline {at_place}"),
        "factors": _format(
            _select_main_metrics(analysis.factors),
            "treatment split metric place term n eta_squared f df df_residual p p_adjusted",
        ),
        "wrong": _format(
            runs[(runs["status"] != "completed") | runs["remark"].notna()],
            "cell status remark attempts failures",
        ),
        "undefined": _format(
            study.query(
                f"""
                select split, metric, layer as place, count(*) as runs, any_value(reason) as reason
                from final where not isfinite(value)
                    and not starts_with(coalesce(reason, ''), '{NOT_APPLICABLE}')
                group by all order by runs desc, metric, layer, split
                """
            ),
            "split metric place runs reason",
        ),
    }
    environments = study.results.groupby(ENVIRONMENT.split(), dropna=False).size()
    tables["environments"] = _format(environments.reset_index(name="runs"), f"runs {ENVIRONMENT}")
    return {name: None if table.empty else table for name, table in tables.items()}


def _join_equal_training(analysis: Analysis) -> pd.DataFrame:
    """Join the tables at equal training: test accuracy, headline metrics of the training split."""
    tables = [
        table.assign(at=f"equal {name}")[
            (table["metric"].isin(HEADLINE_METRICS) & (table["split"] == "train"))
            | ((table["metric"] == "probe_accuracy") & (table["split"] == "test"))
        ]
        for name, table in analysis.equal_training.items()
        if len(table)
    ]
    return pd.concat(tables) if tables else pd.DataFrame()


def _select_main_metrics(table: pd.DataFrame) -> pd.DataFrame:
    return (
        table[table["metric"].isin({"accuracy", "loss", *HEADLINE_METRICS})]
        if len(table)
        else table
    )


def _format(table: pd.DataFrame, columns: str) -> pd.DataFrame:
    """Select columns, sort by the first of `EFFECTS` with values, and put all into words.

    Norms and splits that are the same in all rows are in `attrs["shared"]` instead of columns.
    `attrs["all_rows"]` is the number of rows before the limit.
    """
    if table.empty:
        return table
    for effect in EFFECTS:
        if effect in table and table[effect].notna().any():
            table = table.iloc[np.argsort(-table[effect].abs().to_numpy(float), kind="stable")]
            break
    all_rows, table = len(table), table[:MAX_ROWS]
    formatted: dict[str, Any] = {}
    for name in (name for name in columns.split() if name in table):
        prefix, is_low, _ = name.rpartition("low")
        if is_low and f"{prefix}high" in table:
            ends = zip(table[name], table[f"{prefix}high"], strict=True)
            formatted[f"{prefix}interval"] = [_format_interval(low, high) for low, high in ends]
        elif not name.endswith("high"):
            formatted[name] = table[name].map(WORDS.get(name, lambda value: value))
    if "n" in formatted and "undefined" in table:
        counts = zip(table["n"], table["n"] + table["undefined"], strict=True)
        formatted["n"] = [str(n) if n == pairs else f"{n} of {pairs}" for n, pairs in counts]
    shared = [
        name for name in SHARED if name in formatted and len(set(formatted[name])) == 1 < len(table)
    ]
    facts = [f"{SHARED[name]}{next(iter(formatted.pop(name)))}" for name in shared]
    table = pd.DataFrame(formatted)
    table.attrs |= {"shared": ", ".join(facts), "all_rows": all_rows}
    return table.rename(columns=lambda name: NAMES.get(name, name.replace("_", " ")))


def _format_interval(low: float, high: float) -> str:
    return "–" if pd.isna(low) else f"[{low:.3g}, {high:.3g}]".replace("-", "−")
