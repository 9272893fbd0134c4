"""Settings in which the runs of a comparison differ besides the normalization."""

from collections import Counter

from bnstudy.headline import in_words
from bnstudy.study.load.pairs import match_pairs
from bnstudy.study.load.study_runs import StudyRuns
from bnstudy.terms import FUSED_NORMS

WORDS = {
    "optim.lr": "learning rate",
    "optim.adaptive_clipping": "adaptive gradient clipping",
    "model.residual_init": "residual initialization",
    "model.normalizer_free": "normalizer-free design",
}


def describe_confounders(study: StudyRuns, treatment: str, baseline: str) -> str:
    """Describe the settings in which runs of pairs differ besides the norm and the regularizer.

    Examples are a learning rate per norm, the position of the norm, the accelerator, and the
    activation function if a norm contains its own. Options that only one of the two norms has, such
    as the number of groups, are part of the norm, and swept options are part of the treatment's
    name.

    Args:
        study: Study whose runs are comparable.
        treatment: One of its treatments.
        baseline: Treatment to compare with.

    Returns:
        Words such as "learning rate (0.1 with BatchNorm, 0.01 with GroupNorm)"; empty if the runs
        differ in nothing else.
    """
    cells = study.results["cell"]
    matched = match_pairs(study, treatment, baseline)
    named = {"norm.name", "regularizer.name", *study.design.options}
    counts: dict[str, Counter[tuple[str, str]]] = {}
    for pair in zip(cells[matched.treatment], cells[matched.baseline], strict=True):
        settings, baseline_settings = (study.settings[cell] for cell in pair)
        for key in sorted(
            settings.keys() & baseline_settings.keys() - named,
            key=lambda key: (key not in WORDS, key),
        ):
            values = settings[key], baseline_settings[key]
            if values[0] != values[1]:
                counts.setdefault(key, Counter())[str(values[0]), str(values[1])] += 1
    texts = [
        _describe(key, values, treatment, baseline, len(matched.treatment))
        for key, values in counts.items()
    ]
    norms = study.results.groupby("treatment")["norm"].first()
    is_fused = {name: norms[name] in FUSED_NORMS for name in (treatment, baseline)}
    if any(is_fused.values()):
        names = (
            f"{'that of the norm' if is_fused[name] else 'ReLU'} with {in_words(name)}"
            for name in (treatment, baseline)
        )
        texts.append(f"activation function ({', '.join(names)}; counts of zeros are not compared)")
    return " and ".join(texts)


def _describe(
    key: str, values: Counter[tuple[str, str]], treatment: str, baseline: str, n: int
) -> str:
    of_treatment, of_baseline = (
        " or ".join(dict.fromkeys(side)) for side in zip(*values, strict=True)
    )
    share = f"; in {values.total()} of {n} pairs" if values.total() < n else ""
    name, other = in_words(treatment), in_words(baseline)
    return f"{WORDS.get(key, key)} ({of_treatment} with {name}, {of_baseline} with {other}{share})"
