"""Clocks and random images that `training.py` puts inside a run of `python -m bnstudy.train`.

The clocks are callbacks of the run, `+callbacks.clock._target_=inside_training.AgainstBare`, so
they time the program as it is. Each writes its findings to a file.
"""

import json
import time
from abc import abstractmethod
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
import torch
from template import Template, like
from torch import Tensor
from torch.nn import functional

from bnstudy.data import ImageDataModule, Images
from bnstudy.models import Classifier
from bnstudy.runs.long_table import Row
from bnstudy.terms import SPLITS

SKIPPED = 4  # steps at the beginning of an epoch: caches are cold, or queues still full


class RandomImages(ImageDataModule):
    """Random images of 3 x 32 x 32 and 10 classes: speed does not depend on the pixels.

    Args:
        count: Number of training images; there are 100 test images.
        options: Options of any data set.
    """

    def __init__(self, count: int, **options: Any) -> None:
        super().__init__(**options)
        self.counts = {"train": count, "test": 100}

    def load(self) -> Images:
        """Draw the images."""
        generator = torch.Generator().manual_seed(0)

        def drawn(split: str, below: int, dtype: torch.dtype, *shape: int) -> Tensor:
            size = (self.counts[split], *shape)
            return torch.randint(below, size, dtype=dtype, generator=generator)

        return Images(
            {split: drawn(split, 256, torch.uint8, 3, 32, 32) for split in SPLITS},
            {split: drawn(split, 10, torch.int64) for split in SPLITS},
            tuple(map(str, range(10))),
        )


class Clock(L.Callback):
    """Callback that measures time and adds nothing to the run's record.

    Args:
        file: File for its findings.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.rows: list[Row] = []
        self.seconds = 0.0


class Stopwatch(L.Callback):
    """Callback that times the steps of each epoch except the first few and the smaller last one.

    Args:
        batches: Number of whole batches in an epoch; a smaller one follows them.

    Attributes:
        laps: Seconds by epoch.
        steps: Number of timed steps in an epoch.
    """

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.steps = batches - SKIPPED
        self.laps: list[float] = []
        self.started = 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start or stop the time."""
        if batch_idx == SKIPPED:
            self.started = now()
        elif batch_idx == self.batches:
            self.laps.append(now() - self.started)


class Against(Clock):
    """Clock that alternates epochs of the run and of a reference, which trains a copy of its net.

    The reference begins and ends, so that each epoch of the run is between two of the reference.
    The first epoch of both is a warm-up. The file gets `batch_size`, `steps` (number of timed steps
    in an epoch), and the seconds by epoch, `ours` and `reference`, which has one more.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the reference, from the initial weights."""
        assert isinstance(pl_module, Classifier)
        self.data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
        batches, rest = divmod(len(self.data.data.labels["train"]), self.data.batch_size)
        assert rest, "the clock stops where an epoch's last, smaller batch begins"
        self.ours, self.theirs = Stopwatch(batches), Stopwatch(batches)
        self.make_reference(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Run an epoch of the reference."""
        self.reference_epoch()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Time the run's steps."""
        self.ours.on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Run the reference's last epoch; write the times."""
        self.reference_epoch()
        found = {
            "batch_size": self.data.batch_size,
            "steps": self.ours.steps,
            "ours": self.ours.laps[1:],
            "reference": self.theirs.laps[1:],
        }
        self.file.write_text(json.dumps(found))

    @abstractmethod
    def make_reference(self, trainer: L.Trainer, classifier: Classifier) -> None:
        """Copy the network and whatever else the reference needs."""

    @abstractmethod
    def reference_epoch(self) -> None:
        """Run as many steps of the reference; add a lap to `theirs`."""


class AgainstBare(Against):
    """Clock whose reference is the bare step, over one batch that is already loaded.

    Its optimizer, precision, memory format and threads are the run's.
    """

    def make_reference(self, trainer: L.Trainer, classifier: Classifier) -> None:
        """Make the loop's network, optimizer and batch."""
        self.network = deepcopy(classifier.network).train()
        self.optimizer = like(classifier.optimizer, self.network)
        images, self.labels = next(iter(self.data.train_dataloader()))
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.mixed = trainer.precision == "bf16-mixed"

    def reference_epoch(self) -> None:
        """Run the loop."""
        for step in range(self.theirs.batches):
            if step == SKIPPED:
                started = now()
            self._step()
        self.theirs.laps.append(now() - started)

    def _step(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.mixed):
            loss = functional.cross_entropy(self.network(self.images), self.labels)
        loss.backward()
        self.optimizer.step()


class AgainstTemplate(Against):
    """Clock whose reference is the template's pipeline, over the same images."""

    def make_reference(self, trainer: L.Trainer, classifier: Classifier) -> None:
        """Make the template's network, data and trainer."""
        images = self.data.data
        self.template = Template(
            classifier.network,
            classifier.optimizer,
            (images.images["train"], images.labels["train"]),
            self.data.num_classes,
            self.data.batch_size,
            trainer.precision,
            self.theirs,
        )

    def reference_epoch(self) -> None:
        """Train the template for an epoch."""
        self.template.train_an_epoch()


class Stamps(Clock):
    """Clock that notes the times of three events, in seconds since 1970, one per line.

    `built`: data, network and trainer are made. `evaluated`: the evaluation before training is
    done. `stepped`: the first training step is done.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Note `built`, when the evaluation before training begins."""
        if stage == "validate":
            self._stamp("built")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note `evaluated`."""
        if trainer.state.fn == "validate":
            self._stamp("evaluated")

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note `stepped` after the first step."""
        if trainer.global_step == 1:
            wait()
            self._stamp("stepped")

    def _stamp(self, event: str) -> None:
        with self.file.open("a") as file:
            print(event, time.time(), file=file)


def now() -> float:
    """Wait for the device; return the time in seconds."""
    wait()
    return time.perf_counter()


def wait() -> None:
    """Wait until the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
