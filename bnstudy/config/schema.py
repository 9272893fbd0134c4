"""Keys and values of a configuration: one model for each group, and `Config` for the whole.

The models check a resolved configuration and change nothing in it; `bnstudy.config.json_schemas`
makes of them the JSON schemas that editors read.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from bnstudy.config.mistakes import hint
from bnstudy.config.values import (
    NOT_ALLOWED,
    Boolean,
    Count,
    Finite,
    FolderName,
    Fraction,
    Index,
    NotNegative,
    Number,
    OneOf,
    OptionalBoolean,
    OptionalCount,
    OptionalText,
    Positive,
    Several,
    Share,
    Takes,
    Text,
)
from bnstudy.errors import UserError
from bnstudy.terms import SITES, Split

SCHEDULES = ("constant", "cosine")

INITIALIZATIONS = ("torch", "he", "xavier", "orthogonal", "own")

# Arguments of Lightning's Trainer that callbacks of ours stand in for: a run goes to the end of its
# last epoch, and is evaluated, measured and recorded at the end of each one.
FIXED = (
    "barebones",
    "callbacks",
    "check_val_every_n_epoch",
    "default_root_dir",
    "enable_checkpointing",
    "enable_model_summary",
    "enable_progress_bar",
    "fast_dev_run",
    "logger",
    "max_steps",
    "max_time",
    "min_epochs",
    "min_steps",
    "num_sanity_val_steps",
    "plugins",
    "reload_dataloaders_every_n_epochs",
    "use_distributed_sampler",
    "val_check_interval",
)


class Group(BaseModel):
    """A configuration group. Other keys than its fields are refused, and none has to be there."""

    model_config = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def known_keys(cls, values: Mapping[str, Any]) -> Collection[str] | None:
        """Find the keys that may stand together with some values; None where any key may."""
        if cls.model_config["extra"] == "allow":
            return None
        return [field.alias or name for name, field in cls.model_fields.items()]

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, dict) and (known := cls.known_keys(values)) is not None:
            for key in values:
                if key not in known:
                    context = {"key": str(key), "known": sorted(known)}
                    raise PydanticCustomError("unknown_key", "there is no such key", context)
        return values


class ChosenGroup(Group, extra="allow"):
    """A group of which one key says which others there are.

    Attributes:
        chosen_by: Key that says it: `name`, or `_target_`, which may also be a class or function of
            the user's. Other keys are then free, but those that are fields keep their ranges.
        keys_of: Other keys of each choice of ours.
    """

    chosen_by: ClassVar[str]
    keys_of: ClassVar[Mapping[str, Collection[str]]]

    @classmethod
    def known_keys(cls, values: Mapping[str, Any]) -> Collection[str] | None:
        """Find the keys of the choice; None where it is the user's."""
        chosen = values.get(cls.chosen_by)
        own = cls.keys_of.get(chosen) if isinstance(chosen, str) else None
        return None if own is None else {cls.chosen_by, *own}


class Model(ChosenGroup):
    """Network, and how its weights begin."""

    chosen_by = "_target_"
    keys_of = {
        "bnstudy.models.CNN": ["depth", "width", "initialization"],
        "bnstudy.models.VGG": ["depth", "width", "initialization"],
        "bnstudy.models.ResNet": ["depth", "width", "initialization", "shortcuts", "residual_init"],
        "bnstudy.models.torchvision_network": ["name", "initialization"],
    }

    target: Text = Field(alias="_target_")
    """Class or function that makes the network."""
    depth: Count
    """Number of layers; cnn: of convolutional ones."""
    width: Positive
    """cnn: channels of the first stage; others: factor of the published channels."""
    initialization: Annotated[str, OneOf(*INITIALIZATIONS)]
    """Distribution of the initial weights; own: as the network's constructor draws them."""
    shortcuts: Boolean
    """Whether a residual network has its shortcuts."""
    residual_init: Annotated[str, OneOf("he", "zero", "fixup")]
    """How residual branches begin."""
    name: Text
    """Name of a torchvision network."""


