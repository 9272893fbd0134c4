"""Lightning callback that records the user's own training as a run of a study."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader

from bnstudy.callbacks import RepresentationMetrics
from bnstudy.callbacks.first_process import others_wait
from bnstudy.callbacks.optimization import make_rows
from bnstudy.data.datasets import DatasetModule, SplitSource
from bnstudy.errors import UserError, first_line
from bnstudy.models.classifier import sum_performance
from bnstudy.representations.capture import as_pair
from bnstudy.representations.network import Batch, is_logits, is_softmax
from bnstudy.representations.taps import Taps
from bnstudy.terms import SPLITS, EvaluatedSplit
from bnstudy.training.own_run import (
    Run,
    describe_measurement,
    make_repeatable,
    require_splits,
    resolve_metric_names,
)

PROBE_SAMPLES = 2_000  # of each split, as in conf/train.yaml
PROBES_ARGUMENT = "probes={'train': batches, 'test': batches}, lists of (inputs, labels)"


class StudyRecorder(RepresentationMetrics):
    """Lightning callback that records any training as a run of a study.

    Layers are measured before training, after every n-th epoch and after the last one. A `Run`
    records the values, and the trainer's loggers get them, too. If training resumes from a
    checkpoint, its run continues.

    If the module's output is one logit per class, loss and accuracy are computed in eval mode at
    the end: on the trainer's whole training and validation data, or on `probes` if given.

    Args:
        study: Name of the study.
        norm: Name of the normalization; two runs that differ only in it form a pair.
        seed: Seed of the run.
        axes: Other settings that the runs differ in; see `Run`.
        probes: Batches (inputs, labels) of each split, `train` and `test`. None: at most 2,000
            class-balanced samples of the trainer's training data (`train`) and of its validation
            data (`test`). Random transforms are applied once, with a fixed seed.
        metrics: Names of metrics in `bnstudy.METRICS`; None for those of `metrics=default`.
        sites: Sites of a layer: any of conv, norm, act and features.
        every_n_epochs: Interval n; epoch 0 and the last one are always measured.
        output_root: Folder of all studies.
        overwrite: Whether to replace a finished run. If training resumes from a checkpoint and the
            earlier epochs were measured with other metrics, sites or probe sets: whether to drop
            these epochs. If False, both cases are errors.

    Raises:
        UserError: A name or value is not allowed.
    """

    def __init__(
        self,
        study: str,
        norm: str,
        seed: int,
        axes: Mapping[str, Any] | None = None,
        *,
        probes: Mapping[str, Iterable[Batch]] | None = None,
        metrics: Sequence[str] | None = None,
        sites: Sequence[str] = ("act",),
        every_n_epochs: int = 1,
        output_root: str | Path = "multirun",
        overwrite: bool = False,
    ) -> None:
        require_splits(probes or {})
        given = {split: make_repeatable(probe) for split, probe in (probes or {}).items()}
        super().__init__(given, resolve_metric_names(metrics), sites, every_n_epochs)
        self._given_probes = given
        self.run = Run(
            study, norm=norm, seed=seed, axes=axes, output_root=output_root, overwrite=overwrite
        )
        self._evaluation_batches = self.probes
        self._last_measured_epoch = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the run; unless training is resumed, measure epoch 0."""
        data = None if self._given_probes else _make_data(trainer)
        if data is not None:
            self.probes = {split: data.probe(split) for split in SPLITS}
            self._evaluation_batches = {split: data.whole(split) for split in SPLITS}
            self.calibration = data.calibration()
        if trainer.is_global_zero:
            if data is not None:
                facts = data.facts()
            else:
                # Twice, because a shuffled or augmented probe set differs in its second pass.
                for split, batches in [*self.probes.items()] * 2:
                    facts = self.run.check_probe(split, batches)
            names = [*self.directions()]
            measured = describe_measurement(names, self.sites, facts["sha256"], facts["probe"])
            self.run.open(trainer.current_epoch if trainer.global_step else None, measured)
            self.run.note_metrics(self)
            self.run.note_data(facts)
        super().on_train_start(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the last epoch if it was not measured yet, then evaluate the whole splits."""
        super().on_train_end(trainer, pl_module)
        with others_wait(trainer) as is_first:
            if is_first:
                step = trainer.global_step
                for split, batches in self._evaluation_batches.items():
                    values = _evaluate(pl_module, batches)
                    reason = "the loss is not finite"
                    rows = make_rows(values, None, self._last_measured_epoch, step, split, reason)
                    self.run.write(self._last_measured_epoch, rows)
                self.run.close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """End the run as failed, or interrupted."""
        self.run.close(exception)

    def _measure_and_log(
        self, trainer: L.Trainer, module: L.LightningModule, epoch: int
    ) -> dict[str, float]:
        values = super()._measure_and_log(trainer, module, epoch)
        self._last_measured_epoch = epoch
        if trainer.is_global_zero:
            self.run.write(epoch, self.rows, self.seconds)
        return values


def _make_data(trainer: L.Trainer) -> DatasetModule:
    """Make a data module of a trainer's data sets; its probe sets are the same in every run.

    Raises:
        UserError: There is no single loader for each split, samples have no index, or they are not
            pairs of inputs and a label.
    """
    loaders = trainer.train_dataloader, trainer.val_dataloaders
    sources: dict[EvaluatedSplit, SplitSource] = {}
    probe = dict.fromkeys(SPLITS, PROBE_SAMPLES)
    name = "StudyRecorder: the trainer's data"
    try:
        for split, loader in zip(SPLITS, loaders, strict=True):
            if isinstance(loader, list) and len(loader) == 1:
                loader = loader[0]
            if loader is None:
                raise UserError(
                    f"{name}: {split}: no DataLoader; Lightning skips validation loaders if the "
                    "module has no validation_step"
                )
            if not isinstance(loader, DataLoader):
                raise UserError(f"{name}: {split}: a {type(loader).__name__}, not one DataLoader")
            # Not from the loader, because `from_data` would refuse some samplers of the user.
            source = SplitSource.from_data(loader.dataset, f"{name}: {split}")
            sources[split] = source.with_loader_options(loader)
        data = DatasetModule(sources, name, seed=0, probe=probe)
        data.setup()
    except UserError as error:
        raise UserError(f"{first_line(error)}\nPass {PROBES_ARGUMENT}") from error
    for split in SPLITS:
        if sources[split].is_random():
            warnings.warn(
                f"{name}: {split}: samples are random (for example augmented); one fixed draw of "
                f"each is measured\nTo measure other samples, pass {PROBES_ARGUMENT}",
                stacklevel=2,
            )
    return data


def _evaluate(model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
    """Compute loss and accuracy in eval mode; nothing if the output is not logits."""
    sums = torch.zeros(3, dtype=torch.float64)
    are_probabilities = True
    with torch.no_grad(), Taps(model).evaluating() as run:
        for batch in batches:
            inputs, labels = as_pair(batch)
            logits = run(inputs)
            if not is_logits(logits, labels):
                return {}
            are_probabilities = are_probabilities and is_softmax(logits)
            sums += sum_performance(logits, labels)
    if are_probabilities:
        warnings.warn(
            f"{type(model).__name__}: its outputs are probabilities, and the recorded loss expects "
            "logits\nReturn logits from its forward method",
            stacklevel=3,
        )
    loss, correct, count = sums.tolist()
    return {"loss": loss / count, "accuracy": correct / count}
