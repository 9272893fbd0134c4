"""Records of runs that the user's own code trains."""

import hashlib
import operator
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from omegaconf import OmegaConf
from torch import nn

from bnstudy.callbacks import RepresentationMetrics
from bnstudy.callbacks.optimization import make_rows
from bnstudy.config import CONFIG_FOLDER
from bnstudy.config.identity import GROUPS, name_cell, name_cell_folder
from bnstudy.config.schema import validate
from bnstudy.errors import UserError, shorten
from bnstudy.representations.capture import as_pair
from bnstudy.representations.network import Batch
from bnstudy.representations.running_statistics import uncalibrated
from bnstudy.runs.description import RunDescription
from bnstudy.runs.long_table import Row
from bnstudy.runs.parts import MAX_EPOCH, Attempt, DataFacts
from bnstudy.runs.record import Record
from bnstudy.study.load.design import COLUMN_OF_KEY
from bnstudy.terminal import console
from bnstudy.terms import EVALUATED_SPLITS, SPLITS
from bnstudy.training.environment import describe_environment

KEY_OF_COLUMN = {column: key for key, column in COLUMN_OF_KEY.items()}  # such as depth: model.depth
RESERVED_KEYS = ("norm", "norm.name", "seed")  # arguments of `Run`, not allowed as axes


