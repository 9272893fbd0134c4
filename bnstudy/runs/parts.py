"""Parts of run.json as typed objects."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt

from bnstudy.runs.version import comparable_version

Status = Literal["running", "completed", "diverged", "failed", "interrupted"]
FINISHED: tuple[Status, ...] = ("completed", "diverged")  # a diverged run is not trained again

MAX_EPOCH = 10**7  # larger numbers are damage; versions are looked up epoch by epoch
Epoch = Annotated[int, Field(ge=0, le=MAX_EPOCH)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Direction = Annotated[str, Field(pattern="^(higher|lower)$")] | None


def _verify_time(text: str) -> str:
    datetime.fromisoformat(text)
    return text


Time = Annotated[str, AfterValidator(_verify_time)]  # ISO 8601; kept as it was written


class Part(BaseModel):
    """Part of run.json; it keeps unknown fields."""

    model_config = ConfigDict(extra="allow", strict=True)


class Slurm(Part):
    """SLURM job of an attempt.

    Attributes:
        job: Number of the job.
        restarts: Number of times that SLURM has requeued the job.
    """

    job: str
    restarts: str = "0"


class Attempt(Part):
    """Attempt of one process to train a run.

    Attributes:
        started: Time in ISO 8601.
        ended: Time in ISO 8601; None if it is running or was killed.
        status: Status of the attempt.
        host: Name of the machine.
        pid: Number of the process.
        version: Version of bnstudy; None: that of the run's environment (bnstudy 0.1).
        slurm: SLURM job; None outside of SLURM.
        resumed_from_epoch: Number of epochs trained before the attempt; None: it started from the
            beginning. The field is set when the attempt chooses: see `has_chosen_start`.
        wandb_id: Id of the W&B run; None without one.
        seconds: Duration of the attempt.
        measure_seconds: Part of the duration that was spent on measuring.
        diverged: Whether training has diverged; None before the first epoch was recorded.
        error: Class and message of the error that ended the attempt.
    """

    started: Time | None = None
    ended: Time | None = None
    status: Status
    host: str | None = None
    pid: int | None = None
    version: str | None = None
    slurm: Slurm | None = None
    resumed_from_epoch: Epoch | None = None
    wandb_id: str | None = None
    seconds: Seconds = 0.0
    measure_seconds: Seconds = 0.0
    diverged: bool | None = None
    error: str | None = None

    @property
    def has_chosen_start(self) -> bool:
        """Whether the attempt has chosen to resume from a checkpoint or to start over."""
        return "resumed_from_epoch" in self.model_fields_set


class Git(Part):
    """State of a repository.

    Attributes:
        commit: SHA-1 of the commit.
        dirty: Whether files differed from the commit.
        patch: Path, relative to the study's folder, of a file with the differences of tracked
            source files; None if there are none.
    """

    commit: str | None = None
    dirty: bool | None = None
    patch: str | None = None


class Environment(Part):
    """Software and hardware of a run or of a later measurement.

    Attributes:
        git: State of bnstudy's checkout; None if it was installed as a package.
        own_git: State of the repository that the process ran in, such as the user's own; None if
            there is none, or if it is bnstudy's.
        packages: Version of each package.
        python: Version of Python.
        platform: Operating system.
        processor: Name of the processor.
        gpus: Name of each GPU.
        visible_devices: Value of CUDA_VISIBLE_DEVICES, by which a launcher chose the GPUs.
        threads: Number of torch's threads.
    """

    git: Git | None = None
    own_git: Git | None = None
    packages: dict[str, str] = {}
    python: str | None = None
    platform: str | None = None
    processor: str | None = None
    gpus: list[str] = []
    visible_devices: str | None = None
    threads: int | None = None

    @property
    def version(self) -> str:
        """Major and minor number of the version of bnstudy."""
        return comparable_version(self.packages.get("bnstudy", "unknown"))


class Timing(Part):
    """Total duration of all attempts, in seconds; None until one has recorded an epoch or ended.

    Attributes:
        seconds: Total duration.
        measure_seconds: Part of it that was spent on measuring.
    """

    seconds: Seconds | None = None
    measure_seconds: Seconds | None = None


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
    train: NonNegativeInt = 0
    validation: NonNegativeInt = 0
    test: NonNegativeInt = 0
    classes: list[str] = []
    probe: dict[str, NonNegativeInt] = {}

    def num_samples(self, split: Literal["train", "validation", "test"]) -> int:
        """Return the number of samples in a split."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]


class MeasuredLater(Part):
    """Measurement from checkpoints after the end of a run.

    Attributes:
        epochs: Measured epochs.
        metrics: Names of the metrics; None: all.
        splits: Splits of the data; None: all (bnstudy 0.1 did not record them).
        sites: Sites in a layer; None: all.
        environment: Software and hardware.
    """

    epochs: list[Epoch]
    metrics: list[str] | None = None
    splits: list[str] | None = None
    sites: list[str] | None = None
    environment: Environment = Environment()


class Named(Part):
    """Configuration group whose choice has a name."""

    name: str


class TrainerOptions(Part):
    """Configuration group `trainer`, as far as it is read from records."""

    max_epochs: Epoch
    compile: bool = False
    sync_batchnorm: bool = False


class MetricsOptions(Part):
    """Configuration group `metrics`."""

    names: list[str]
    sites: list[str]
    every_n_epochs: Annotated[int, Field(ge=1)]
    memory_budget: Annotated[float, Field(gt=0)]


class LoggerOptions(Part):
    """Configuration group `logger`, as far as it is read from records."""

    project: str | None = None
    entity: str | None = None
    checkpoint: bool = False


class RecordedConfig(Part):
    """Keys of a recorded configuration that every reader relies on.

    The schema in `bnstudy.config` is that of this version; records of other versions need not
    follow it.
    """

    seed: int
    model: dict[str, Any]
    norm: Named
    regularizer: Named
    data: dict[str, Any]
    optim: dict[str, Any]
    trainer: TrainerOptions
    probe: dict[str, int | None]
    metrics: MetricsOptions
    callbacks: dict[str, dict[str, Any]] = {}
    logger: LoggerOptions = LoggerOptions()


class Final(BaseModel):
    """Numbers of the whole model after the last epoch; empty until the run is finished.

    Each number is a field named `<split>_<metric>`; its value is None if it is not finite.

    Attributes:
        epoch: Last epoch; None until the run is finished.
    """

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, float | None] = Field(init=False)

    epoch: Epoch | None = None

    @property
    def numbers(self) -> dict[str, float | None]:
        """Numbers by `<split>_<metric>`."""
        return self.__pydantic_extra__
