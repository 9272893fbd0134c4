"""Measurement of networks that are trained already, such as torchvision's published ones."""

import hashlib
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torchvision import models
from torchvision.ops import FrozenBatchNorm2d

from bnstudy.callbacks import RepresentationMetrics
from bnstudy.config.targets import instantiate_group
from bnstudy.data import DataModule, ImageDataModule, make_data
from bnstudy.data.preprocessed import with_transform
from bnstudy.errors import UserError, first_line
from bnstudy.metrics import chosen
from bnstudy.models.torchvision_models import GreyToColour
from bnstudy.representations import Tap
from bnstudy.representations.taps import Call, Taps
from bnstudy.runs.record import Record
from bnstudy.terminal import console
from bnstudy.terms import PROBE_PERFORMANCE, SPLITS
from bnstudy.training.own_run import Run, add_to_digest

DEFAULT = "DEFAULT"
IMAGENET_CLASSES = 1000  # weights with this many outputs are assumed to be ImageNet's
RECORDED_EPOCH = 1  # stands for the unknown number of epochs of training
NORMS: dict[str, tuple[type[nn.Module], ...]] = {
    "batchnorm": (_BatchNorm, FrozenBatchNorm2d),
    "layernorm": (nn.LayerNorm,),
    "rmsnorm": (nn.RMSNorm,),
    "groupnorm": (nn.GroupNorm,),
    "instancenorm": (_InstanceNorm,),
}

