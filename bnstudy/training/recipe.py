"""One run: load the data, build the network, fit it, record it."""

import logging
import warnings
from typing import Any

import lightning as L
from hydra.utils import instantiate
from rich.console import Console
from torch import nn

from bnstudy.callbacks import Progress, Recorder, RepresentationMetrics
from bnstudy.data import ImageDataModule
from bnstudy.representations.running_statistics import initial_share
from bnstudy.runs.record import Record
from bnstudy.terminal import console
from bnstudy.terms import SPLITS
from bnstudy.training.build import (
    build_classifier,
    build_trainer,
    evaluate_before_training,
    load_data,
)
from bnstudy.training.checkpoints import resume_point
from bnstudy.training.data_check import note_data
from bnstudy.training.environment import environment
from bnstudy.training.loggers import open_loggers
from bnstudy.training.processes import is_first_process, job_of_its_own
from bnstudy.training.twin import with_target_sparsity

MAX_INITIAL_SHARE = 0.01  # of the running statistics, without a warning


def fit(record: Record, config: dict[str, Any], terminal: Console) -> None:
    """Train a cell from its last checkpoint, or from the beginning, to its end.

    Args:
        record: Record of the run; an `Observer` in a distributed run's other processes.
        config: The resolved configuration.
        terminal: Console on which the progress is shown.
    """
    quieten_lightning()
    checkpoint, epochs_done = resume_point(record) or (None, None)
    with record.attempt(environment()) as attempt, job_of_its_own():
        attempt.resumed_from_epoch = epochs_done
        if checkpoint is None:
            record.description.begin_with(config)
        else:
            config = record.description.go_on_with(config)
        data = load_data(config)
        note_data(record, config, data.facts())
        classifier = build_classifier(with_target_sparsity(record, config), data)
        trainer = build_trainer(config, make_callbacks(record, config, data, terminal))
        with open_loggers(config["logger"], record, resumed=checkpoint is not None) as loggers:
            trainer.loggers = loggers
            if checkpoint is None:
                evaluate_before_training(trainer, classifier, data)
            trainer.fit(classifier, datamodule=data, ckpt_path=checkpoint)
        attempt.diverged = bool(classifier.diverged)
        record.join_parts()
        warn_of_few_batches(classifier.network, config["trainer"]["max_epochs"])


def make_callbacks(
    record: Record, config: dict[str, Any], data: ImageDataModule, terminal: Console
) -> list[L.Callback]:
    """Make what measures, records and shows a run, in the order in which Lightning calls it.

    Args:
        record: Record of the run; it is told which metrics are measured.
        config: The resolved configuration.
        data: The data, loaded.
        terminal: Console on which the progress is shown.
    """
    progress = Progress(config["cell"], terminal)
    metrics = RepresentationMetrics(
        {split: data.probe(split) for split in SPLITS},
        **config["metrics"],
        on_layer=progress.say,
        calibration=data.calibration(),
    )
    record.description.add_directions(metrics.directions())
    optimization = [instantiate(node) for node in config["callbacks"].values()]
    recorder = Recorder(record, [metrics, *optimization], config["checkpoint_epochs"])
    return [metrics, *optimization, recorder, progress]


def quieten_lightning() -> None:
    """Silence what Lightning says of itself at every run; its warnings still reach the user.

    To be called once Lightning is imported: that sets its logger's level.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Lightning 2.6 calls what torch 2.15 deprecates.
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
    # Every process of a distributed run evaluates its share, and the shares are counted exactly.
    warnings.filterwarnings("ignore", message="Using `DistributedSampler` with the dataloaders")
    # Where SLURM is installed, and this is none of its jobs.
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    warnings.filterwarnings("ignore", message=".*recommended to use `Trainer.*devices=1")


def warn_of_few_batches(network: nn.Module, epochs: int) -> None:
    """Print a warning if running statistics were still close to their initial values.

    They are recorded as they were, as torch has them; training does not depend on them.
    """
    share = initial_share(network, epochs)
    if share > MAX_INITIAL_SHARE and is_first_process():
        console.print(
            f"norm.momentum: after the first epoch {share:.0%} of the running mean and variance "
            "were still their initial 0 and 1, and what was measured then is biased by that\n"
            "Train on more batches an epoch (data.batch_size), or raise norm.momentum",
            style="yellow",
        )
