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
    "model.normalizer_free": "normalizer-free branches",
}


def describe_confounders(study: StudyRuns, treatment: str, baseline: str) -> str:
    """Describe the settings in which runs of pairs differ besides the norm and the regularizer.

    Examples are a learning rate per norm, the position of the norm, the accelerator, and the
    activation function if a norm contains its own. Options
    that only one of the two norms has, such as the number of groups, are part of the norm, and
    swept options are part of the treatment's name.

    Args:
        study: StudyRuns whose runs are comparable.
        treatment: One of its treatments.
        baseline: Treatment to compare with.

    Returns:
        Words such as "learning rate (0.1 with BatchNorm, 0.01 with GroupNorm)"; empty if the runs
        differ in nothing else.
    """
    cells = study.results["cell"]
    matched = match_pairs(study, treatment, baseline)
    named = {"norm.name", "regularizer.name", *study.design.options}
    found: dict[str, Counter[tuple[str, str]]] = {}
    for ours, theirs in zip(cells[matched.treatment], cells[matched.baseline], strict=True):
        our_settings, their_settings = study.settings[ours], study.settings[theirs]
        for key in sorted(
            our_settings.keys() & their_settings.keys() - named,
            key=lambda key: (key not in WORDS, key),
        ):
            values = our_settings[key], their_settings[key]
            if values[0] != values[1]:
                found.setdefault(key, Counter())[str(values[0]), str(values[1])] += 1
    texts = [
        _describe(key, values, treatment, baseline, len(matched.treatment))
        for key, values in found.items()
    ]
    norms = study.results.groupby("treatment")["norm"].first()
    ours, theirs = (norms[name] in FUSED_NORMS for name in (treatment, baseline))
    if ours or theirs:
        names = (
            f"that of the norm with {in_words(name)}" if is_fused else f"ReLU with {in_words(name)}"
            for is_fused, name in ((ours, treatment), (theirs, baseline))
        )
        texts.append(f"activation function ({', '.join(names)}; counts of zeros are not compared)")
    return " and ".join(texts)


def _describe(
    key: str, values: Counter[tuple[str, str]], treatment: str, baseline: str, n: int
) -> str:
    ours, theirs = (" or ".join(dict.fromkeys(side)) for side in zip(*values, strict=True))
    some = f"; in {values.total()} of {n} pairs" if values.total() < n else ""
    names = in_words(treatment), in_words(baseline)
    return f"{WORDS.get(key, key)} ({ours} with {names[0]}, {theirs} with {names[1]}{some})"
