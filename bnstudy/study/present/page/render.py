"""Page of a study: its text and tables, with the numbers that its figures draw."""

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Sequence
from importlib import resources
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

import bnstudy
from bnstudy.headline import CLUSTERING, SPARSITY, choose_measured, in_words
from bnstudy.runs.long_table import WHOLE_MODEL
from bnstudy.study.analysis import Analysis
from bnstudy.study.effects import MAX_PAIRS_EXACT_OVER_EPOCHS, NUM_FLIPS_OVER_EPOCHS
from bnstudy.study.generalization import ASSUMPTIONS
from bnstudy.study.inference.paired import MAX_PAIRS_EXACT, NUM_FLIPS
from bnstudy.study.load.design import COLUMN_OF_KEY, TREATMENT_PREFIXES
from bnstudy.study.load.study_runs import StudyRuns
from bnstudy.study.present.cards import compose_cards
from bnstudy.study.present.labels import label_of
from bnstudy.study.present.page.conditions import describe_hessian, describe_label_noise
from bnstudy.study.present.page.embedded import embed_numbers
from bnstudy.study.present.page.page_tables import MAX_ROWS, collect_page_tables
from bnstudy.study.present.verdict import compose_verdict
from bnstudy.study.present.verdict.wording import FAMILIES_OF_TESTS, join_words
from bnstudy.terms import NOT_APPLICABLE, PERFORMANCE, format_count

TARGETS = [
    ("accuracy", "test accuracy"),
    ("gap", "train − test accuracy"),
    ("test_loss", "test loss"),
]


def render_page(
    analysis: Analysis, files: Sequence[str] = (), other_runs: str | None = None
) -> str:
    """Render the page of a study as HTML.

    Names, messages and other values of the records are escaped. The page only runs its embedded
    scripts, and it loads nothing from other places.

    Args:
        analysis: Analysis of the study.
        files: Paths of the figures and tables, relative to the page.
        other_runs: Description of the runs in the study's folder that are not comparable with those
            of the page; None if there are none.
    """
    study = analysis.study
    data = embed_numbers(analysis)
    plotly, script = get_plotlyjs(), read_resource("page.js")
    runs, effects = study.runs, analysis.overall_effects
    cards = compose_cards(analysis)
    environment = Environment(
        loader=PackageLoader(__package__, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"formatted": format_value, "in_words": in_words}
    environment.globals |= {
        "as_choices": lambda values: [(value, value) for value in values],
        "numbered": lambda values: list(enumerate(values)),
        "worded": lambda metrics: [(name, _describe_metric(name)) for name in metrics],
    }
    has_grid = {"depth", "width"} <= set(analysis.axes)
    content = {
        "analysis": analysis,
        "cards": cards,
        "cards_have_intervals": any(
            "[" in finding.size for card in cards for finding in card.findings
        ),
        "verdict": compose_verdict(analysis),
        "study": study,
        "data": data,
        # Without "<", no text can close the script element around it.
        "data_json": json.dumps(data, allow_nan=False).replace("<", r"\u003c"),
        "plotly": base64.b64encode(gzip.compress(plotly.encode(), mtime=0)).decode(),
        "script": script,
        "allowed_scripts": f"{_hash_script(plotly)} {_hash_script(script)}",
        "style": read_resource("page.css"),
        "version": bnstudy.__version__,
        "other_runs": other_runs,
        "files": files,
        "compared": len(data["treatments"]) > 1,
        "has_effect_sizes": _has_values(effects, "rank_biserial"),
        "axis_names": list(analysis.axes),
        "over_grid": _list_grid_choices(data["treatments"]) if has_grid else [],
        "targets": TARGETS,
        "seeds": sorted({group["seed"] for group in data["groups"]} - {None}),
        "splits": sorted({key["split"] for key in data["keys"] if key["place_index"] > 0})[::-1],
        "sites": sorted({key["site"] for key in data["keys"] if key["site"]}),
        "sparsity": choose_measured(SPARSITY, data["metrics"]),
        "clustering": choose_measured(CLUSTERING, data["metrics"]),
        "of_network": _list_network_choices(data),
        "inapplicable": _describe_inapplicable(study),
        "over_depth": [name for name in ("nc1", "linear_probe") if name in data["metrics"]],
        "initial_metrics": list(dict.fromkeys(row["metric"] for row in data["initial"])),
        "effect_size": "cohens_d" if _has_values(effects, "cohens_d") else "rank_biserial",
        "embedded_note": _describe_reduction(data, study),
        "assumptions": ASSUMPTIONS,
        "families_of_tests": FAMILIES_OF_TESTS,
        "max_pairs_exact": MAX_PAIRS_EXACT,
        "num_flips": f"{NUM_FLIPS:,}",
        "max_pairs_exact_over_epochs": MAX_PAIRS_EXACT_OVER_EPOCHS,
        "num_flips_over_epochs": f"{NUM_FLIPS_OVER_EPOCHS:,}",
        "interpolated": any(key["place_index"] > 0 and key["layers"] == 0 for key in data["keys"]),
        "label_noise": describe_label_noise(study.results),
        "hessian": describe_hessian(study.results),
        "norm_settings": _describe_norm_settings(study),
        "embedding_methods": list(
            dict.fromkeys(picture["method"] for picture in data["embeddings"]["pictures"])
        ),
        "similarity_choices": [
            (f"{number}:{name}", f"{name}: {' – '.join(pair['names'])}")
            for number, pair in enumerate(data["similarities"])
            for name in pair["matrices"]
        ],
        "command_lines": runs[["cell", "overrides"]].dropna()[:MAX_ROWS].to_numpy().tolist(),
        "hours": _describe_hours(study),
        **collect_page_tables(analysis),
    }
    content["sections"] = _list_sections(content)
    return environment.get_template("page.html").render(content)


def format_value(value: Any) -> str:
    """Format a value for a table on the page."""
    if pd.isna(value):
        return "–"
    if isinstance(value, float) and math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}".replace("-", "−") if isinstance(value, float) else str(value)