class Norm(ChosenGroup):
    """Normalization layer."""

    chosen_by = "name"
    keys_of = {
        "none": [],
        "affine": ["position"],
        "batchnorm": ["eps", "momentum", "position"],
        "batchnorm_centering": ["momentum", "position"],
        "batchnorm_frozen": ["eps", "position"],
        "batchnorm_noaffine": ["eps", "momentum", "position"],
        "batchnorm_scaling": ["eps", "momentum", "position"],
        "filterresponse": ["eps", "position"],
        "ghostbatchnorm": ["ghost_size", "eps", "momentum", "position"],
        "groupnorm": ["num_groups", "eps", "position"],
        "instancenorm": ["eps", "position"],
        "layernorm": ["eps", "position"],
        "weightstandardization": ["num_groups", "eps", "position"],
    }

    name: Annotated[str, OneOf(*keys_of)]
    """Kind of normalization."""
    eps: Positive
    """Added to the variance."""
    momentum: Share  # at 0 the running statistics would stay 0 and 1
    """Weight of a batch in the running statistics."""
    num_groups: Count
    """Groups of channels, each normalized by itself."""
    ghost_size: Several
    """Samples in a part of the batch, at most."""
    position: Annotated[str, OneOf("pre", "post")]
    """Before the activation (pre), or after it (post)."""


_LAYERS = "a list of layers' names or patterns, such as [block04]"


class Regularizer(ChosenGroup):
    """Term added to the loss that changes the representations directly."""

    chosen_by = "name"
    keys_of = {
        "none": [],
        "activation_l1": ["strength", "layers"],
        "cluster": ["strength", "layers"],
        "target_sparsity": ["strength", "layers", "target"],
    }

    name: Annotated[str, OneOf(*keys_of)]
    """Kind of regularizer."""
    strength: NotNegative
    """Factor of the term."""
    layers: Annotated[list[str], Field(min_length=1), Takes(_LAYERS)]
    """Layers that it reads, by name or pattern."""
    target: Annotated[
        str | Annotated[float, Field(ge=0, le=1)], Takes("a share from 0 to 1, or a norm's name")
    ]
    """Share of zeros, or the norm whose run with the same seed gives the share of each layer."""


_OPTIMIZER_KEYS = ("lr", "weight_decay", "schedule", "trainable", "maximize", "foreach", "fused")


class Optim(ChosenGroup):
    """Optimizer, with the names that torch gives to its options, and learning rate schedule."""

    chosen_by = "name"
    keys_of = {
        "sgd": [*_OPTIMIZER_KEYS, "momentum", "dampening", "nesterov"],
        "adam": [*_OPTIMIZER_KEYS, "betas", "eps", "amsgrad", "decoupled_weight_decay"],
    }

    name: Annotated[str, OneOf(*keys_of)]
    """Kind of optimizer."""
    lr: Positive
    """Learning rate."""
    momentum: Fraction
    """Momentum of sgd."""
    betas: Annotated[
        list[Fraction],
        Field(min_length=2, max_length=2),
        Takes("two numbers from 0 to below 1, such as [0.9,0.999]"),
    ]
    """Decay of adam's two running means."""
    weight_decay: NotNegative
    """Factor of the weights that is added to their gradient."""
    schedule: Annotated[str, OneOf(*SCHEDULES)]
    """Learning rate over the training; cosine: to 0, step by step."""
    trainable: Annotated[str, OneOf("all", "norm")]
    """Parameters that are trained; norm: only the normalization layers' scale and shift."""
    dampening: Number
    """Argument of torch.optim.SGD."""
    nesterov: Boolean
    """Argument of torch.optim.SGD."""
    eps: NotNegative
    """Argument of torch.optim.Adam."""
    amsgrad: Boolean
    """Argument of torch.optim.Adam."""
    decoupled_weight_decay: Boolean
    """Argument of torch.optim.Adam."""
    maximize: Boolean
    """Argument of torch's optimizers."""
    foreach: OptionalBoolean
    """Argument of torch's optimizers."""
    fused: OptionalBoolean
    """Argument of torch's optimizers."""


_DATA_KEYS = ("name", "batch_size", "flip", "shift", "validation")


