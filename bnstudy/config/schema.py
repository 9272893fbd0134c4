"""Keys and values of a configuration: one model for each group, and `Config` for the whole.

The models validate a resolved configuration without changing it. `bnstudy.config.json_schemas`
generates the JSON schemas for editors from them.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from bnstudy.config.mistakes import hint
from bnstudy.config.values import (
    NOT_ALLOWED,
    AtLeastTwo,
    Boolean,
    Count,
    Expected,
    FiniteNotNegative,
    FolderName,
    FolderPath,
    Index,
    NotNegative,
    Number,
    OneOf,
    OptionalBoolean,
    OptionalCount,
    OptionalText,
    Positive,
    PositiveShare,
    ShareBelowOne,
    Text,
)
from bnstudy.errors import UserError
from bnstudy.terms import SITES, Split

MemoryBudget = Annotated[
    float, Field(gt=0, allow_inf_nan=False), Expected("a finite number above 0")
]

INITIALIZATIONS = ("torch", "he", "xavier", "orthogonal", "own")

# Arguments of Lightning's Trainer that cannot be set. bnstudy sets some itself. The others would
# change when a run ends, is recorded or is evaluated. These times are fixed: a run trains to the
# end of its last epoch, is recorded at the end of each epoch, and is evaluated before the first
# epoch and after the last one.
FIXED_TRAINER_KEYS = (
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
    """Configuration group. `validate` allows keys to be missing; unknown keys are errors."""

    model_config = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def known_keys(cls, values: Mapping[str, Any]) -> Collection[str] | None:
        """List the keys that are allowed in a group with given values; None if any key is."""
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
    """Group in which the value of one key determines the other keys.

    Attributes:
        chosen_by: Key that determines the others: `name` or `_target_`. A `_target_` can also be a
            class or function of the user; then any key is allowed, and the values of known keys are
            still validated.
        keys_of: Allowed keys, besides `chosen_by`, of each choice that bnstudy provides.
    """

    chosen_by: ClassVar[str]
    keys_of: ClassVar[Mapping[str, Collection[str]]]

    @classmethod
    def known_keys(cls, values: Mapping[str, Any]) -> Collection[str] | None:
        """List the keys of the choice; None if bnstudy does not provide the choice."""
        choice = values.get(cls.chosen_by)
        keys = cls.keys_of.get(choice) if isinstance(choice, str) else None
        return None if keys is None else {cls.chosen_by, *keys}


class Model(ChosenGroup):
    """Network and initialization of its weights."""

    chosen_by = "_target_"
    keys_of = {
        "bnstudy.models.CNN": ["depth", "width", "initialization"],
        "bnstudy.models.VGG": ["depth", "width", "initialization"],
        "bnstudy.models.ResNet": [
            *("depth", "width", "initialization"),
            *("shortcuts", "residual_init", "normalizer_free"),
        ],
        "bnstudy.models.convnext": ["depth", "width", "layer_scale", "initialization"],
        "bnstudy.models.torchvision_network": ["name", "initialization"],
    }

    target: Text = Field(alias="_target_")
    """Class or function that makes the network."""
    depth: Count
    """Number of layers; cnn: of convolutional layers; convnext: of blocks."""
    width: Positive
    """cnn: channels of the first stage; others: factor of the published channels."""
    initialization: Annotated[str, OneOf(*INITIALIZATIONS)]
    """Distribution of the initial weights; own: as the network's constructor draws them."""
    shortcuts: Boolean
    """Whether a residual network has its shortcuts."""
    residual_init: Annotated[str, OneOf("he", "zero", "fixup")]
    """Initialization of the residual branches."""
    normalizer_free: Boolean
    """Whether a residual network is a normalizer-free ResNet."""
    layer_scale: Positive
    """Initial factor of each channel of ConvNeXt's branches."""
    name: Text
    """Name of a torchvision network."""


