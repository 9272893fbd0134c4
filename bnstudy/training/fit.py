"""Training of one run: data, network, callbacks and fit."""

import logging
import warnings
from typing import Any

import lightning as L
from rich.console import Console
from torch import nn

from bnstudy.adapters.lightning_internals import end_child_processes_on_error
from bnstudy.callbacks import Progress, Recorder, RepresentationMetrics
from bnstudy.callbacks.optimization import OptimizationMetrics
from bnstudy.config.targets import instantiate_group, require_trusted
from bnstudy.data import DataModule
from bnstudy.representations.memory import retain_memory
from bnstudy.representations.running_statistics import initial_share
from bnstudy.runs.record import Record
from bnstudy.terminal import console
from bnstudy.terms import SPLITS
from bnstudy.training.build import (
    build_classifier,
    build_trainer,
    convert_trainer_errors,
    evaluate_before_training,
    load_data,
)
from bnstudy.training.checkpoints import find_resume_point
from bnstudy.training.data_check import note_data
from bnstudy.training.environment import describe_environment
from bnstudy.training.loggers import open_loggers
from bnstudy.training.options_check import OptionsCheck, require_samples_for_folds
from bnstudy.training.processes import (
    ending_with_first_process,
    is_first_process,
    isolated_job,
)
from bnstudy.training.twin import with_target_sparsity

MAX_INITIAL_SHARE = 0.01  # of the initial values (0 and 1) in the running statistics


def fit(record: Record, config: dict[str, Any], progress_console: Console) -> None:
    """Train a cell to its last epoch, from its last checkpoint or from the beginning.

    Args:
        record: Record of the run; an `Observer` in all but the first process of a distributed run.
        config: Resolved configuration.
        progress_console: Console that shows the progress.
    """
    quieten_lightning()
    retain_memory()
    checkpoint, epochs_done = find_resume_point(record) or (None, None)
    with record.attempt(describe_environment(record.folder.parent)) as attempt, isolated_job():
        attempt.resumed_from_epoch = epochs_done
        if checkpoint is None:
            record.description.set_config(config)
        else:
            config = record.description.update_config(config)
            # A resumed callback takes its options from run.json, so check their `_target_`s before
            # instantiation.
            require_trusted(
                {f"callbacks.{name}": options for name, options in config["callbacks"].items()}
            )
        data = load_data(config)
        note_data(record, config, data.facts())
        require_samples_for_folds(data, config["metrics"])
        classifier = build_classifier(with_target_sparsity(record, config), data)
        callbacks = make_callbacks(record, config, data, progress_console)
        trainer = build_trainer(config, [OptionsCheck(config), *callbacks])
        data.require_batches(trainer.world_size)
        with open_loggers(config["logger"], record, resumed=checkpoint is not None) as loggers:
            trainer.loggers = loggers
            with (
                convert_trainer_errors(),
                ending_with_first_process(),
                end_child_processes_on_error(trainer),
            ):
                if checkpoint is None:
                    evaluate_before_training(trainer, classifier, data)
                trainer.fit(classifier, datamodule=data, ckpt_path=checkpoint)
                # If training stopped early, the final validation has not run.
                if not classifier.performance:
                    trainer.validate(classifier, datamodule=data, verbose=False)
        attempt.diverged = bool(classifier.diverged)
        record.join_parts()
        warn_about_biased_statistics(classifier.network, max(1, trainer.current_epoch))


def make_callbacks(
    record: Record, config: dict[str, Any], data: DataModule, progress_console: Console
) -> list[L.Callback]:
    """Create the callbacks that measure, record and show a run, in the order Lightning calls them.

    Args:
        record: Record of the run; the directions of the measured metrics are added.
        config: Resolved configuration.
        data: Data, already loaded.
        progress_console: Console that shows the progress.
    """
    progress = Progress(config["cell"], progress_console)
    metrics = RepresentationMetrics(
        {split: data.probe(split) for split in SPLITS},
        **config["metrics"],
        on_layer=progress.show,
        calibration=data.calibration(),
    )
    record.description.add_directions(metrics.directions())
    added = [
        instantiate_group(f"callbacks.{name}", node) for name, node in config["callbacks"].items()
    ]
    measuring = [callback for callback in added if isinstance(callback, OptimizationMetrics)]
    recorder = Recorder(record, [metrics, *measuring], config["checkpoint_epochs"])
    return [metrics, *added, recorder, progress]


def quieten_lightning() -> None:
    """Silence Lightning's routine messages and some irrelevant warnings; others are still shown.

    Call this after importing Lightning, because the import sets the level of its logger.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Lightning 2.6 creates a LeafSpec, a class that torch 2.15 deprecates.
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
    # Lightning warns that samples may be duplicated; here each process evaluates exactly its share.
    warnings.filterwarnings("ignore", message="Using `DistributedSampler` with the dataloaders")
    # Shown if SLURM is installed but the run is not a SLURM job.
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    # Lightning warns if an epoch is shorter than `log_every_n_steps`. `Classifier` counts the steps
    # of all epochs, so that its loss is logged nevertheless.
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than")


def warn_about_biased_statistics(network: nn.Module, epochs: int) -> None:
    """Warn if the running statistics were biased towards their initial values after one epoch.

    The share of the initial 0 and 1 may be up to `MAX_INITIAL_SHARE`. Training does not depend on
    running statistics, but measurements do; they are not corrected.

    Args:
        network: Network after training.
        epochs: Number of trained epochs.
    """
    share = initial_share(network, epochs)
    if share > MAX_INITIAL_SHARE and is_first_process():
        console.print(
            "norm.momentum: after the first epoch, the initial values (0 and 1) still had a share "
            f"of {share:.0%} in the running mean and variance; a measurement at that epoch is "
            "biased\nUse more batches per epoch (a smaller data.batch_size) or a larger "
            "norm.momentum",
            style="yellow",
        )
