"""Words and ranges of metrics, against the registry that declares them."""

import re

from bnstudy.metrics import METRICS
from bnstudy.study.present.labels import LABELS, label_of


def test_every_metric_of_the_registry_has_words_and_its_range() -> None:
    assert {name: tuple(LABELS[name][1:]) for name in METRICS} == {
        name: metric.bounds for name, metric in METRICS.items()
    }


def test_eigenvalues_of_the_hessian_are_numbered_in_words() -> None:
    words = [label_of(f"hessian_eigenvalue_{number}").words for number in (1, 2, 4)]
    assert words == [f"{order}largest eigenvalue of the Hessian" for order in ("", "2nd ", "4th ")]


def test_words_are_words() -> None:
    assert not any(re.search("_|^$", label.words) for label in LABELS.values())
    assert len({label.words for label in LABELS.values()}) == len(LABELS)
    assert label_of("somebody_s_own").words == "somebody s own"