class Norm(ChosenGroup):
    """Normalization layer."""

    chosen_by = "name"
    keys_of = {
        "none": [],
        "affine": ["position"],
        "batch_renorm": ["r_max", "d_max", "ramp_batches", "eps", "momentum", "position"],
        "batchnorm": ["eps", "momentum", "position"],
        "batchnorm_centering": ["momentum", "position"],
        "batchnorm_frozen": ["eps", "position"],
        "batchnorm_noaffine": ["eps", "momentum", "position"],
        "batchnorm_scaling": ["eps", "momentum", "position"],
        "derf": ["alpha", "position"],
        "dyt": ["alpha", "position"],
        "evonorm_b0": ["eps", "momentum", "position"],
        "evonorm_s0": ["num_groups", "eps", "position"],
        "filterresponse": ["eps", "position"],
        "ghostbatchnorm": ["ghost_size", "eps", "momentum", "position"],
        "groupnorm": ["num_groups", "eps", "position"],
        "instancenorm": ["eps", "position"],
        "layernorm": ["eps", "position"],
        "layernorm_channels": ["eps", "position"],
        "rmsnorm": ["eps", "position"],
        "weightstandardization": ["num_groups", "eps", "position"],
    }

    name: Annotated[str, OneOf(*keys_of)]
    """Kind of normalization."""
    eps: Positive
    """Constant added to the variance or to the mean square."""
    momentum: PositiveShare  # at 0 the running statistics would stay 0 and 1
    """Weight of a batch in the running statistics."""
    num_groups: Count
    """Groups of channels, each normalized by itself."""
    ghost_size: AtLeastTwo
    """Maximum number of samples in a part of the batch."""
    alpha: Positive
    """Initial scale of the input of dyt and derf."""
    r_max: Annotated[float, Field(ge=1), Expected("a number of at least 1")]
    """Final limit of batch_renorm's factor r."""
    d_max: NotNegative
    """Final limit of batch_renorm's shift d."""
    ramp_batches: Count
    """Batches until batch_renorm's limits are reached."""
    position: Annotated[str, OneOf("pre", "post")]
    """Position of the layer: before the activation (pre) or after it (post)."""


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
    layers: Annotated[list[str], Field(min_length=1), Expected(_LAYERS)]
    """Layers that it reads, by name or pattern."""
    target: Annotated[
        str | Annotated[float, Field(ge=0, le=1)],
        Expected("a share from 0 to 1, or a norm's name"),
    ]
    """Share of zeros, or the norm whose run with the same seed gives the share of each layer."""


RECIPE_KEYS = (
    *("schedule", "milestones", "gamma", "warmup_epochs"),
    *("label_smoothing", "adaptive_clipping", "trainable", "decay_all"),
)
_OPTIMIZER_KEYS = (*RECIPE_KEYS, "lr", "weight_decay", "maximize", "foreach", "fused")


class Optim(ChosenGroup):
    """Optimizer, with the names that torch gives to its options, and learning rate schedule."""

    chosen_by = "name"
    keys_of = {
        "sgd": [*_OPTIMIZER_KEYS, "momentum", "dampening", "nesterov"],
        "adam": [*_OPTIMIZER_KEYS, "betas", "eps", "amsgrad", "decoupled_weight_decay"],
        "adamw": [*_OPTIMIZER_KEYS, "betas", "eps", "amsgrad"],
    }

    name: Annotated[str, OneOf(*keys_of)]
    """Kind of optimizer."""
    lr: Positive
    """Learning rate."""
    momentum: ShareBelowOne
    """Momentum of sgd."""
    betas: Annotated[
        list[ShareBelowOne],
        Field(min_length=2, max_length=2),
        Expected("two numbers from 0 to below 1, such as [0.9,0.999]"),
    ]
    """Decay of the two running means of adam and adamw."""
    weight_decay: NotNegative
    """Coefficient of weight decay; adamw decouples it from the gradient."""
    schedule: Annotated[str, OneOf("constant", "cosine", "step")]
    """Schedule of the learning rate; cosine: to 0 over the run; step: drops at milestones."""
    milestones: Annotated[list[Count], Expected("a list of epochs such as [100,150]")]
    """Epochs at which schedule=step multiplies the learning rate by gamma."""
    gamma: Positive
    """Factor of the learning rate at each milestone."""
    warmup_epochs: NotNegative
    """Epochs in which the learning rate rises linearly."""
    label_smoothing: ShareBelowOne
    """Share of the target that is spread over all classes in training."""
    adaptive_clipping: Annotated[Positive | None, Expected("a number above 0, or null")]
    """Maximum norm of a unit's gradient relative to that of its weights; null: no clipping."""
    decay_all: Boolean
    """Whether weight decay also acts on biases and on the parameters of norms."""
    trainable: Annotated[str, OneOf("all", "norm")]
    """Parameters that are trained; norm: only the normalization layers' scale and shift."""
    dampening: Number
    """Argument of torch.optim.SGD."""
    nesterov: Boolean
    """Argument of torch.optim.SGD."""
    eps: NotNegative
    """Argument of torch.optim.Adam and AdamW."""
    amsgrad: Boolean
    """Argument of torch.optim.Adam and AdamW."""
    decoupled_weight_decay: Boolean
    """Argument of torch.optim.Adam."""
    maximize: Boolean
    """Argument of torch's optimizers."""
    foreach: OptionalBoolean
    """Argument of torch's optimizers."""
    fused: OptionalBoolean
    """Argument of torch's optimizers."""