class Data(ChosenGroup):
    """Data set, its batches and their augmentation."""

    chosen_by = "_target_"
    keys_of = {
        "bnstudy.data.MNIST5k": [*_DATA_KEYS, "root"],
        "bnstudy.data.TorchvisionImages": [*_DATA_KEYS, "dataset", "root"],
        "bnstudy.data.ImageFolder": [*_DATA_KEYS, "root", "cache", "image_size"],
        "bnstudy.data.PlantedGroups": [
            *_DATA_KEYS,
            *("classes", "groups_per_class", "samples_per_group"),
            *("noise", "image_size", "channels"),
        ],
    }

    target: Text = Field(alias="_target_")
    """LightningDataModule of the data set."""
    dataset: OptionalText
    """Name of a torchvision data set."""
    root: OptionalText
    """Folder of the data set's files."""
    cache: OptionalText
    """Folder of the decoded copy."""
    name: OptionalText
    """Name that stands for the data in a run's identity."""
    batch_size: Count
    """Samples in a training step, summed over the processes of a distributed run."""
    flip: Boolean
    """Whether half of the training images are mirrored."""
    shift: Index
    """Pixels by which training images are moved, at most."""
    validation: Fraction
    """Share of the training split that is held out and evaluated as a split of its own."""
    image_size: OptionalCount
    """Height and width; null: those of the first training image."""
    classes: Several
    """Number of classes."""
    groups_per_class: Count
    """Groups inside each class."""
    samples_per_group: Annotated[
        dict[Split, Count], Takes("an integer of at least 1 for train and one for test")
    ]
    """Samples of a group in each split."""
    noise: Finite
    """Standard deviation of a pixel around its group's prototype."""
    channels: Count
    """Channels of an image."""


class Trainer(Group, extra="allow"):
    """Arguments of `lightning.pytorch.Trainer`, and `compile`."""

    model_config = ConfigDict(json_schema_extra={"propertyNames": {"not": {"enum": [*FIXED]}}})

    target: Text = Field(alias="_target_")
    """Trainer's class."""
    max_epochs: Count
    """Epochs of training."""
    devices: Annotated[  # auto and -1 are another number, and other numbers, elsewhere
        Count | Annotated[list[Index], Field(min_length=1)],
        Takes("a number of devices of at least 1, or a list of them such as [0,2]"),
    ]
    """Number of devices, or which."""
    limit_train_batches: Positive
    """Training batches of an epoch: an integer of them, or a share such as 1.0."""
    limit_val_batches: Positive
    """Batches of each evaluation: an integer of them, or a share such as 1.0."""
    compile: Boolean
    """Whether the training step's forward pass is compiled by torch.compile."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_fixed_keys(cls, values: Any) -> Any:
        for key in FIXED:
            if isinstance(values, dict) and key in values:
                raise PydanticCustomError("fixed_key", "cannot be set", {"key": key})
        return values


class Callback(ChosenGroup):
    """What one optimization callback measures, and how often."""

    chosen_by = "_target_"

    target: Text = Field(alias="_target_")
    """Callback's class."""


class ActivationDrift(Callback):
    """Callback that measures how far channels move from epoch to epoch."""

    keys_of = {"bnstudy.callbacks.ActivationDrift": ["memory_budget"]}

    memory_budget: Positive
    """GiB that activations may take."""


class BatchStatistics(Callback):
    """Callback that compares BatchNorm's running statistics with those of the training data."""

    keys_of = {"bnstudy.callbacks.BatchStatistics": []}


class GradientNorms(Callback):
    """Callback that measures the norm of each layer's gradient."""

    keys_of = {"bnstudy.callbacks.GradientNorms": ["every_n_steps"]}

    every_n_steps: Count
    """Training steps from one measurement to the next."""


class LossLandscape(Callback):
    """Callback that measures loss and gradient along the gradient's direction."""

    keys_of = {"bnstudy.callbacks.LossLandscape": ["every_n_steps", "step_sizes"]}

    every_n_steps: Count
    """Training steps from one measurement to the next."""
    step_sizes: Annotated[
        list[Positive],
        Field(min_length=1),
        Takes("a list of numbers above 0, such as [0.01,0.1]"),
    ]
    """Lengths of the steps along the gradient."""


class Callbacks(Group, extra="allow"):
    """Measurements besides those of the layers, by name; those of the user's are free."""

    activation_drift: ActivationDrift
    batch_statistics: BatchStatistics
    gradient_norms: GradientNorms
    loss_landscape: LossLandscape


