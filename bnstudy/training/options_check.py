"""Checks of options whose effect depends on the data or the number of steps of a run."""

from typing import Any

import lightning as L

from bnstudy.config.without_effect import find_without_effect
from bnstudy.data import DataModule
from bnstudy.errors import UserError
from bnstudy.terminal import console
from bnstudy.terms import SPLITS, format_count
from bnstudy.training.processes import is_first_process

MIN_FOLDS = 2
MIN_SAMPLES_TO_CLUSTER = 2  # per class; with one, most metrics of clustering are undefined


def require_samples_for_folds(data: DataModule, metrics: dict[str, Any]) -> None:
    """Verify that each of `metrics.folds` parts of the probe sets has a sample of each class.

    A warning is printed if a class has only one sample in some parts, because most metrics of
    clustering then have no value.

    Args:
        data: Data, already loaded.
        metrics: Configuration group `metrics`.

    Raises:
        UserError: There are more parts than samples of a class.
    """
    folds = metrics.get("folds", 0)
    if not folds:
        return
    sizes = {
        split: data.labels[split][data.probe_indices[split]].unique(return_counts=True)
        for split in SPLITS
    }
    split = min(SPLITS, key=lambda split: int(sizes[split][1].min()))
    classes, counts = sizes[split]
    smallest = int(counts.min())
    name = data.class_names[int(classes[counts.argmin()])]
    available = (
        f"the probe set of the {split} split has {format_count(smallest, 'sample')} of class {name}"
    )
    if folds > smallest:
        more = f", or {MIN_FOLDS} to {smallest}" if smallest >= MIN_FOLDS else ""
        raise UserError(
            f"metrics.folds={folds}: each part takes a sample of every class, and {available}\n"
            f"Expected 0{more}; a larger probe.{split} allows more where the split has more samples"
        )
    if folds * MIN_SAMPLES_TO_CLUSTER > smallest and is_first_process():
        console.print(
            f"metrics.folds={folds}: most metrics of clustering have no value on parts with one "
            f"sample of a class, and {available}",
            style="yellow",
        )


class OptionsCheck(L.Callback):
    """Callback that warns of options without effect at the start of a run.

    Args:
        config: Resolved configuration.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the warnings, unless the run is resumed."""
        if trainer.global_step or not is_first_process():
            return
        epochs = trainer.max_epochs
        assert epochs is not None
        steps_per_epoch = int(trainer.estimated_stepping_batches) // epochs
        for warning in find_without_effect(self.config, steps_per_epoch):
            console.print(warning, style="yellow")