class Run:
    """Run of a study that the user's own code trains; a context manager.

    Inside the context the run's folder, `output_root/study/<cell>`, belongs to this process. Each
    measurement is on the disk when `measure` or `log` returns.

    The status becomes completed, or diverged if a loss was not finite. After an error it is failed,
    after Ctrl+C interrupted. An attempt that raises a `UserError` before the first value is not
    recorded.

    A new `Run` with the same norm, seed and axes restarts an unfinished run. With `overwrite`, a
    finished run is kept until its replacement has recorded a value.

    Args:
        study: Name of the study.
        norm: Name of the normalization; two runs that differ only in it form a pair.
        seed: Seed of the run.
        axes: Other settings that the runs of the study differ in. `depth`, `width` and `lr` stand
            for `model.depth`, `model.width` and `optim.lr`. A name with a dot, such as
            `optim.momentum`, is a key of that group; any other name is a key of `model`.
        output_root: Folder of all studies.
        overwrite: Whether to replace a finished run.

    Raises:
        UserError: A name or value is not allowed.

    Example:
        >>> from tempfile import mkdtemp
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> probe = [(torch.randn(20, 4), torch.arange(20) % 2)]
        >>> with Run("mine", norm="none", seed=0, output_root=mkdtemp()) as run:
        ...     values = run.measure(network, probe, epoch=0, metrics=["unit_sparsity"])
        ...     run.log(epoch=0, test_accuracy=0.5)  # doctest: +ELLIPSIS
        /.../mine/none-seed0-...: completed
        To write the report: python -m bnstudy.report /.../mine
    """

    def __init__(
        self,
        study: str,
        *,
        norm: str,
        seed: int,
        axes: Mapping[str, Any] | None = None,
        output_root: str | Path = "multirun",
        overwrite: bool = False,
    ) -> None:
        self.config = _configuration(study, norm, seed, axes or {}, str(output_root))
        self.folder = Path(output_root, study, name_cell_folder(self.config))
        self.overwrite = overwrite
        self.choices: dict[str, str | None] = {"model": "own", "data": "own"}
        self._contexts = ExitStack()
        self._record: Record | None = None
        self._digests: dict[str, tuple[str, int]] = {}  # SHA-256 and number of samples, by split
        self._epochs_kept: int | None = None  # last recorded epoch that is kept; None: none is
        self._measure_seconds = 0.0
        self._diverged = False
        self._calibration: Iterable[Batch] | None = None  # batches of the training probe set

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(error)

    def open(
        self, epochs_done: int | None = None, measured: Mapping[str, Any] | None = None
    ) -> None:
        """Take the run's folder, and begin an attempt.

        Args:
            epochs_done: Number of epochs already trained; None to start from the beginning.
            measured: Result of `describe_measurement` for this attempt. If the recorded epochs were
                measured in the same way, those up to epoch `epochs_done` are kept. None: all
                recorded epochs are removed.

        Raises:
            UserError: The run is finished, or its epochs were measured in another way, and
                `overwrite` is not set; or another process works in the folder.
        """
        description = RunDescription.new(self.config, self.folder.name, self.choices, [])
        with ExitStack() as contexts:
            record = contexts.enter_context(Record.open(self.folder, description))
            if record.is_finished and not self.overwrite:
                raise UserError(
                    f"{self.folder}: the run is already finished ({record.description.status})\n"
                    "Pass overwrite=True to replace it, or choose another study"
                )
            self._epochs_kept = epochs_done
            if epochs_done is not None and (record.is_finished or record.paths.parts()):
                self._check_measurement(record.description, measured or {})
            record.has_unreplaced_result = record.is_finished
            if self._epochs_kept is None and record.description.attempts:
                record.description.start_over()
            contexts.callback(_remove_parts_if_finished, record)
            self._attempt: Attempt = contexts.enter_context(
                record.attempt(describe_environment(self.folder.parent))
            )
            self._attempt.resumed_from_epoch = epochs_done
            record.description.set_config(self.config)
            record.description.choices = self.choices
            if not record.has_unreplaced_result:
                self._remove_replaced_results(record)
            self._record, self._contexts = record, contexts.pop_all()

    def close(self, error: BaseException | None = None) -> None:
        """End the attempt, and release the folder.

        Args:
            error: Error that ended training; None if training finished.

        Raises:
            UserError: Nothing was measured or logged.
        """
        record, self._record = self._record, None
        if record is None:
            return
        if error is not None:
            self._contexts.__exit__(type(error), error, error.__traceback__)
            return
        with self._contexts:
            if record.has_unreplaced_result or not record.paths.parts():
                raise UserError(f"{self.folder}: nothing was measured or logged")
            self._attempt.diverged = self._diverged
            record.join_parts()
        console.print(f"{self.folder}: {record.description.status}")
        console.print(f"To write the report: python -m bnstudy.report {self.folder.parent}")

    def measure(
        self,
        model: nn.Module,
        probe: Iterable[Batch],
        epoch: int,
        *,
        split: str = "train",
        metrics: Sequence[str] | None = None,
        sites: Sequence[str] = ("act",),
        step: int = 0,
        memory_budget: float = 2,
    ) -> dict[str, dict[str, float]]:
        """Measure every layer of a network, and record the values.

        The network is run in eval mode and left as it was. BatchNorm layers that have not seen a
        batch yet are measured with the statistics of the probe set of the split `train`; measure
        that split first.

        Args:
            model: Network.
            probe: Batches (inputs, labels): the same samples in the same order at every epoch and
                in every run of the study.
            epoch: Number of epochs trained so far; 0 before training.
            split: Split of the samples: `train` or `test`.
            metrics: Names of metrics in `bnstudy.METRICS`; None for those of `metrics=default`.
            sites: Sites of a layer: any of conv, norm, act and features.
            step: Number of optimizer steps so far; if it is always 0, reports use epochs.
            memory_budget: Maximum memory of activations and of distances between samples, in GiB.

        Returns:
            Values by layer and metric. If the network's output is one logit per class, the key
            "model" has `probe_loss` and `probe_accuracy`.

        Raises:
            UserError: A name is unknown, the samples are not those of earlier epochs, or the split
                `train` has to be measured first.
        """
        require_splits([split])
        epoch, step = _integer("epoch", epoch, MAX_EPOCH), _integer("step", step)
        probe = make_repeatable(probe)
        self.note_data(self.check_probe(split, probe))
        if split != "train" and self._calibration is None and uncalibrated(model):
            raise UserError(
                f"measure(split={split!r}): BatchNorm layers have not seen a batch yet\n"
                "Measure split='train' first, whose samples give their statistics"
            )
        measurement = RepresentationMetrics(
            {split: probe},
            resolve_metric_names(metrics),
            sites,
            memory_budget=memory_budget,
            calibration=None if split == "train" else self._calibration,
        )
        if split == "train":
            self._calibration = measurement.calibration
        rows = measurement.measure(model, epoch, step)
        self.note_metrics(measurement)
        self.write(epoch, rows, self._measure_seconds + measurement.seconds)
        values: dict[str, dict[str, float]] = {}
        for row in rows:
            values.setdefault(row.label, {})[row.metric] = row.value
        return values

    def log(self, epoch: int, step: int = 0, **numbers: float) -> None:
        """Record numbers of the whole model.

        Args:
            epoch: Number of epochs trained so far.
            step: Number of optimizer steps so far; if it is always 0, reports use epochs.
            numbers: Numbers by `<split>_<metric>`, such as train_loss or test_accuracy. Accuracies
                are from 0 to 1.

        Raises:
            UserError: A name has no split, a value is not a single number, or an accuracy is not
                from 0 to 1.
        """
        epoch, step = _integer("epoch", epoch, MAX_EPOCH), _integer("step", step)
        rows: list[Row] = []
        for name, number in numbers.items():
            split, _, metric = name.partition("_")
            try:
                value = float(number)
            except (RuntimeError, TypeError, ValueError) as error:
                # For example a tensor with several elements.
                raise UserError(
                    f"log({name}={shorten(number)}): expected a single number"
                ) from error
            if split not in EVALUATED_SPLITS or not metric:
                raise UserError(
                    f"log({name}=...): expected a name <split>_<metric>, such as train_loss or "
                    f"test_accuracy\nSplits are {', '.join(EVALUATED_SPLITS)}"
                )
            if metric.endswith("accuracy") and not 0 <= value <= 1:
                raise UserError(f"log({name}={value}): expected an accuracy from 0 to 1")
            if metric not in ("loss", "accuracy"):
                self._opened.description.add_directions({metric: None})
            rows += make_rows({metric: value}, None, epoch, step, split, f"{metric} is not finite")
        self.write(epoch, rows)

    def check_probe(self, split: str, probe: Iterable[Batch]) -> dict[str, Any]:
        """Verify that the samples of a split's probe set have not changed.

        Returns:
            SHA-256 and sizes of all probe sets so far, as fields of `DataFacts`.

        Raises:
            UserError: The samples differ from those of an earlier measurement.
        """
        digest = _digest(probe)
        if self._digests.setdefault(split, digest) != digest:
            raise UserError(
                f"{self.folder}: the samples of split={split} are not those measured before\n"
                "Pass the same samples in the same order, without shuffling and augmentation"
            )
        whole = hashlib.sha256(repr(sorted(self._digests.items())).encode()).hexdigest()
        sizes = {name: count for name, (_, count) in self._digests.items()}
        return {"sha256": whole, "probe": sizes}

    def note_data(self, facts: Mapping[str, Any]) -> None:
        """Record facts about the data, given as fields of `DataFacts`."""
        self._opened.description.data = DataFacts.model_validate(facts)

    def note_metrics(self, measurement: RepresentationMetrics) -> None:
        """Record which metrics are measured, and their directions."""
        description = self._opened.description
        description.add_directions(measurement.directions())
        description.config["metrics"] |= {
            "names": list(measurement.directions()),
            "sites": list(measurement.sites),
            "every_n_epochs": measurement.every_n_epochs,
        }

    def write(self, epoch: int, rows: Sequence[Row], measure_seconds: float | None = None) -> None:
        """Add rows to an epoch's part of the long table.

        Args:
            epoch: Epoch of the rows.
            rows: Rows; each replaces a recorded row with the same epoch, step, split, layer, site
                and metric.
            measure_seconds: Time spent on all measurements so far; None: unchanged.
        """
        record = self._opened
        if record.has_unreplaced_result:
            self._remove_replaced_results(record)
        if measure_seconds is not None:
            self._measure_seconds = measure_seconds
        self._diverged |= any(
            row.metric in ("loss", "probe_loss") and not isfinite(row.value) for row in rows
        )
        record.table.write_part(epoch, rows, add=record.paths.part(epoch).exists())
        record.save_progress(self._measure_seconds, self._diverged)

    def _check_measurement(self, before: RunDescription, measured: Mapping[str, Any]) -> None:
        """Keep earlier epochs if they were measured with the same metrics, sites and probe sets.

        Raises:
            UserError: They were measured with others, and `overwrite` is not set.
        """
        metrics, data = before.config["metrics"], before.data
        sha256, probe = (data.sha256, data.probe) if data else (None, {})
        known = describe_measurement(metrics["names"], metrics["sites"], sha256, probe)
        for key, value in measured.items():
            if value != known[key] and not self.overwrite:
                raise UserError(
                    f"{self.folder}: {key} are {value}, but were {known[key]} up to epoch "
                    f"{self._epochs_kept}, from which training resumes\n"
                    "Pass the same, pass overwrite=True to drop those epochs, or choose another "
                    "study"
                )
        if measured != known:
            self._epochs_kept = None

    def _remove_replaced_results(self, record: Record) -> None:
        """Remove the results that the run replaces: all, or those after the epochs it keeps."""
        record.has_unreplaced_result = False
        record.save()
        if self._epochs_kept is None:
            record.paths.remove_results()
            return
        if record.paths.table.exists():
            record.table.split_into_parts()
        record.paths.remove_parts(after=self._epochs_kept)

    @property
    def _opened(self) -> Record:
        if self._record is None:
            raise UserError("The run is not open\nCall this inside `with bnstudy.Run(...) as run:`")
        return self._record


