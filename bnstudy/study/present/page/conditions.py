"""Sentences of the page about the conditions under which values were measured."""

import json
from typing import Any

import pandas as pd

from bnstudy.study.present.verdict.wording import join_words
from bnstudy.terms import format_count

STATISTICS = {"eval": "its running statistics", "train": "the statistics of these samples"}


def describe_label_noise(results: pd.DataFrame) -> str:
    """Describe the wrong labels of the training data, and what follows; empty without any.

    Args:
        results: Rows of `StudyRuns.results`.
    """
    shares = sorted(set(results["label_noise"]))
    if not any(shares):
        return ""
    percents = join_words([f"{100 * share:g}" for share in shares], "or")
    by_run = ", depending on the run" if len(shares) > 1 else ""
    return (
        f"{percents} % of the training labels are wrong (data.label_noise){by_run}. "
        "Accuracy, loss and metrics of the classes on the training split use these labels; those "
        "on the test split use the right ones."
    )


def describe_hessian(results: pd.DataFrame) -> str:
    """Describe how the Hessian was computed; empty if it was not.

    Args:
        results: Rows of `StudyRuns.results`.
    """
    conditions = results["hessian"].dropna().map(json.loads).map(_describe_options)
    counts = conditions.value_counts()
    if counts.empty:
        return ""
    described = [
        str(text) + (f" ({format_count(count, 'run')})" if len(counts) > 1 else "")
        for text, count in counts.items()
    ]
    return (
        "The Hessian is that of the cross-entropy, without the penalty of a regularizer, on "
        f"class-balanced samples of the training split’s probe set: {'; or '.join(described)}."
    )


def _describe_options(options: dict[str, Any]) -> str:
    facts = []
    if "num_samples" in options:
        facts.append(f"at most {format_count(options['num_samples'], 'sample')}")
    if statistics := STATISTICS.get(options.get("batchnorm", "")):
        mode = f"callbacks.hessian.batchnorm={options['batchnorm']}"
        facts.append(f"BatchNorm with {statistics} ({mode})")
    if "num_probes" in options:
        facts.append(f"trace estimated from {options['num_probes']} random vectors")
    return ", ".join(facts)