_DATA_KEYS = (
    *("name", "batch_size", "flip", "shift", "fill"),
    *("validation", "label_noise", "samples_per_class"),
)


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
    """Class or function that makes the data."""
    dataset: OptionalText
    """Name of a torchvision data set."""
    root: OptionalText
    """Folder of the data set's files."""
    cache: OptionalText
    """Folder of the decoded copy of an image folder."""
    name: OptionalText
    """Name that stands for the data in a run's identity."""
    batch_size: AtLeastTwo  # BatchNorm cannot normalize one sample
    """Samples in a training step, over all processes of a distributed run."""
    flip: Boolean
    """Whether each training image is mirrored with probability 1/2."""
    shift: Index
    """Maximum shift of the training images, in pixels."""
    fill: Annotated[str, OneOf("mean", "black", "reflect")]
    """Border of shifted images: the mean colour, black, or the mirrored image (reflect)."""
    validation: ShareBelowOne
    """Share of the training split that is held out as the validation split."""
    label_noise: Annotated[float, Field(ge=0, le=1), Expected("a share from 0 to 1")]
    """Share of the training samples that get the label of another class."""
    samples_per_class: OptionalCount
    """Training samples of each class; null: all."""
    image_size: OptionalCount
    """Height and width; null: those of an image folder's first training image."""
    classes: AtLeastTwo
    """Number of classes."""
    groups_per_class: Count
    """Groups inside each class."""
    samples_per_group: Annotated[
        dict[Split, Count], Expected("an integer of at least 1 for train and one for test")
    ]
    """Samples of a group in each split."""
    noise: FiniteNotNegative
    """Standard deviation of a pixel's noise, relative to that of the prototypes' random numbers."""
    channels: Count
    """Channels of an image."""


# Values of Trainer's `precision`; the former ones are other names that Lightning still accepts.
PRECISIONS = (
    *("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true"),
    *("transformer-engine", "transformer-engine-float16"),
)
FORMER_PRECISIONS = ("64", "32", "16", "bf16")

BatchLimit = Annotated[  # as Lightning, which takes 2.0 for 2 batches
    Count
    | Annotated[float, Field(gt=0, le=1)]
    | Annotated[float, Field(gt=1, multiple_of=1, allow_inf_nan=False)],
    Expected("a number of batches of at least 1, or a share above 0, at most 1.0"),
]


