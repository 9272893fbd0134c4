"""Content of run.json: configuration, progress and result of a run, and methods to update them.

Versions of bnstudy have added fields. A field that is missing from a file gets the default that
matches the older version. A field that this version does not know is printed as a warning, and kept
when the file is written again.
"""

import json
import os
import socket
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import Field, ValidationError

from bnstudy import __version__
from bnstudy.config.identity import compute_identity
from bnstudy.errors import UserError
from bnstudy.redaction import REMOVED, redact_values
from bnstudy.runs.parts import (
    FINISHED,
    Attempt,
    DataFacts,
    Direction,
    Environment,
    Final,
    MeasuredLater,
    Part,
    RecordedConfig,
    Slurm,
    Status,
    Timing,
)
from bnstudy.runs.version import comparable_version
from bnstudy.terminal import console

FORMAT = 1  # version of the file format; files without the field have format 1

CHANCE_DEVIATIONS = 3.1  # one-sided test at 0.001

_printed_fields: set[str] = set()  # unknown fields that this process has printed


class RowsOfOtherVersion(NamedTuple):
    """Rows of the long table that were measured by another version of bnstudy.

    Attributes:
        version: Major and minor number of that version.
        epochs: Epochs of the rows.
        metrics: Names of the metrics; None: all.
        splits: Splits of the data; None: all.
        sites: Sites in a layer; None: all.
    """

    version: str
    epochs: list[int]
    metrics: list[str] | None = None
    splits: list[str] | None = None
    sites: list[str] | None = None


