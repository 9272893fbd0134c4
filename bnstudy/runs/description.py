"""The content of run.json: what a run is, how it went, and the changes it goes through.

A field that a file lacks has the default that its absence means: versions of bnstudy added fields.
A field that this version does not know is named to the user and kept when the file is written
again.
"""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bnstudy import __version__
from bnstudy.config.identity import identity
from bnstudy.errors import UserError
from bnstudy.runs.version import comparable_version
from bnstudy.terminal import console

FORMAT = 1  # of run.json as it is written; files without a format are of format 1

Status = Literal["running", "completed", "diverged", "failed", "interrupted"]
ENDED: tuple[Status, ...] = ("completed", "diverged")  # a diverged run is a result as well

_named: set[str] = set()  # unknown fields that this process has printed


class Part(BaseModel):
    """A part of run.json; unknown fields are kept."""

    model_config = ConfigDict(extra="allow")


class Slurm(Part):
    """SLURM job of an attempt.

    Attributes:
        job: Number of the job.
        restarts: How often SLURM has queued it again.
    """

    job: str
    restarts: str = "0"


class Attempt(Part):
    """One process's work on a run.

    Attributes:
        started: Time in ISO 8601.
        ended: Time in ISO 8601; None while it goes on, or if it was killed.
        status: How it went.
        host: Name of the machine.
        pid: Number of the process.
        version: Version of bnstudy; None: that of the run's environment (bnstudy 0.1).
        slurm: SLURM job; None outside of SLURM.
        resumed_from_epoch: Epochs trained before; None: it began anew. Absent if the attempt
            trained nothing: see `has_trained`.
        wandb_id: Id of the W&B run; None without one.
        seconds: Time that it took.
        measure_seconds: Part of that time that was spent on measuring.
        diverged: Whether training has diverged; None before the first epoch was recorded.
        error: Class and message of the error that ended it.
    """

    started: str | None = None
    ended: str | None = None
    status: Status
    host: str | None = None
    pid: int | None = None
    version: str | None = None
    slurm: Slurm | None = None
    resumed_from_epoch: int | None = None
    wandb_id: str | None = None
    seconds: float = 0.0
    measure_seconds: float = 0.0
    diverged: bool | None = None
    error: str | None = None

    @property
    def has_trained(self) -> bool:
        """Whether it came as far as to choose what it goes on from."""
        return "resumed_from_epoch" in self.model_fields_set


class Git(Part):
    """State of the checkout that bnstudy ran from.

    Attributes:
        commit: SHA-1 of the commit.
        dirty: Whether files differed from it.
    """

    commit: str | None = None
    dirty: bool | None = None


class Environment(Part):
    """Software and hardware that a run, or a later measurement, used.

    Attributes:
        git: State of the checkout; None if bnstudy was installed as a package.
        packages: Version of each package.
        python: Version of Python.
        platform: Operating system.
        processor: Name of the processor.
        gpus: Name of each GPU.
        threads: Number of torch's threads.
    """

    git: Git | None = None
    packages: dict[str, str] = {}
    python: str | None = None
    platform: str | None = None
    processor: str | None = None
    gpus: list[str] = []
    threads: int | None = None

    @property
    def version(self) -> str:
        """Major and minor number of the version of bnstudy."""
        return comparable_version(self.packages.get("bnstudy", "unknown"))


class Timing(Part):
    """Time that all attempts took together, in seconds; None before the first epoch.

    Attributes:
        seconds: All of it.
        measure_seconds: The part spent on measuring.
    """

    seconds: float | None = None
    measure_seconds: float | None = None


class DataFacts(Part):
    """Facts about the data that a run was trained on.

    Attributes:
        sha256: SHA-256 of every pixel and label.
        train: Number of training samples.
        validation: Number of samples held out of the training split.
        test: Number of test samples.
        classes: Names of the classes.
        probe: Number of measured samples by split.
    """

    sha256: str
    train: int = 0
    validation: int = 0
    test: int = 0
    classes: list[str] = []
    probe: dict[str, int] = {}

    def num_samples(self, split: Literal["train", "validation", "test"]) -> int:
        """Number of samples in a split."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]


class MeasuredLater(Part):
    """A measurement from checkpoints, after the run had ended.

    Attributes:
        epochs: Epochs that were measured.
        metrics: Names of the metrics; None: all.
        splits: Splits of the data; None: all (bnstudy 0.1 did not say).
        sites: Sites in a layer; None: all.
        environment: Software and hardware.
    """

    epochs: list[int]
    metrics: list[str] | None = None
    splits: list[str] | None = None
    sites: list[str] | None = None
    environment: Environment = Environment()


class Final(BaseModel):
    """Numbers of the whole model after the last epoch; empty until the run has ended.

    Numbers are fields that are called `<split>_<metric>`, None where they are not finite.

    Attributes:
        epoch: The last epoch.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None] = Field(init=False)

    epoch: int | None = None

    @property
    def numbers(self) -> dict[str, float | None]:
        """Numbers by `<split>_<metric>`."""
        return self.__pydantic_extra__