class Trainer(Group, extra="allow"):
    """Arguments of `lightning.pytorch.Trainer`, and `compile`."""

    model_config = ConfigDict(
        json_schema_extra={"propertyNames": {"not": {"enum": [*FIXED_TRAINER_KEYS]}}}
    )

    target: Text = Field(alias="_target_")
    """Trainer's class."""
    max_epochs: Count
    """Epochs of training."""
    devices: Annotated[  # auto and -1 depend on the machine
        Count | Annotated[list[Index], Field(min_length=1)],
        Expected("a number of devices of at least 1, or a list of them such as [0,2]"),
    ]
    """Number of devices, or list of their indices."""
    limit_train_batches: BatchLimit
    """Training batches per epoch: a number of batches, or a share such as 1.0."""
    limit_val_batches: BatchLimit
    """Batches per evaluation: a number of batches, or a share such as 1.0."""
    precision: Annotated[
        Annotated[str, OneOf(*PRECISIONS, *FORMER_PRECISIONS)] | Literal[64, 32, 16] | None,
        Expected(f"{', '.join(PRECISIONS)}, or null"),
    ]
    """Precision of training; null: 32-true."""
    gradient_clip_val: Annotated[Number | None, Expected("a number, or null")]
    """Maximum norm or value of the gradient; null: no clipping."""
    gradient_clip_algorithm: Annotated[
        Annotated[str, OneOf("norm", "value")] | None, Expected("norm, value, or null")
    ]
    """Quantity that gradient_clip_val limits; null: norm."""
    compile: Boolean
    """Whether the training step's forward pass is compiled by torch.compile."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_fixed_keys(cls, values: Any) -> Any:
        for key in FIXED_TRAINER_KEYS:
            if isinstance(values, dict) and key in values:
                raise PydanticCustomError("fixed_key", "cannot be set", {"key": key})
        return values


class Callback(ChosenGroup):
    """Options of one optimization callback."""

    chosen_by = "_target_"

    target: Text = Field(alias="_target_")
    """Callback's class."""


class ActivationDrift(Callback):
    """Callback that measures how the distribution of each channel shifts between epochs."""

    keys_of = {"bnstudy.callbacks.ActivationDrift": ["memory_budget"]}

    memory_budget: MemoryBudget
    """Memory limit for activations, in GiB."""


class BatchStatistics(Callback):
    """Callback that compares BatchNorm's running statistics with those of the training data."""

    keys_of = {"bnstudy.callbacks.BatchStatistics": []}


class GradientNorms(Callback):
    """Callback that measures the norm of each layer's gradient."""

    keys_of = {"bnstudy.callbacks.GradientNorms": ["every_n_steps"]}

    every_n_steps: Count
    """Training steps from one measurement to the next."""


class Hessian(Callback):
    """Callback that measures the curvature of the loss."""

    keys_of = {
        "bnstudy.callbacks.Hessian": [
            *("every_n_epochs", "num_eigenvalues", "num_probes", "num_samples", "batchnorm")
        ]
    }

    every_n_epochs: Count
    """Epochs between measurements; epoch 0 and the last epoch are always measured."""
    num_eigenvalues: Count
    """Number of the largest eigenvalues."""
    num_probes: AtLeastTwo
    """Number of random vectors for the trace."""
    num_samples: AtLeastTwo
    """Maximum number of training samples."""
    batchnorm: Annotated[str, OneOf("eval", "train")]
    """Statistics of BatchNorm: the running ones (eval), or those of the samples (train)."""


class LossLandscape(Callback):
    """Callback that measures loss and gradient along the gradient's direction."""

    keys_of = {"bnstudy.callbacks.LossLandscape": ["every_n_steps", "step_sizes"]}

    every_n_steps: Count
    """Training steps from one measurement to the next."""
    step_sizes: Annotated[
        list[Positive],
        Field(min_length=1),
        Expected("a list of numbers above 0, such as [0.01,0.1]"),
    ]
    """Lengths of the steps along the gradient."""


class WeightNorms(Callback):
    """Callback that measures norms of weights and the effective learning rate."""

    keys_of = {"bnstudy.callbacks.WeightNorms": []}


class Callbacks(Group, extra="allow"):
    """Callbacks with additional measurements, by name; the user can add others."""

    activation_drift: ActivationDrift
    batch_statistics: BatchStatistics
    gradient_norms: GradientNorms
    hessian: Hessian
    loss_landscape: LossLandscape
    weight_norms: WeightNorms