def read_resource(name: str) -> str:
    """Read a file of the page, such as page.css."""
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _hash_script(script: str) -> str:
    """Format the hash by which a Content-Security-Policy allows a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _describe_metric(metric: str) -> str:
    words = label_of(metric).words
    return words if words == metric else f"{words} ({metric})"


def _list_grid_choices(treatments: Sequence[str]) -> list[tuple[str, str]]:
    """List the choices over depth and width: treatments, and their differences to the baseline."""
    absolute = [(str(number), name) for number, name in enumerate(treatments)]
    return absolute + [(f"-{number}", f"{name} − {treatments[0]}") for number, name in absolute[1:]]


def _has_values(effects: pd.DataFrame, column: str) -> bool:
    return not effects.empty and bool(effects[column].notna().any())


def _list_network_choices(data: dict[str, Any]) -> list[tuple[str, str]]:
    """List the choices of values of the whole network, except accuracy and loss."""
    return [
        (f"{key['split']}:{key['metric']}", f"{_describe_metric(key['metric'])}, {key['split']}")
        for key in data["keys"]
        if key["place"] == WHOLE_MODEL and key["metric"] not in PERFORMANCE
    ]


def _describe_inapplicable(study: StudyRuns) -> list[str]:
    """Describe the metrics that do not apply to some layers."""
    rows = study.query(
        f"""
        select metric, reason, count(distinct layer) as layers from final
        where starts_with(reason, '{NOT_APPLICABLE}') group by all order by all
        """
    )
    return [
        f"{metric} ({format_count(layers, 'layer')}: {reason.removeprefix(NOT_APPLICABLE)})"
        for metric, reason, layers in rows.to_numpy()
    ]


def _describe_norm_settings(study: StudyRuns) -> list[str]:
    """Describe the settings of the norm and regularizer of each treatment."""
    descriptions = []
    for treatment, cells in study.results.groupby("treatment")["cell"]:
        settings = study.settings[cells.iloc[0]]
        options = [
            f"{key} {value}"
            for key, value in settings.items()
            if key.startswith(TREATMENT_PREFIXES) and not key.endswith(".name")
        ]
        if options:
            descriptions.append(f"{in_words(str(treatment))}: {', '.join(options)}")
    return descriptions


def _describe_reduction(data: dict[str, Any], study: StudyRuns) -> str:
    """Describe what the page's figures omit from a large study."""
    notes = []
    if "n" in data["values"]:
        notes.append(
            "its figures contain means and standard deviations over seeds instead of single runs"
        )
    if len(data["epochs"]) < data["all_epochs"]:
        notes.append(f"its figures contain {len(data['epochs'])} of {data['all_epochs']} epochs")
    filtered = {axis["name"] for axis in data["axes"]}
    columns = [COLUMN_OF_KEY.get(key, key) for key in study.design.grid]
    if pooled := [name for name in columns if name not in filtered]:
        notes.append(f"it has no filter for {join_words(pooled)}, which also vary")
    return (
        f"This page is reduced in size: {'; '.join(notes)}. The runs' metrics.parquet contain "
        "everything."
        if notes
        else ""
    )


def _describe_hours(study: StudyRuns) -> str:
    seconds, measured = study.runs["seconds"].sum(), study.runs["measure_seconds"].sum()
    return (
        f"{format_count(len(study.runs), 'run')} took {seconds / 3600:.2f} hours, "
        f"{measured / 3600:.2f} of them to measure representations."
    )


def _list_sections(content: dict[str, Any]) -> list[tuple[str, str]]:
    """List the anchors and titles of the page's sections."""
    has_layers = bool(content["data"]["metrics"])
    shown = {
        ("layers", "Layers"): has_layers,
        ("effects", "Effects"): has_layers and content["has_effect_sizes"],
        ("epochs", "Over the epochs"): has_layers and len(content["data"]["epochs"]) > 1,
        ("performance", "Accuracy and loss"): True,
        ("optimization", "Optimization"): bool(content["of_network"]),
        ("sources", "Two sources"): content["two_sources"] is not None,
        ("depth", "Over depth"): content["depth"] is not None,
        ("equal", "At equal training"): content["equal"] is not None,
        ("generalization", "Generalization"): has_layers,
        ("axes", "Over the grid"): "lr" in content["axis_names"]
        or content["over_grid"]
        or content["factors"] is not None,
        ("embeddings", "Embeddings"): content["embedding_methods"],
        ("similarity", "Similarity"): content["data"]["similarities"],
        ("wrong", "Problems"): True,
        ("method", "Method"): True,
        ("provenance", "Provenance"): True,
    }
    return [section for section, is_shown in shown.items() if is_shown]
