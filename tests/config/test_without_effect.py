"""Options that have no effect beside others."""

from copy import deepcopy
from typing import Any

import pytest

from bnstudy.config.composition import resolve
from bnstudy.config.schema import validate
from bnstudy.config.without_effect import find_without_effect, refuse_without_effect
from bnstudy.errors import UserError
from tests.conftest import Compose

COMPOSED: dict[str, Any] = {}
STEPS_PER_EPOCH = 8


@pytest.fixture
def config(composed: Compose) -> dict[str, Any]:
    """A run of 4 epochs."""
    if not COMPOSED:  # once: it takes most of a second
        COMPOSED.update(resolve(composed("trainer.max_epochs=4")))
    return deepcopy(COMPOSED)


def changed(config: dict[str, Any], **changes: dict[str, Any]) -> dict[str, Any]:
    config |= {group: config[group] | values for group, values in changes.items()}
    validate(config)
    return config


def test_folds_without_metrics_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"metrics.folds=4 has no effect with metrics.names=\[\]"):
        refuse_without_effect(changed(config, metrics={"names": [], "folds": 4}))
    refuse_without_effect(changed(config, metrics={"names": ["hoyer"], "folds": 4}))
    refuse_without_effect(changed(config, metrics={"names": [], "folds": 0}))


@pytest.mark.parametrize(
    ("changes", "warnings"),
    [
        ({}, []),
        ({"metrics": {"at_steps": [1, 8, 32]}}, []),
        ({"metrics": {"at_steps": "log2"}}, []),
        ({"metrics": {"every_n_epochs": 9}}, []),  # the first and the last are measured
        (
            {"metrics": {"at_steps": [40, 1, 33]}},
            ["metrics.at_steps=[33, 40]: not measured, because the last of the 4 x 8 steps "],
        ),
        (
            {"metrics": {"at_steps": [8, 16, 32], "every_n_epochs": 2}},
            ["metrics.at_steps=[8]: not measured, because each of these steps ends an epoch "],
        ),
        ({"optim": {"schedule": "step", "milestones": [1, 3]}}, []),
        (
            {"optim": {"schedule": "step", "milestones": [1, 4, 5]}},
            ["optim.milestones=[4, 5] with trainer.max_epochs=4: the learning rate does not fall"],
        ),
        (
            {"optim": {"schedule": "step", "milestones": [1, 3], "warmup_epochs": 2}},
            ["optim.milestones=[1] with optim.warmup_epochs=2: the learning rate falls only when "],
        ),
        ({"optim": {"warmup_epochs": 3.5}}, []),
        (
            {"optim": {"warmup_epochs": 4}},
            ["optim.warmup_epochs=4 with trainer.max_epochs=4: the learning rate rises until "],
        ),
        ({"optim": {"schedule": "step", "milestones": [2], "gamma": 0.5}}, []),
        (
            {"optim": {"schedule": "cosine", "gamma": 0.5}},
            ["optim.gamma=0.5 has no effect with optim.schedule=cosine: only step multiplies "],
        ),
        ({"checkpoint_epochs": "all"}, []),
        ({"checkpoint_epochs": [0, 4]}, []),
        (
            {"checkpoint_epochs": [4, 5]},
            ["checkpoint_epochs=[5] with trainer.max_epochs=4: there are no such epochs"],
        ),
        ({"data": {"fill": "black", "shift": 4}}, []),
        ({"data": {"fill": "black"}}, ["data.fill=black has no effect with data.shift=0"]),
        (
            {"optim": {"decay_all": False}},
            ["optim.decay_all=false has no effect with optim.weight_decay=0"],
        ),
        (
            {"optim": {"dampening": 0.5, "momentum": 0}},
            ["optim.dampening=0.5 has no effect with optim.momentum=0"],
        ),
        (
            {"trainer": {"gradient_clip_algorithm": "value"}},
            ["trainer.gradient_clip_algorithm=value has no effect with trainer.gradient_clip_val="],
        ),
    ],
    ids=str,
)
def test_what_will_have_no_effect_is_warned_of(
    config: dict[str, Any], changes: dict[str, Any], warnings: list[str]
) -> None:
    groups = {name: values for name, values in changes.items() if name != "checkpoint_epochs"}
    kept = changes.get("checkpoint_epochs", [])
    config = changed(config, **groups) | {"checkpoint_epochs": kept}
    found = list(find_without_effect(config, STEPS_PER_EPOCH))
    assert len(found) == len(warnings), found
    for sentence, beginning in zip(found, warnings, strict=True):
        assert sentence.startswith(beginning)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["published_resnet", "published_vgg", "nf_resnet"])
def test_shipped_experiments_are_not_refused_where_debug_shortens_them(
    composed: Compose, experiment: str
) -> None:
    whole = resolve(composed(f"experiment={experiment}"))
    refuse_without_effect(whole)
    assert not list(find_without_effect(whole, STEPS_PER_EPOCH))
    short = resolve(composed(f"experiment={experiment}", "debug=fast"))
    refuse_without_effect(short)
    assert list(find_without_effect(short, STEPS_PER_EPOCH))
