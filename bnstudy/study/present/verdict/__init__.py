"""Verdict of a study: sentences that claim no more than its pairs allow."""

from collections.abc import Iterator

import pandas as pd

from bnstudy.headline import in_words
from bnstudy.study.analysis import Analysis
from bnstudy.study.inference.paired import CONFIDENCE, MIN_PAIRS_TO_FLIP, SIGN_FLIPS
from bnstudy.study.load.study_runs import StudyRuns
from bnstudy.study.present.verdict.comparison import describe_comparison
from bnstudy.study.present.verdict.explanation import describe_interventions, describe_relations
from bnstudy.study.present.verdict.training_and_depth import (
    describe_depth,
    describe_equal_training,
    describe_two_sources,
)
from bnstudy.study.present.verdict.wording import (
    FAMILIES_OF_TESTS,
    SIGNIFICANCE_LEVEL,
    format_p,
    select_known,
)
from bnstudy.terms import format_count

MAX_LISTED_REPETITIONS = 3


def compose_verdict(analysis: Analysis) -> list[str]:
    """Compose the statements of the verdict.

    They describe the runs, the differences between treatments with their uncertainty, and what may
    explain differences in test accuracy.

    Args:
        analysis: Analysis of the study.
    """
    study, baseline = analysis.study, analysis.baseline
    sentences = [f"{study.counts()}.", *_describe_irregular_runs(study)]
    if len(study.treatments) < 2:
        return [
            *sentences,
            "There is nothing to compare, because all runs with results have the same norm.",
        ]
    known = select_known(analysis.overall_effects)
    sentences += [
        "Unless stated otherwise, values are from the last epoch of each run, and metrics of "
        "layers are those of the training split's probe set.",
        *_explain_tests(known),
    ]
    for treatment in study.treatments_without(baseline):
        table = known[known["treatment"] == treatment]
        sentences += describe_comparison(study, treatment, baseline, table)
        sentences += describe_equal_training(analysis, treatment)
        sentences += describe_two_sources(analysis.two_source_intervals, treatment, baseline)
        sentences += describe_depth(analysis.profile_effects, treatment, baseline)
    return [
        *sentences,
        *describe_relations(study, analysis.relations, analysis.mediation),
        *describe_interventions(analysis.interventions),
    ]


def _explain_tests(effects: pd.DataFrame) -> Iterator[str]:
    """Explain intervals, significance and p-values, as far as the effects have them."""
    if not effects["low"].notna().any():
        return
    yield (
        f"Differences are means over pairs, with {CONFIDENCE:.0%} confidence intervals in "
        f"brackets. A difference is significant if p ≤ {SIGNIFICANCE_LEVEL:.2g}, and significant "
        f"after adjustment if adjusted p ≤ {SIGNIFICANCE_LEVEL:.2g}. The adjusted p accounts for "
        f"all tests of a family; their number is in parentheses. {FAMILIES_OF_TESTS}"
    )
    flipped = effects[effects["test"] == SIGN_FLIPS]
    if len(flipped):
        most = flipped.sort_values("n").iloc[-1]
        yield (
            f"Where at least {MIN_PAIRS_TO_FLIP} pairs have a value, p is from the two-sided "
            "sign-flip test. The adjusted p is from the same sign flips, by Westfall and Young's "
            "max-T, and can therefore be equal to p. The smallest p that they can give with "
            f"{most['n']} pairs is {format_p(most['smallest_p'])}."
        )


def _describe_irregular_runs(study: StudyRuns) -> Iterator[str]:
    results = study.results
    for treatment, runs in results.groupby("treatment"):
        name = in_words(str(treatment))
        if diverged := int((runs["status"] == "diverged").sum()):
            yield (
                f"{diverged} of {len(runs)} runs with {name} diverged. Diverged runs are "
                "included wherever they have a value, except in comparisons at equal training."
            )
        if stuck := int((runs["at_chance"] & (runs["status"] == "completed")).sum()):
            yield (
                f"{stuck} of {len(runs)} runs with {name} {_is(stuck)} at chance level: the "
                "training accuracy is not clearly above that of guessing. Such runs are included."
            )
    repeated = study.runs[study.runs["duplicate_of"].notna()]
    if count := len(repeated):
        examples = repeated[["cell", "duplicate_of"]][:MAX_LISTED_REPETITIONS]
        listed = [f"{cell} (repeats {original})" for cell, original in examples.to_numpy()]
        more = f" and {count - len(listed)} more" * (count > len(listed))
        has = "has" if count == 1 else "have"
        yield (
            f"{count} of {len(study.runs)} runs {has} the same settings or exactly the same values "
            f"as another run and {_is(count)} not counted again: {', '.join(listed)}{more}."
        )
    if missing := len(study.runs) - len(results) - count:
        has = "has" if missing == 1 else "have"
        total = format_count(len(study.runs), "run")
        yield f"{missing} of {total} {has} no results and {_is(missing)} left out."


def _is(number: int) -> str:
    return "is" if number == 1 else "are"