class Logger(ChosenGroup):
    """Logger that receives a run's numbers in addition to the record."""

    chosen_by = "_target_"
    keys_of = {
        "bnstudy.training.loggers.csv_file": [],
        "bnstudy.training.loggers.no_logger": [],
        "bnstudy.training.loggers.wandb_run": ["project", "entity", "mode", "checkpoint"],
    }

    target: Text = Field(alias="_target_")
    """Function that makes the logger."""
    project: Annotated[
        Annotated[str, Field(pattern=r"^[^/\\#?%:]{1,128}$")] | None,
        Expected("a name of at most 128 characters, without / \\ # ? % :, or null"),
    ]
    """W&B's project."""
    entity: OptionalText
    """W&B's user or team; null: the default one."""
    mode: Annotated[
        Annotated[str, OneOf("online", "offline", "disabled")] | None,
        Expected("online, offline, disabled, or null"),
    ]
    """Mode of W&B; null: online if the user is logged in."""
    checkpoint: Boolean
    """Whether the last checkpoint is logged as an artifact."""


class Metrics(Group):
    """Measurements of the layers' representations."""

    names: Annotated[list[str], Expected("a list of metrics' names")]
    """Names of metrics, as listed by `python -m bnstudy.metrics`."""
    sites: Annotated[
        list[Annotated[str, OneOf(*SITES)]],
        Field(min_length=1),
        Expected(f"a list of {', '.join(SITES)}, such as [act]"),
    ]
    """Sites in a block to measure; features: the input of the last linear layer."""
    every_n_epochs: Count
    """Epochs between measurements; epoch 0 and the last epoch are always measured."""
    at_steps: Annotated[
        Annotated[str, OneOf("log2")] | list[Count],
        Expected("a list of steps such as [1,2,4,8], which begin at 1, or log2"),
    ]
    """Training steps after which to measure too; log2: the powers of 2 within the first epoch."""
    folds: Annotated[Literal[0] | AtLeastTwo, Expected("0, or an integer of at least 2")]
    """Parts of the probe set that are also measured after the last epoch; 0: none."""
    memory_budget: MemoryBudget
    """Memory limit for activations and distances between samples, in GiB."""
    precision: Annotated[str, OneOf("auto", "float32")]
    """Precision of products; auto: 16 instead of 24 significant bits where that is faster."""


class Probe(Group):
    """Samples of each split whose representations are measured."""

    train: OptionalCount
    """Maximum number of training samples; null: 5,000."""
    test: OptionalCount
    """Maximum number of test samples; null: 5,000."""


class Sweep(Group):
    """Options of a multirun."""

    redo: Annotated[
        Annotated[str, OneOf("failed", "diverged", "all")] | None,
        Expected("failed, diverged, all, or null"),
    ]
    """Cells to run again."""
    dry_run: Boolean
    """Whether to list the cells that would run instead of running them."""
    objective: Annotated[
        str, OneOf("validation_accuracy", "validation_loss", "train_accuracy", "train_loss")
    ]
    """Final value that hydra/sweeper=optuna optimizes."""


class Config(Group):
    """Whole configuration of a run."""

    seed: Index
    """Seed of the initial weights, the order of the samples and the augmentation."""
    sweep: Sweep
    study: FolderName
    """Name of the study's folder."""
    cell: FolderName
    """Beginning of the name of the cell's folder."""
    output_root: FolderPath
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
        Expected("a list of epochs such as [0,5,10], or all"),
    ]
    """Epochs whose weights are kept in addition to those of the last epoch."""


def validate(config: dict[str, Any]) -> None:
    """Check the keys and values of a resolved configuration, or of some of its groups.

    Missing groups and keys are not errors, because their defaults are elsewhere.

    Args:
        config: Plain values; not changed.

    Raises:
        UserError: A key does not exist, or its value is not allowed.
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
                f"{'.'.join([*keys, mistake['ctx']['key']])} cannot be set: bnstudy relies on its "
                "own value; a run ends after trainer.max_epochs"
            )
        case kind:
            expected = mistake["msg"] if kind == NOT_ALLOWED else "keys, each with its value"
            return f"{'.'.join(keys)}={mistake['input']} is not allowed; expected {expected}"