def describe_measurement(
    names: Sequence[str], sites: Sequence[str], sha256: str | None, probe_sizes: Mapping[str, int]
) -> dict[str, Any]:
    """Summarize a measurement's metrics, sites and probe sets, for comparison with another."""
    sizes = ", ".join(f"{count} of {split}" for split, count in sorted(probe_sizes.items()))
    probes = f"{sizes} (SHA-256 {(sha256 or '')[:8]})"
    return {"metrics": sorted(names), "sites": sorted(sites), "probes": probes}


def _remove_parts_if_finished(record: Record) -> None:
    if record.is_finished:
        record.remove_intermediate_files()


def _configuration(
    study: str, norm: str, seed: int, axes: Mapping[str, Any], output_root: str
) -> dict[str, Any]:
    """Compose the configuration of a run, of which only some settings are known.

    It has the groups that every reader of records relies on. The number of epochs is always 0, so
    that the identity depends only on what the user passed.

    Raises:
        UserError: A name or value is not allowed.
    """
    config: dict[str, Any] = {
        "seed": _plain(seed),
        "study": study,
        "output_root": output_root,
        **{group: {} for group in GROUPS},
        "norm": {"name": norm},
        "regularizer": {"name": "none"},
        "trainer": {"max_epochs": 0},
        "metrics": {"names": [], "sites": [], "every_n_epochs": 1, "memory_budget": 2},
        "callbacks": {},
    }
    for key, value in axes.items():
        config_key = KEY_OF_COLUMN.get(key, key if "." in key else f"model.{key}")
        group, _, name = config_key.partition(".")
        value = _plain(value)
        axis = f"axes={{{key!r}: {shorten(value)}}}"
        if key in RESERVED_KEYS:
            raise UserError(
                f"{axis}: norm and seed are arguments of their own\n"
                "Pass norm=NAME and seed=N; an axis is another setting, such as depth"
            )
        if group not in GROUPS or not isinstance(value, str | int | float | bool | None):
            raise UserError(
                f"{axis}: an axis is a name without a dot, or a key of "
                f"{', '.join(GROUPS)}; its value must be a number, a string, a bool or None"
            )
        config[group][name] = value
    config["cell"] = name_cell(config)
    validate({key: config[key] for key in ("seed", "study", "cell", "output_root")})
    return config