class Logger(ChosenGroup):
    """Where a run's numbers go besides its record."""

    chosen_by = "_target_"
    keys_of = {
        "bnstudy.training.loggers.csv_file": [],
        "bnstudy.training.loggers.no_logger": [],
        "bnstudy.training.loggers.wandb_run": ["project", "entity", "mode", "checkpoint"],
    }

    target: Text = Field(alias="_target_")
    """Function that makes the logger."""
    project: OptionalText
    """W&B's project."""
    entity: OptionalText
    """W&B's user or team; null: the default one."""
    mode: Annotated[
        Annotated[str, OneOf("online", "offline", "disabled")] | None,
        Takes("online, offline, disabled, or null"),
    ]
    """Whether W&B is online; null: where it is logged in."""
    checkpoint: Boolean
    """Whether the last checkpoint is logged as an artifact."""


class Metrics(Group):
    """What is measured of every layer."""

    names: Annotated[list[str], Takes("a list of metrics' names")]
    """Metrics, as `python -m bnstudy.metrics` prints them."""
    sites: Annotated[
        list[Annotated[str, OneOf(*SITES)]],
        Field(min_length=1),
        Takes(f"a list of {', '.join(SITES)}, such as [act]"),
    ]
    """Places in a block; features is what the last linear layer reads."""
    every_n_epochs: Count
    """Epochs from one measurement to the next; before training and the last one are measured."""
    memory_budget: Positive
    """GiB that activations and the distances between samples may take."""


class Probe(Group):
    """Samples of each split whose representations are measured."""

    train: OptionalCount
    """Number of training samples; null: 5,000, or all where there are fewer."""
    test: OptionalCount
    """Number of test samples; null: 5,000, or all where there are fewer."""


class Sweep(Group):
    """Options of a multirun."""

    redo: Annotated[
        Annotated[str, OneOf("failed", "diverged", "all")] | None,
        Takes("failed, diverged, all, or null"),
    ]
    """Cells that are run again."""
    dry_run: Boolean
    """Whether to list what would be run instead of running it."""
    objective: Annotated[
        str, OneOf("validation_accuracy", "validation_loss", "train_accuracy", "train_loss")
    ]
    """Final number that hydra/sweeper=optuna searches by."""


class Config(Group):
    """Whole configuration of a run."""

    seed: Index
    """Seed of the initial weights, the order of the samples and the augmentation."""
    sweep: Sweep
    study: FolderName
    """Name of the study's folder."""
    cell: FolderName
    """Beginning of the name of the cell's folder."""
    output_root: Text
    """Folder of all studies."""
    model: Model
    norm: Norm
    regularizer: Regularizer
    optim: Optim
    data: Data
    trainer: Trainer
    logger: Logger
    metrics: Metrics
    callbacks: Callbacks
    probe: Probe
    checkpoint_epochs: Annotated[
        Annotated[str, OneOf("all")] | list[Index],
        Takes("a list of epochs such as [0,5,10], or all"),
    ]
    """Epochs whose weights are kept besides the last ones."""


def validate(config: dict[str, Any]) -> None:
    """Check the keys and values of a resolved configuration, or of some of its groups.

    A group or key that is missing is not complained of: what it is for has a default of its own.

    Args:
        config: Plain values, which stay as they are.

    Raises:
        UserError: There is no such key, or its value is not allowed.
    """
    try:
        Config.model_validate(config)
    except ValidationError as error:
        for mistake in error.errors(include_url=False):
            if mistake["type"] != "missing":
                raise UserError(_explain(mistake)) from None


def _explain(mistake: ErrorDetails) -> str:
    keys = [str(key) for key in mistake["loc"]]
    match mistake["type"]:
        case "unknown_key":
            context = mistake["ctx"]
            key = ".".join([*keys, context["key"]])
            return f"{key}: there is no such key; {hint(context['key'], context['known'])}"
        case "fixed_key":
            return (
                f"{'.'.join([*keys, mistake['ctx']['key']])} cannot be set: a run goes on to the "
                "end of trainer.max_epochs, and is evaluated and recorded at the end of each epoch"
            )
        case kind:
            takes = mistake["msg"] if kind == NOT_ALLOWED else "keys, each with its value"
            return f"{'.'.join(keys)}={mistake['input']} is not allowed; it takes {takes}"