class OtherVersion(NamedTuple):
    """Rows of the long table that another version of bnstudy measured.

    Attributes:
        version: Major and minor number.
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
        identity: SHA-256 of all that can change the numbers.
        id: First digits of the identity.
        study: Name of the study.
        cell: Name of the folder that the run was trained in.
        choices: Option chosen of each configuration group.
        overrides: Overrides of the command line.
        seed: Random seed.
        status: How the run went; None before its first attempt.
        attempts: Every process that worked on the run, oldest first.
        config: Resolved configuration.
        metrics: Direction of each metric that was measured: higher, lower, or None.
        final: Numbers after the last epoch.
        timing: Time that it took.
        environment: Software and hardware of the last attempt.
        data: Facts about the data; None before they were loaded.
        target_sparsity: Share of zeros by layer that the regularizer aims for, where it is that of
            another run; None otherwise.
        callbacks: Names of the callbacks that every epoch was trained with.
        measured_later: Measurements from checkpoints.
    """

    format: int = Field(default=1, ge=1, le=FORMAT)
    identity: str
    id: str = ""
    study: str = ""
    cell: str = ""
    choices: dict[str, Any] = {}
    overrides: list[str] = []
    seed: int | None = None
    status: Status | None
    attempts: list[Attempt]
    config: dict[str, Any]
    metrics: dict[str, str | None] = {}
    final: Final = Final()
    timing: Timing = Timing()
    environment: Environment = Environment()
    data: DataFacts | None = None
    target_sparsity: dict[str, float] | None = None
    callbacks: list[str] = []
    measured_later: list[MeasuredLater] = []

    @classmethod
    def new(
        cls,
        config: dict[str, Any],
        cell: str,
        choices: dict[str, Any],
        overrides: Sequence[str],
    ) -> Self:
        """Describe a run that has not begun.

        Args:
            config: Resolved configuration.
            cell: Name of the cell's folder.
            choices: Option chosen of each configuration group.
            overrides: Overrides of the command line.
        """
        mark = identity(config)
        return cls(
            identity=mark,
            id=mark[:8],
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
        """Read a run.json, and print the fields that are unknown, each once in a process.

        Args:
            content: The file's content.
            path: Where it is from, for messages.

        Raises:
            ValueError: It is damaged, or not a run.json.
            UserError: A later version of bnstudy wrote it, in another format.
        """
        try:
            description = cls.model_validate_json(content)
        except ValidationError as error:
            for one in error.errors(include_url=False):
                if one["loc"] == ("format",) and one["type"] == "less_than_equal":
                    raise UserError(
                        f"{path}: format {one['input']} is of a later version of bnstudy; "
                        f"bnstudy {__version__} reads formats up to {FORMAT}\n"
                        "Install that version"
                    ) from None
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(": ".join(filter(None, [place, first["msg"]]))) from error
        unknown = dict.fromkeys(name for name in _unknown_fields(description) if name not in _named)
        if unknown:
            _named.update(unknown)
            console.print(
                f"{path}: unknown field{'s' * (len(unknown) > 1)} {', '.join(unknown)}, perhaps of "
                "another version of bnstudy; kept when the file is written again",
                style="yellow",
            )
        return description

    def to_json(self) -> str:
        """Write as JSON, with the fields that a file had or that were set since."""
        content = {"format": FORMAT} | self.model_dump(exclude_unset=True) | {"format": FORMAT}
        return json.dumps(content, indent=2) + "\n"

    @property
    def failures(self) -> int:
        """Number of attempts that failed."""
        return sum(attempt.status == "failed" for attempt in self.attempts)

    @property
    def has_diverged(self) -> bool:
        """Whether training has diverged, by the last epoch that was recorded."""
        noted = [attempt.diverged for attempt in self.attempts if attempt.diverged is not None]
        return bool(noted and noted[-1])

    @property
    def version(self) -> str:
        """Major and minor number of the bnstudy that trained the last epochs."""
        return self._versions()[-1][0]

    def other_versions(self) -> list[OtherVersion]:
        """List the rows of the long table that another version than `version` measured."""
        rows = [OtherVersion(version, epochs) for version, epochs in self._versions() if epochs]
        rows += [
            OtherVersion(one.environment.version, one.epochs, one.metrics, one.splits, one.sites)
            for one in self.measured_later
            if one.epochs
        ]
        return [some for some in rows if some.version != self.version]

    def start_attempt(self, environment: Environment) -> Attempt:
        """Add an attempt of this process, which is running.

        Args:
            environment: Software and hardware of this process.
        """
        for earlier in self.attempts:
            if earlier.status == "running":  # it was killed: nothing else leaves that behind
                earlier.status = "interrupted"
            # Version 0.1 said it in the environment alone, which is about to become this attempt's.
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

    def withdraw_attempt(self, status: Status | None, environment: Environment) -> None:
        """Remove the last attempt.

        Args:
            status: Status before the attempt.
            environment: Software and hardware of the attempt before.
        """
        self.attempts.pop()
        self.status, self.environment = status, environment

    def note(
        self,
        seconds: float,
        measure_seconds: float | None = None,
        diverged: bool | None = None,
    ) -> None:
        """Set the progress of the attempt that goes on, and the time of all attempts.

        Args:
            seconds: Time since the attempt began.
            measure_seconds: Part of it that was spent on measuring; None: as noted before.
            diverged: Whether training has diverged; None: as noted before.
        """
        attempt = self.attempts[-1]
        attempt.seconds = seconds
        if measure_seconds is not None:
            attempt.measure_seconds = measure_seconds
        if diverged is not None:
            attempt.diverged = diverged
        total = {
            "seconds": sum(one.seconds for one in self.attempts),
            "measure_seconds": sum(one.measure_seconds for one in self.attempts),
        }
        self.timing = self.timing.model_copy(update=total)

    def finish(self, seconds: float) -> None:
        """End the attempt that goes on, trained to its end: it has completed, or diverged.

        Args:
            seconds: Time since it began.
        """
        self._end("diverged" if self.attempts[-1].diverged else "completed", seconds)

    def fail(self, error: Exception, seconds: float) -> None:
        """End the attempt that goes on, which raised an error.

        Args:
            error: The error.
            seconds: Time since the attempt began.
        """
        self.attempts[-1].error = f"{type(error).__name__}: {error}"
        self._end("failed", seconds)

    def interrupt(self, seconds: float) -> None:
        """End the attempt that goes on, which was told to stop.

        Args:
            seconds: Time since it began.
        """
        self._end("interrupted", seconds)

    def start_over(self) -> None:
        """Forget all that the run had come to, except for its attempts."""
        self.status, self.final = "interrupted", Final()
        self.data, self.target_sparsity, self.measured_later = None, None, []
        self.model_fields_set.difference_update({"data", "target_sparsity", "measured_later"})

    def begin_with(self, config: dict[str, Any]) -> None:
        """Set the configuration of a run that is trained from its beginning.

        Args:
            config: Resolved configuration; it may differ from the last one in what does not change
                the numbers.
        """
        self.config = config
        self.callbacks = list(config["callbacks"])

    def go_on_with(self, config: dict[str, Any]) -> dict[str, Any]:
        """Note the configuration that a run goes on with, so that all epochs are described.

        Metrics are those that both configurations name. A callback keeps its first options, so that
        its numbers are of the same options in all epochs.

        Args:
            config: Resolved configuration.

        Returns:
            The configuration, with the callbacks' first options.
        """
        self.keep_common_metrics(config["metrics"])
        asked = config["callbacks"]
        kept = self.config.get("callbacks", {})
        chosen = {name: kept.get(name, options) for name, options in asked.items()}
        self.config["callbacks"] = kept | chosen
        self.callbacks = [name for name in asked if name in self.callbacks]
        return config | {"callbacks": chosen}

    def keep_common_metrics(self, metrics: dict[str, Any]) -> None:
        """Note that a run goes on with other metrics: each epoch has those that both name.

        Args:
            metrics: Configuration group of that name.
        """
        kept = self.config["metrics"]
        # How much memory was used has no effect on what is measured.
        same: dict[str, Any] = {"names": [], "memory_budget": None}
        alike = kept | same == metrics | same
        names = [name for name in metrics["names"] if alike and name in kept["names"]]
        self.config["metrics"] = metrics | {"names": names}

    def add_directions(self, directions: Mapping[str, str | None]) -> None:
        """Add metrics that are measured.

        Args:
            directions: Direction of each metric: higher, lower, or None.
        """
        self.metrics = self.metrics | dict(directions)

    def add_measurement(self, measurement: MeasuredLater) -> None:
        """Add a measurement from checkpoints."""
        self.measured_later = [*self.measured_later, measurement]

    def _end(self, status: Status, seconds: float) -> None:
        attempt = self.attempts[-1]
        attempt.ended, attempt.status, self.status = _now(), status, status
        self.note(seconds)

    def _versions(self) -> list[tuple[str, list[int]]]:
        """Versions in the order of attempts, each with the epochs that it trained and measured."""
        attempts = [attempt for attempt in self.attempts if attempt.has_trained]
        if not attempts:
            return [(self.environment.version, [])]
        resumed = [attempt.resumed_from_epoch for attempt in attempts]
        begins = [0 if epoch is None else epoch + 1 for epoch in resumed]
        last = self.final.epoch
        if last is None:
            last = self.config["trainer"]["max_epochs"]
        found = []
        for place, attempt in enumerate(attempts):
            end = min(begins[place + 1 :], default=last + 1)  # a later attempt writes over it
            version = comparable_version(attempt.version or self.environment.version)
            found.append((version, list(range(begins[place], end))))
        return [one for one in found if one[1]] or found[-1:]


def _unknown_fields(part: Part, prefix: str = "") -> list[str]:
    """List the dotted names of the fields that a part and its parts do not declare."""
    found = [f"{prefix}{name}" for name in part.__pydantic_extra__ or ()]
    for name, value in part.__dict__.items():
        for one in value if type(value) is list else [value]:
            if Part in type(one).__mro__:  # isinstance is slow with models; a study has many runs
                found += _unknown_fields(one, f"{prefix}{name}.")
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