def resolve_metric_names(metrics: Sequence[str] | None) -> Sequence[str]:
    """Return the given names of metrics, or those of `metrics=default`."""
    if metrics is not None:
        return metrics
    default: Any = OmegaConf.load(CONFIG_FOLDER / "metrics" / "default.yaml")
    return list(default.names)


def _plain(value: Any) -> Any:
    """Convert a NumPy or torch scalar to a Python scalar."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _integer(key: str, value: Any, limit: int = 2**63 - 1) -> int:
    """Convert an integer of any type, such as NumPy's, to a Python integer.

    Raises:
        UserError: The value is not an integer from 0 to `limit`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number <= limit:
        raise UserError(
            f"{key}={shorten(value)} is not allowed; expected an integer from 0 to {limit}"
        )
    return number


def require_splits(splits: Iterable[str]) -> None:
    """Raise UserError if a split is not one that is measured."""
    for split in splits:
        if split not in SPLITS:
            raise UserError(f"split={split} is not known; expected {' or '.join(SPLITS)}")


def make_repeatable(probe: Iterable[Batch]) -> Iterable[Batch]:
    """Return batches that can be read several times."""
    return probe if hasattr(probe, "__len__") else list(probe)


def add_to_digest(digest: "hashlib._Hash", values: torch.Tensor) -> None:
    """Add the type, shape and values of a tensor to a digest."""
    values = values.detach().cpu().contiguous()
    digest.update(f"{values.dtype} {tuple(values.shape)}".encode())
    digest.update(values.flatten().view(torch.uint8).numpy().data)


def _digest(probe: Iterable[Batch]) -> tuple[str, int]:
    """Compute the SHA-256 of a probe set, whatever its batch size, and count its samples."""
    digests, count = (hashlib.sha256(), hashlib.sha256()), 0
    for batch in probe:
        as_pair(batch)  # raises a UserError if the batch is not a pair
        inputs, labels = batch
        for digest, values in zip(digests, (inputs, torch.as_tensor(labels)), strict=True):
            for value in values:
                add_to_digest(digest, value)
        count += len(inputs)
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest(), count
