"""One run: load the data, build the network, fit it, record it."""

import logging
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from hydra.utils import instantiate
from rich.console import Console
from torch import nn

from bnstudy.callbacks import Progress, Recorder, RepresentationMetrics
from bnstudy.representations.running_statistics import initial_share
from bnstudy.runs.record import Record
from bnstudy.terminal import console
from bnstudy.terms import SPLITS
from bnstudy.training.build import build, build_trainer, evaluate_before_training
from bnstudy.training.checkpoints import resume_point
from bnstudy.training.environment import environment
from bnstudy.training.processes import is_first_process, job_of_its_own

MAX_INITIAL_SHARE = 0.01  # of the running statistics, without a warning


def fit(record: Record, config: dict[str, Any], terminal: Console) -> None:
    """Train a cell from its last checkpoint, or from the beginning, to its end.

    Args:
        record: Of the run.
        config: Resolved.
        terminal: Where its progress is shown.
    """
    quieten_lightning()
    resumed = resume_point(record)
    checkpoint, epochs_done = resumed or (None, None)
    first = is_first_process()
    attempt: AbstractContextManager[dict[str, Any]]
    attempt = record.attempt(environment()) if first else nullcontext({})
    with attempt as facts, job_of_its_own():
        facts["resumed_from_epoch"] = epochs_done
        if checkpoint is None:
            record.description["config"] = config  # of what does not change the numbers, too
        else:
            record.measured_by(config["metrics"])
            config = config | {"callbacks": record.with_callbacks(config["callbacks"])}
        data, classifier = build(config, record)
        progress = Progress(config["cell"], terminal)
        metrics = RepresentationMetrics(
            {split: data.probe(split) for split in SPLITS},
            **config["metrics"],
            on_layer=progress.show,
            calibration=data.calibration(),
        )
        optimization = [instantiate(node) for node in config["callbacks"].values()]
        recorder = Recorder(record, [metrics, *optimization], config["checkpoint_epochs"])
        record.description["metrics"] |= metrics.directions()
        asked = list(config["callbacks"])
        had = record.description.get("callbacks", []) if checkpoint else asked
        record.description["callbacks"] = [name for name in asked if name in had]
        trainer = build_trainer(config, callbacks=[metrics, *optimization, recorder, progress])
        logger = config["logger"] if first else {"_target_": "bnstudy.training.loggers.no_logger"}
        with instantiate(logger, record=record, resumed=checkpoint is not None) as loggers:
            trainer.loggers = loggers
            if checkpoint is None:
                evaluate_before_training(trainer, classifier, data)
            trainer.fit(classifier, datamodule=data, ckpt_path=checkpoint)
        facts["diverged"] = bool(classifier.diverged)
        if first:
            record.join_parts()
            warn_of_few_batches(classifier.network, config["trainer"]["max_epochs"])


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
    if share > MAX_INITIAL_SHARE:
        console.print(
            f"norm.momentum: after the first epoch {share:.0%} of the running mean and variance "
            "were still their initial 0 and 1, and what was measured then is biased by that\n"
            "Train on more batches an epoch (data.batch_size), or raise norm.momentum",
            style="yellow",
        )
