"""Settings in which the runs of a comparison differ besides the normalization."""

from collections import Counter

from bnstudy.headline import in_words
from bnstudy.study.load.pairs import match_pairs
from bnstudy.study.load.study_runs import StudyRuns
from bnstudy.terms import FUSED_NORMS

SETTING_NAMES = {
    "optim.lr": "learning rate",
    "optim.adaptive_clipping": "adaptive gradient clipping",
    "model.residual_init": "residual initialization",
    "model.normalizer_free": "normalizer-free design",
}


def describe_confounders(study: StudyRuns, treatment: str, baseline: str) -> str:
    """Describe the settings in which runs of pairs differ besides the norm and the regularizer.

    Examples are a learning rate per norm, the position of the norm, the accelerator, and the
    activation function if a norm contains its own. Left out are options that only one of the two
    norms has, such as the number of groups, and swept options of a norm, which the treatment's name
    contains.

    Args:
        study: Study whose runs are comparable.
        treatment: One of its treatments.
        baseline: Treatment to compare with.

    Returns:
        Text such as "learning rate (0.1 with BatchNorm, 0.01 with GroupNorm)"; empty if the runs
        differ in nothing else.
    """
    cells = study.results["cell"]
    matched = match_pairs(study, treatment, baseline)
    treatment_keys = {"norm.name", "regularizer.name", *study.design.options}
    counts: dict[str, Counter[tuple[str, str]]] = {}
    for cell, baseline_cell in zip(cells[matched.treatment], cells[matched.baseline], strict=True):
        settings, baseline_settings = study.settings[cell], study.settings[baseline_cell]
        for key in sorted(
            settings.keys() & baseline_settings.keys() - treatment_keys,
            key=lambda key: (key not in SETTING_NAMES, key),
        ):
            value, baseline_value = settings[key], baseline_settings[key]
            if value != baseline_value:
                counts.setdefault(key, Counter())[str(value), str(baseline_value)] += 1
    texts = [
        _describe_setting(key, counts_of_key, treatment, baseline, len(matched.treatment))
        for key, counts_of_key in counts.items()
    ]
    norms = study.results.groupby("treatment")["norm"].first()
    is_fused = {name: norms[name] in FUSED_NORMS for name in (treatment, baseline)}
    if any(is_fused.values()):
        activations = (
            f"{'that of the norm' if is_fused[name] else 'ReLU'} with {in_words(name)}"
            for name in (treatment, baseline)
        )
        texts.append(
            f"activation function ({', '.join(activations)}; so metrics of zeros are not compared)"
        )
    return " and ".join(texts)


def _describe_setting(
    key: str, counts: Counter[tuple[str, str]], treatment: str, baseline: str, num_pairs: int
) -> str:
    """Describe the values of a setting in the pairs that differ in it.

    `counts` has the number of pairs with each (treatment's value, baseline's value), and
    `num_pairs` is the number of all pairs.
    """
    values, baseline_values = (
        " or ".join(dict.fromkeys(side)) for side in zip(*counts, strict=True)
    )
    share = f"; in {counts.total()} of {num_pairs} pairs" if counts.total() < num_pairs else ""
    return (
        f"{SETTING_NAMES.get(key, key)} ({values} with {in_words(treatment)}, "
        f"{baseline_values} with {in_words(baseline)}{share})"
    )