Transform = Callable[[Any], Any]


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with its trained weights.

    Attributes:
        name: Name on the command line, such as `torchvision:vgg16_bn`.
        family: Name shared by networks that differ only in their normalization, such as vgg16.
        norm: Normalization, found from the layers' types.
        module: Network.
        weights_sha256: SHA-256 of all values of the weights.
        transform: Preprocessing that the weights were trained with; None for that of the data.
        preprocessing_note: Name of the preprocessing, and how to choose another.
    """

    name: str
    family: str
    norm: str
    module: nn.Module
    weights_sha256: str
    transform: Transform | None = None
    preprocessing_note: str = "that of the data"


@dataclass(frozen=True)
class PreparedNetwork:
    """A network with the data it is measured on.

    Attributes:
        trained: Network with its weights.
        data: Data, with the network's preprocessing.
        taps: Measured sites of the layers, in the order of computation.
        is_classifier: Whether the output is one logit for each class of the data.
    """

    trained: TrainedNetwork
    data: DataModule
    taps: tuple[Tap, ...]
    is_classifier: bool


def load_networks(names: Sequence[str], weights: Sequence[str]) -> list[TrainedNetwork]:
    """Load networks with their weights.

    Args:
        names: `torchvision:NAME`, or `package.module:NAME` of a class or function that makes the
            network.
        weights: `DEFAULT` for the weights that torchvision publishes; NAME=FILE for state
            dictionaries.

    Raises:
        UserError: A network or its weights cannot be found, or do not fit each other.
    """
    files = dict(word.split("=", 1) for word in weights if "=" in word)
    known = [name.rpartition(":")[2] for name in names]
    for word in weights:
        if word != DEFAULT and word.partition("=")[0] not in known:
            raise UserError(
                f"--weights {word}: expected {DEFAULT}, or NAME=FILE where NAME is one of "
                f"{', '.join(known)}"
            )
    loaded = []
    for name in names:
        package, _, short = name.rpartition(":")
        if package == "torchvision":
            loaded.append(_load_torchvision(name, short, files.get(short), DEFAULT in weights))
        else:
            loaded.append(_load_own(name, package, short, files.get(short)))
    own = [network for network in loaded if not network.name.startswith("torchvision:")]
    # If no two of the user's networks have the same norm, they are compared, as one family.
    if len({network.norm for network in own}) == len(own):
        loaded = [
            replace(network, family=own[0].family) if network in own else network
            for network in loaded
        ]
    cells = [(network.family, network.norm) for network in loaded]
    for name, cell in zip(names, cells, strict=True):
        if cells.count(cell) > 1:
            raise UserError(
                f"{name}: two networks have family {cell[0]} and norm {cell[1]}, so their runs "
                "would share a folder\n"
                "Measure them one by one, each in a study=NAME of its own"
            )
    return loaded


def prepare_networks(
    networks: Sequence[TrainedNetwork], config: dict[str, Any]
) -> list[PreparedNetwork]:
    """Load the data with each network's preprocessing, and find the layers that are measured.

    Args:
        networks: Networks with their weights.
        config: Groups `data`, `probe` and `metrics`, and `seed`, resolved.

    Raises:
        UserError: The data cannot be loaded, or a network does not accept them.
    """
    original = make_data(config["data"], config["seed"], config["probe"])
    data_by_transform: dict[str, DataModule] = {}
    prepared = []
    for trained in networks:
        if not isinstance(original, ImageDataModule):  # the user's data are already preprocessed
            trained = replace(trained, transform=None, preprocessing_note="that of the data")
        key = repr(trained.transform)
        if key not in data_by_transform:
            data = original
            if isinstance(original, ImageDataModule) and trained.transform is not None:
                data = with_transform(original, trained.transform)
            data.setup()
            data_by_transform[key] = data
        data = data_by_transform[key]
        console.print(f"{trained.name}: preprocessing is {trained.preprocessing_note}")
        module = trained.module
        if data.input_shape[0] == 1 and _find_input_channels(module) == 3:
            module = nn.Sequential(OrderedDict(colour=GreyToColour(), network=module))
        module = module.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        prepared.append(_find_layers(replace(trained, module=module), data, config["metrics"]))
    return prepared


def match_layers(networks: Sequence[PreparedNetwork]) -> list[dict[Tap, str]]:
    """Choose names under which the layers of networks are compared.

    Layers keep their names if there are several networks and all have the same layers. Otherwise
    they are numbered at each site, as `layer01`: for example, the names of a layer of VGG-16 with
    BatchNorm and without it differ, because they are positions in an `nn.Sequential`.

    Args:
        networks: Networks with their layers.

    Returns:
        Name of each layer, for each network.
    """
    layers = {tuple((tap.layer, tap.site) for tap in network.taps) for network in networks}
    if len(networks) > 1 and len(layers) == 1:
        return [{tap: tap.layer for tap in network.taps} for network in networks]
    names: list[dict[Tap, str]] = []
    for network in networks:
        numbers: Counter[str] = Counter()
        names.append({})
        for tap in network.taps:
            numbers[tap.site] += 1
            names[-1][tap] = f"layer{numbers[tap.site]:02d}"
        listed = ", ".join(f"{new} = {tap.label}" for tap, new in names[-1].items())
        console.print(f"{network.trained.name}: {listed}")
    return names


def measure_network(
    prepared: PreparedNetwork,
    names: Mapping[Tap, str],
    run: Run,
    metrics: dict[str, Any],
    overwrite: bool,
    progress: Callable[[str], None],
) -> None:
    """Measure a network on the probe set of each split, and record it as a run.

    If an existing run lacks requested metrics or sites, these and all that it has are measured, and
    the run is replaced. A run of other data or other probe sets is replaced as well. Nothing is
    replaced before everything is measured. Metrics that use the network's output are left out if
    its outputs are not the data's classes.

    Args:
        prepared: Network and data.
        names: Names of the network's layers, from `match_layers`.
        run: Run that records the values.
        metrics: Configuration group `metrics`.
        overwrite: Whether to replace an existing run, whatever its weights; its metrics are lost.
        progress: Function that is called with a description of the next step.

    Raises:
        UserError: The run was measured with other weights, and `overwrite` is False.
    """
    metric_names = [
        metric.name
        for metric in chosen(metrics["names"])
        if prepared.is_classifier or "network" not in metric.needs
    ]
    recorded = {} if overwrite else _read_recorded_metrics(prepared, run)
    requested = {
        key: list(dict.fromkeys([*recorded.get(key, ()), *new]))
        for key, new in (("names", metric_names), ("sites", metrics["sites"]))
    }
    if recorded and all(requested[key] == [*recorded[key]] for key in requested):
        console.print(f"{run.folder}: all requested metrics are already recorded")
        return
    run.choices |= {"model": prepared.trained.name, "weights": prepared.trained.weights_sha256}
    run.overwrite = True
    callback = RepresentationMetrics(
        {split: prepared.data.probe(split) for split in SPLITS},
        requested["names"],
        requested["sites"],
        memory_budget=metrics["memory_budget"],
        precision=metrics["precision"],
        on_layer=progress,
        calibration=prepared.data.calibration(),
    )
    new_names = {(tap.layer, tap.site): name for tap, name in names.items()}
    measured = callback.measure(prepared.trained.module, RECORDED_EPOCH, 0)
    with run:
        run.note_data(prepared.data.facts())
        run.note_metrics(callback)
        rows = [
            row._replace(layer=new_names.get((row.layer, row.site or ""), row.layer))
            for row in measured
            if prepared.is_classifier or row.metric not in PROBE_PERFORMANCE
        ]
        run.write(RECORDED_EPOCH, rows, callback.seconds)


def make_run(trained: TrainedNetwork, study: str, output_root: str) -> Run:
    """Create the run that records a network."""
    return Run(
        study,
        norm=trained.norm,
        seed=0,
        axes={"model.name": trained.family},
        output_root=output_root,
    )


def _read_recorded_metrics(prepared: PreparedNetwork, run: Run) -> Mapping[str, Any]:
    """Read the metric options of a finished run that was measured on the same data and probe sets.

    If there is no such run, the result is empty.

    Raises:
        UserError: The run was measured with other weights.
    """
    if not (run.folder / "run.json").exists():
        return {}
    record = Record.read(run.folder)
    if not record.is_finished:
        return {}
    description = record.description
    if description.choices.get("weights") != prepared.trained.weights_sha256:
        raise UserError(
            f"{run.folder}: {description.choices.get('model')} was measured with other weights\n"
            "Add --overwrite to replace it, or choose another study=NAME"
        )
    facts, recorded = prepared.data.facts(), record.data
    is_same_data = (recorded.sha256, recorded.probe) == (facts["sha256"], facts["probe"])
    return description.config["metrics"] if is_same_data else {}


def _load_torchvision(
    name: str, short: str, file: str | None, use_published: bool
) -> TrainedNetwork:
    try:
        published = models.get_model_weights(short)
    except (KeyError, ValueError, AttributeError) as error:
        raise UserError(
            f"{name}: {first_line(error)}; torchvision.models lists the names"
        ) from error
    weights = published.DEFAULT
    if file is not None:
        state = _read_state(file)
        same_name = [entry for entry in published if entry.url.endswith(f"/{Path(file).name}")]
        weights = same_name[0] if same_name else weights
        # The last matrix has one row per class.
        matrices = [value for value in state.values() if value.ndim > 1]
        classes = len(matrices[-1]) if matrices else IMAGENET_CLASSES
    elif use_published:
        try:
            state = weights.get_state_dict(
                progress=False, check_hash=True, map_location="cpu", weights_only=True
            )
        except (OSError, RuntimeError, UnpicklingError) as error:
            raise UserError(
                f"{name}: its weights cannot be downloaded or read ({first_line(error)})\n"
                f"Download {weights.url} on another machine, copy it here and pass --weights "
                f"{short}=FILE"
            ) from error
        classes = IMAGENET_CLASSES
    else:
        raise UserError(f"{name}: no weights\nAdd --weights {DEFAULT}, or {short}=FILE")
    network = models.get_model(short, weights=None, num_classes=classes)
    if classes == IMAGENET_CLASSES and hasattr(network, "transform_input"):
        network.transform_input = True  # torchvision sets it for its weights
    _load_state(network, state, name, file or DEFAULT)
    family = short.removesuffix("_bn")
    trained = TrainedNetwork(name, family, _find_norm(network), network, _compute_sha256(network))
    if classes != IMAGENET_CLASSES:
        return trained
    note = f"that of {weights}"
    if file is not None and not same_name:
        note += (
            "; if this file needs other preprocessing, pass your own data: "
            "data._target_=package.Data"
        )
    return replace(trained, transform=weights.transforms(), preprocessing_note=note)


def _load_own(name: str, package: str, short: str, file: str | None) -> TrainedNetwork:
    network = instantiate_group("network", {"_target_": f"{package}.{short}"})
    if not isinstance(network, nn.Module):
        raise UserError(f"{name} makes a {type(network).__name__}, not a torch.nn.Module")
    if file is not None:
        _load_state(network, _read_state(file), name, file)
    return TrainedNetwork(name, short, _find_norm(network), network, _compute_sha256(network))


def _read_state(file: str) -> dict[str, Any]:
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickles, which are refused
            content = torch.load(Path(file).expanduser(), map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"--weights {file}: {error.strerror}") from error
    except Exception as error:  # damaged files raise errors of many classes
        raise UserError(
            f"--weights {file}: not a state dictionary, which torch.load reads with "
            "weights_only=True\nSave network.state_dict() with torch.save"
        ) from error
    for key in ("state_dict", "model"):
        content = content.get(key, content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(torch.is_tensor(v) for v in content.values()):
        raise UserError(f"--weights {file}: not a dictionary of tensors\nSave network.state_dict()")
    content = dict(content)
    consume_prefix_in_state_dict_if_present(content, "module.")
    return content


def _load_state(network: nn.Module, state: dict[str, Any], name: str, source: str) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{name}: {source} does not contain the weights of this network\n{reason}"
        ) from error


def _find_norm(network: nn.Module) -> str:
    for norm, kinds in NORMS.items():
        if any(isinstance(module, kinds) for module in network.modules()):
            return norm
    return "none"


def _compute_sha256(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name} ".encode())
        add_to_digest(digest, value)
    return digest.hexdigest()


def _find_input_channels(network: nn.Module) -> int | None:
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    return next((convolution.in_channels for convolution in convolutions), None)


def _find_layers(
    trained: TrainedNetwork, data: DataModule, metrics: dict[str, Any]
) -> PreparedNetwork:
    """Find the layers of a network, by passing one sample through it."""
    inputs, _ = next(iter(data.probe("test")))
    calls: list[Call] = []

    def note(call: Call, output: torch.Tensor) -> None:
        calls.append(call)

    try:
        network_taps = Taps(trained.module, sites=metrics["sites"])
        with torch.no_grad(), network_taps.hooked(note) as forward:
            output = forward(inputs[:1])
    except (AssertionError, RuntimeError) as error:
        shape = "x".join(map(str, data.input_shape))
        raise UserError(
            f"{trained.name} does not accept samples of {shape} ({first_line(error)})\n"
            "Choose other data, or data.image_size=N"
        ) from error
    taps = sorted(network_taps.make_taps(calls).values(), key=lambda tap: tap.layer_index)
    is_classifier = isinstance(output, torch.Tensor) and output.shape == (1, data.num_classes)
    return PreparedNetwork(trained, data, tuple(taps), is_classifier)