class RunDescription(Part):
    """Content of run.json.

    Attributes:
        format: Version of the file's format.
        identity: SHA-256 of all options that can change the numbers.
        id: First digits of the identity.
        study: Name of the study.
        cell: Name of the cell's folder.
        choices: Chosen option of each configuration group.
        overrides: Overrides of the command line.
        seed: Random seed.
        status: Status of the run; None before its first attempt.
        attempts: Attempts to train the run, oldest first.
        config: Resolved configuration.
        metrics: Direction of each metric that was measured: higher, lower, or None.
        final: Numbers after the last epoch.
        timing: Total duration of all attempts.
        environment: Software and hardware of the last attempt.
        data: Facts about the data; None before they were loaded.
        target_sparsity: Regularizer's target for the share of zeros, by layer, if the target is the
            sparsity of another run; None otherwise.
        callbacks: Names of the callbacks that were active in every epoch.
        measured_later: Measurements from checkpoints.
        precisions: Precisions of the matrix products, by layer label.
    """

    format: int = Field(default=1, ge=1, le=FORMAT)
    identity: str
    id: str = ""
    study: str = ""
    cell: str = ""
    choices: dict[str, str | None] = Field(default_factory=dict)
    overrides: list[str] = Field(default_factory=list)
    seed: int | None = None
    status: Status | None
    attempts: list[Attempt]
    config: dict[str, Any]
    metrics: dict[str, Direction] = Field(default_factory=dict)
    final: Final = Final()
    timing: Timing = Timing()
    environment: Environment = Environment()
    data: DataFacts | None = None
    target_sparsity: dict[str, float] | None = None
    callbacks: list[str] = Field(default_factory=list)
    measured_later: list[MeasuredLater] = Field(default_factory=list)
    precisions: dict[str, list[str]] = Field(default_factory=dict)

    @classmethod
    def new(
        cls,
        config: dict[str, Any],
        cell: str,
        choices: dict[str, Any],
        overrides: Sequence[str],
    ) -> Self:
        """Create the description of a run that has not started.

        Args:
            config: Resolved configuration.
            cell: Name of the cell's folder.
            choices: Chosen option of each configuration group.
            overrides: Overrides of the command line.
        """
        digest = compute_identity(config)
        # Some values equal the defaults. They are passed because `to_json` omits unset fields.
        return cls(
            identity=digest,
            id=digest[:8],
            study=config["study"],
            cell=cell,
            choices=choices,
            overrides=list(overrides),
            seed=config["seed"],
            status=None,
            attempts=[],
            config=config,
            metrics={},
            final=Final(),
            timing=Timing(),
            environment=Environment(),
        )

    @classmethod
    def from_json(cls, content: str | bytes, path: Path) -> Self:
        """Parse a run.json, and print its unknown fields, each once per process.

        Args:
            content: Content of the file.
            path: Path of the file, for messages.

        Raises:
            ValueError: The content is damaged, or not that of a run.json.
            UserError: The content was written by a newer version of bnstudy.
        """
        try:
            description = cls.model_validate_json(content)
            RecordedConfig.model_validate(description.config)
        except ValidationError as error:
            details = error.errors(include_url=False)
            for detail in details:
                if detail["loc"] == ("format",) and detail["type"] == "less_than_equal":
                    raise UserError(
                        f"{path}: format {detail['input']} was written by a newer bnstudy; "
                        f"bnstudy {__version__} reads formats up to {FORMAT}\n"
                        "Install that newer version"
                    ) from None
            group = ["config"] if error.title == RecordedConfig.__name__ else []
            location = ".".join(map(str, [*group, *details[0]["loc"]]))
            raise ValueError(": ".join(filter(None, [location, details[0]["msg"]]))) from error
        if description.status in FINISHED and description.final.epoch is None:
            raise ValueError("final.epoch: missing, although the run is finished")
        unknown = dict.fromkeys(
            name for name in _unknown_fields(description) if name not in _printed_fields
        )
        if unknown:
            _printed_fields.update(unknown)
            fields, are_kept = ("fields", "they are") if len(unknown) > 1 else ("field", "it is")
            console.print(
                f"{path}: unknown {fields} {', '.join(unknown)}, perhaps written by another "
                f"version of bnstudy; {are_kept} kept when the file is written again",
                style="yellow",
            )
        return description

    def to_json(self) -> str:
        """Return the content as JSON, without fields that were neither read from a file nor set.

        Credentials in the configuration, the command line and error messages are removed.
        """
        content = {"format": FORMAT} | self.model_dump(exclude_unset=True, exclude={"format"})
        for name in {"config", "overrides", "attempts"} & content.keys():
            content[name] = redact_values(content[name])
        return json.dumps(content, indent=2) + "\n"

    @property
    def num_failures(self) -> int:
        """Number of attempts that failed."""
        return sum(attempt.status == "failed" for attempt in self.attempts)

    @property
    def matches_identity(self) -> bool:
        """Whether the configuration hashes to the identity.

        It is also true if credentials were removed from the configuration, which changes its hash.
        """
        return compute_identity(self.config) == self.identity or REMOVED in json.dumps(self.config)

    @property
    def has_diverged(self) -> bool:
        """Whether training has diverged, according to the last recorded epoch."""
        noted = [attempt.diverged for attempt in self.attempts if attempt.diverged is not None]
        return bool(noted and noted[-1])

    @property
    def is_at_chance(self) -> bool:
        """Whether the final training accuracy is not clearly above that of guessing.

        Guessing is correct for 1/classes of the training samples. Accuracies up to
        `CHANCE_DEVIATIONS` standard deviations above that count as guessing.
        """
        accuracy = self.final.numbers.get("train_accuracy")
        if accuracy is None or self.data is None or not self.data.classes or not self.data.train:
            return False
        chance = 1 / len(self.data.classes)
        deviation = sqrt(chance * (1 - chance) / self.data.train)
        return accuracy <= chance + CHANCE_DEVIATIONS * deviation

    @property
    def version(self) -> str:
        """Major and minor number of the bnstudy version that trained the last epochs."""
        return self._versions()[-1][0]

    def other_versions(self) -> list[RowsOfOtherVersion]:
        """List the rows of the long table that were not measured by `version`."""
        rows = [
            RowsOfOtherVersion(version, epochs) for version, epochs in self._versions() if epochs
        ]
        rows += [
            RowsOfOtherVersion(
                later.environment.version, later.epochs, later.metrics, later.splits, later.sites
            )
            for later in self.measured_later
            if later.epochs
        ]
        return [row for row in rows if row.version != self.version]

    def start_attempt(self, environment: Environment) -> Attempt:
        """Add a running attempt of this process.

        Args:
            environment: Software and hardware of this process.
        """
        for earlier in self.attempts:
            if earlier.status == "running":  # its process was killed
                earlier.status = "interrupted"
            # Version 0.1 recorded its version only in the environment, which is replaced below.
            if earlier.version is None:
                earlier.version = self.environment.version
        attempt = Attempt(
            started=_now(),
            ended=None,
            status="running",
            host=socket.gethostname(),
            pid=os.getpid(),
            version=__version__,
        )
        if job := os.environ.get("SLURM_JOB_ID"):
            restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
            attempt.slurm = Slurm(job=job, restarts=restarts)
        self.attempts.append(attempt)
        self.environment = environment
        self.status = "running"
        return attempt

    def update_progress(
        self,
        seconds: float,
        measure_seconds: float | None = None,
        diverged: bool | None = None,
    ) -> None:
        """Update the progress of the running attempt, and the total duration.

        Args:
            seconds: Time since the start of the attempt.
            measure_seconds: Part of it that was spent on measuring; None: unchanged.
            diverged: Whether training has diverged; None: unchanged.
        """
        attempt = self.attempts[-1]
        attempt.seconds = seconds
        if measure_seconds is not None:
            attempt.measure_seconds = measure_seconds
        if diverged is not None:
            attempt.diverged = diverged
        total = {
            "seconds": sum(attempt.seconds for attempt in self.attempts),
            "measure_seconds": sum(attempt.measure_seconds for attempt in self.attempts),
        }
        self.timing = self.timing.model_copy(update=total)

    def finish(self, seconds: float) -> None:
        """End the running attempt, which has completed or diverged.

        Args:
            seconds: Time since the start of the attempt.
        """
        self._end("diverged" if self.attempts[-1].diverged else "completed", seconds)

    def fail(self, error: Exception, seconds: float) -> None:
        """End the running attempt, which raised an error.

        Args:
            error: Error that was raised.
            seconds: Time since the start of the attempt.
        """
        self.attempts[-1].error = f"{type(error).__name__}: {error}"
        self._end("failed", seconds)

    def interrupt(self, seconds: float) -> None:
        """End the running attempt, which was stopped by a signal.

        Args:
            seconds: Time since the start of the attempt.
        """
        self._end("interrupted", seconds)

    def start_over(self) -> None:
        """Reset all results of the run; its attempts are kept."""
        self.status, self.final = "interrupted", Final()
        self.data, self.target_sparsity, self.measured_later = None, None, []
        self.model_fields_set.difference_update({"data", "target_sparsity", "measured_later"})

    def set_config(self, config: dict[str, Any]) -> None:
        """Set the configuration of a run that is trained from the beginning.

        Args:
            config: Resolved configuration; it may differ from the previous one in options that do
                not change the numbers.
        """
        self.config = config
        self.callbacks = list(config["callbacks"])

    def update_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """Update the configuration of a run that is resumed, so that it applies to all epochs.

        Only metrics that both configurations name and measure alike are kept. Each callback keeps
        its first options, so that its numbers are comparable over all epochs.

        Args:
            config: Resolved configuration.

        Returns:
            Configuration with the first options of each callback.
        """
        self.keep_common_metrics(config["metrics"])
        requested = config["callbacks"]
        kept = self.config.get("callbacks", {})
        chosen = {name: kept.get(name, options) for name, options in requested.items()}
        self.config["callbacks"] = kept | chosen
        self.callbacks = [name for name in requested if name in self.callbacks]
        return config | {"callbacks": chosen}

    def keep_common_metrics(self, metrics: dict[str, Any]) -> None:
        """Reduce the recorded metrics to those that a resumed run has in every epoch.

        Args:
            metrics: Configuration group `metrics` of the resumed run.
        """
        kept = self.config["metrics"]
        # Names are compared below, one by one. The other options change the values at the epochs by
        # no more than rounding.
        ignored: dict[str, Any] = {
            "names": [],
            "memory_budget": None,
            "precision": None,
            "at_steps": [],
            "folds": 0,
        }
        is_comparable = kept | ignored == metrics | ignored
        names = [name for name in metrics["names"] if is_comparable and name in kept["names"]]
        self.config["metrics"] = metrics | {"names": names}

    def add_directions(self, directions: Mapping[str, str | None]) -> None:
        """Add measured metrics with their directions.

        Args:
            directions: Direction of each metric: higher, lower, or None.
        """
        self.metrics = self.metrics | dict(directions)

    def add_precisions(self, precisions: Mapping[str, Collection[str]]) -> None:
        """Add precisions of the matrix products, by layer label."""
        self.precisions = self.precisions | {
            layer: sorted({*self.precisions.get(layer, ()), *found})
            for layer, found in precisions.items()
        }

    def add_measurement(self, measurement: MeasuredLater) -> None:
        """Add a measurement from checkpoints."""
        self.measured_later = [*self.measured_later, measurement]

    def _end(self, status: Status, seconds: float) -> None:
        attempt = self.attempts[-1]
        attempt.ended, attempt.status, self.status = _now(), status, status
        self.update_progress(seconds)

    def _versions(self) -> list[tuple[str, list[int]]]:
        """List the version of each attempt, in order, with the epochs that it trained.

        An epoch belongs to the last attempt that trained it. Attempts without epochs are left out;
        if none has any, only the last attempt is listed.
        """
        attempts = [attempt for attempt in self.attempts if attempt.has_chosen_start]
        if not attempts:
            return [(self.environment.version, [])]
        resumed = [attempt.resumed_from_epoch for attempt in attempts]
        begins = [0 if epoch is None else epoch + 1 for epoch in resumed]
        last = self.final.epoch
        if last is None:
            last = self.config["trainer"]["max_epochs"]
        versions = []
        for index, attempt in enumerate(attempts):
            end = min(begins[index + 1 :], default=last + 1)  # a later attempt overwrites epochs
            version = comparable_version(attempt.version or self.environment.version)
            versions.append((version, list(range(begins[index], end))))
        return [(version, epochs) for version, epochs in versions if epochs] or versions[-1:]


def _unknown_fields(part: Part, prefix: str = "") -> list[str]:
    """List the dotted names of unknown fields of a part and of the parts in it."""
    unknown = [f"{prefix}{name}" for name in part.__pydantic_extra__ or ()]
    for name, value in part.__dict__.items():
        for item in value if type(value) is list else [value]:
            if Part in type(item).__mro__:  # isinstance is slow for pydantic models
                unknown += _unknown_fields(item, f"{prefix}{name}.")
    return unknown


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
