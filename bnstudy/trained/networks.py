"""Measurement of networks that are trained already, such as torchvision's published ones."""

import hashlib
from collections import OrderedDict
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
from bnstudy.config.targets import make
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
PUBLISHED_CLASSES = 1000  # weights for so many classes are taken for those of ImageNet
EPOCH = 1  # of all values: after training, however long that was
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
        family: Name that networks which differ in their normalization have in common.
        norm: Normalization, found from the layers' types.
        network: Network.
        weights: SHA-256 of all values of the weights.
        transform: Preprocessing of the weights; None for that of the data.
        preprocessing: Name of the preprocessing, and how to choose another.
    """

    name: str
    family: str
    norm: str
    network: nn.Module
    weights: str
    transform: Transform | None = None
    preprocessing: str = "that of the data"


@dataclass(frozen=True)
class Prepared:
    """A network with the data it is measured on.

    Attributes:
        trained: Network.
        data: Data, in the network's preprocessing.
        taps: Layers, in the order of computation.
        is_classifier: Whether the outputs are the data's classes.
    """

    trained: TrainedNetwork
    data: DataModule
    taps: tuple[Tap, ...]
    is_classifier: bool


def load_networks(names: Sequence[str], weights: Sequence[str]) -> list[TrainedNetwork]:
    """Load networks with their weights.

    Args:
        names: `torchvision:NAME`, or `package.module:function` of a class or function.
        weights: `DEFAULT` for the weights that torchvision publishes; NAME=FILE for state
            dictionaries.

    Raises:
        UserError: A network or its weights cannot be found, or do not fit each other.
    """
    files = dict(word.split("=", 1) for word in weights if word != DEFAULT and "=" in word)
    known = [name.rpartition(":")[2] for name in names]
    for word in weights:
        if word != DEFAULT and word.partition("=")[0] not in known:
            raise UserError(
                f"--weights {word}: it takes {DEFAULT}, or NAME=FILE with a name of "
                f"{', '.join(known)}"
            )
    loaded = []
    for name in names:
        home, _, short = name.rpartition(":")
        load = _load_torchvision if home == "torchvision" else _load_own
        loaded.append(load(name, home, short, files.get(short), DEFAULT in weights))
    own = [network for network in loaded if not network.name.startswith("torchvision:")]
    if len({network.norm for network in own}) == len(own):  # one network with several norms
        loaded = [
            replace(network, family=own[0].family) if network in own else network
            for network in loaded
        ]
    cells = [(network.family, network.norm) for network in loaded]
    for name, cell in zip(names, cells, strict=True):
        if cells.count(cell) > 1:
            raise UserError(
                f"{name}: two networks of this command are {cell[0]} with norm={cell[1]}\n"
                "Measure them one by one, each in a study=NAME of its own"
            )
    return loaded


def prepare(networks: Sequence[TrainedNetwork], config: dict[str, Any]) -> list[Prepared]:
    """Load the data in each network's preprocessing, and find the layers that are measured.

    Args:
        networks: Networks.
        config: Groups `data`, `probe` and `metrics`, and `seed`, resolved.

    Raises:
        UserError: The data cannot be loaded, or a network does not accept them.
    """
    whole = make_data(config["data"], config["seed"], config["probe"])
    images = whole if isinstance(whole, ImageDataModule) else None
    data: dict[str, DataModule] = {}
    prepared = []
    for trained in networks:
        if images is None:  # the user's own, which have their preprocessing
            trained = replace(trained, transform=None, preprocessing="that of the data")
        key = repr(trained.transform)
        if key not in data:
            data[key] = whole
            if images is not None and trained.transform is not None:
                data[key] = with_transform(images, trained.transform)
            data[key].setup()
        console.print(f"{trained.name}: preprocessing is {trained.preprocessing}")
        network = trained.network
        if data[key].input_shape[0] == 1 and _num_input_channels(network) == 3:
            network = nn.Sequential(OrderedDict(colour=GreyToColour(), network=network))
        network = network.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        prepared.append(_try_out(replace(trained, network=network), data[key], config["metrics"]))
    return prepared


def match_layers(prepared: Sequence[Prepared]) -> list[dict[Tap, str]]:
    """Find names under which the layers of networks are compared, for each network.

    Layers keep their names if all networks have the same ones. Otherwise they are numbered at each
    site, as `layer01`: between VGG-16 with and without BatchNorm, names in `nn.Sequential` differ.
    """
    if (
        len({tuple((tap.layer, tap.site) for tap in network.taps) for network in prepared})
        == 1
        < len(prepared)
    ):
        return [{tap: tap.layer for tap in network.taps} for network in prepared]
    names: list[dict[Tap, str]] = []
    for network in prepared:
        numbers = dict.fromkeys({tap.site for tap in network.taps}, 0)
        names.append({})
        for tap in network.taps:
            numbers[tap.site] += 1
            names[-1][tap] = f"layer{numbers[tap.site]:02d}"
        listed = ", ".join(f"{new} = {tap.label}" for tap, new in names[-1].items())
        console.print(f"{network.trained.name}: {listed}")
    return names


def measure_network(
    network: Prepared,
    names: Mapping[Tap, str],
    run: Run,
    metrics: dict[str, Any],
    overwrite: bool,
    progress: Callable[[str], None],
) -> None:
    """Measure a network on the probe set of each split, and record it as a run.

    Metrics and sites that the run had before are measured again with those that are missing, and
    nothing is replaced before all of it is measured. Metrics that use the network's output are left
    out if its outputs are not the data's classes.

    Args:
        network: Network and data.
        names: New names of its layers, of `match_layers`.
        run: Run that it becomes.
        metrics: Configuration group `metrics`.
        overwrite: Whether to replace a run of other weights.
        progress: Function that is called with a description of the next step.

    Raises:
        UserError: The run has ended, with other weights.
    """
    names_of_metrics = [
        metric.name
        for metric in chosen(metrics["names"])
        if network.is_classifier or "network" not in metric.needs
    ]
    recorded = {} if overwrite else _recorded(network, run)
    wanted = {
        key: list(dict.fromkeys([*recorded.get(key, ()), *asked]))
        for key, asked in (("names", names_of_metrics), ("sites", metrics["sites"]))
    }
    if recorded and all(wanted[key] == [*recorded[key]] for key in wanted):
        console.print(f"{run.folder}: nothing is missing")
        return
    run.choices |= {"model": network.trained.name, "weights": network.trained.weights}
    run.overwrite = True
    callback = RepresentationMetrics(
        {split: network.data.probe(split) for split in SPLITS},
        wanted["names"],
        wanted["sites"],
        memory_budget=metrics["memory_budget"],
        precision=metrics["precision"],
        on_layer=progress,
        calibration=network.data.calibration(),
    )
    labels = {(tap.layer, tap.site): name for tap, name in names.items()}
    measured = callback.measure(network.trained.network, EPOCH, 0)
    with run:
        run.note_data(network.data.facts())
        run.note_metrics(callback)
        rows = [
            row._replace(layer=labels.get((row.layer, row.site or ""), row.layer))
            for row in measured
            if network.is_classifier or row.metric not in PROBE_PERFORMANCE
        ]
        run.write(EPOCH, rows, callback.seconds)


def make_run(network: TrainedNetwork, study: str, output_root: str) -> Run:
    """Return the run of a study that a network becomes."""
    return Run(
        study,
        norm=network.norm,
        seed=0,
        axes={"model.name": network.family},
        output_root=output_root,
    )


def _recorded(network: Prepared, run: Run) -> Mapping[str, Any]:
    """Return the options of the metrics that a run has of the same data and probe sets, if any.

    Raises:
        UserError: It has those of other weights.
    """
    if not (run.folder / "run.json").exists():
        return {}
    record = Record.read(run.folder)
    if not record.is_finished:
        return {}
    description = record.description
    if description.choices.get("weights") != network.trained.weights:
        raise UserError(
            f"{run.folder}: {description.choices.get('model')} was measured with other weights\n"
            "Add --overwrite to replace it, or choose another study=NAME"
        )
    facts, known = network.data.facts(), record.data
    same = (known.sha256, known.probe) == (facts["sha256"], facts["probe"])
    return description.config["metrics"] if same else {}


def _load_torchvision(
    name: str, home: str, short: str, file: str | None, published: bool
) -> TrainedNetwork:
    try:
        known = models.get_model_weights(short)
    except (KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{name}: {first_line(error)}; torchvision.models lists them") from error
    weights = known.DEFAULT
    if file is not None:
        state = _read_state(file)
        same = [entry for entry in known if entry.url.endswith(f"/{Path(file).name}")]
        weights = same[0] if same else weights
        matrices = [value for value in state.values() if value.ndim > 1]
        classes = len(matrices[-1]) if matrices else PUBLISHED_CLASSES
    elif published:
        try:
            state = weights.get_state_dict(
                progress=False, check_hash=True, map_location="cpu", weights_only=True
            )
        except (OSError, RuntimeError, UnpicklingError) as error:
            raise UserError(
                f"{name}: its weights cannot be downloaded or read ({first_line(error)})\n"
                f"Bring the file {weights.url.rpartition('/')[2]}, and give --weights {short}=FILE"
            ) from error
        classes = PUBLISHED_CLASSES
    else:
        raise UserError(f"{name}: no weights\nAdd --weights {DEFAULT}, or {short}=FILE")
    network = models.get_model(short, weights=None, num_classes=classes)
    if classes == PUBLISHED_CLASSES and hasattr(network, "transform_input"):
        network.transform_input = True  # as torchvision sets it for its weights
    _fill(network, state, name, file or DEFAULT)
    family = short.removesuffix("_bn")
    trained = TrainedNetwork(name, family, _norm_of(network), network, _sha256(network))
    if classes != PUBLISHED_CLASSES:
        return trained
    how = f"that of {weights}"
    if file is not None and not same:
        how += "; if the file's is another, take data of your own: data._target_=package.Data"
    return replace(trained, transform=weights.transforms(), preprocessing=how)


def _load_own(
    name: str, home: str, short: str, file: str | None, published: bool
) -> TrainedNetwork:
    network = make("network", {"_target_": f"{home}.{short}"})
    if not isinstance(network, nn.Module):
        raise UserError(f"{name} makes a {type(network).__name__}, not a torch.nn.Module")
    if file is not None:
        _fill(network, _read_state(file), name, file)
    return TrainedNetwork(name, short, _norm_of(network), network, _sha256(network))


def _read_state(file: str) -> dict[str, Any]:
    try:
        content = torch.load(Path(file).expanduser(), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise errors of many classes
        raise UserError(
            f"--weights {file}: not a state dictionary that torch.load reads with "
            f"weights_only=True ({first_line(error)})\nSave network.state_dict() with torch.save"
        ) from error
    for key in ("state_dict", "model"):
        content = content.get(key, content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(torch.is_tensor(v) for v in content.values()):
        raise UserError(f"--weights {file}: not a dictionary of tensors\nSave network.state_dict()")
    content = dict(content)
    consume_prefix_in_state_dict_if_present(content, "module.")
    return content


def _fill(network: nn.Module, state: dict[str, Any], name: str, source: str) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{name}: {source} has not the weights of this network\n{reason}"
        ) from error


def _norm_of(network: nn.Module) -> str:
    for norm, kinds in NORMS.items():
        if any(isinstance(module, kinds) for module in network.modules()):
            return norm
    return "none"


def _sha256(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name} ".encode())
        add_to_digest(digest, value)
    return digest.hexdigest()


def _num_input_channels(network: nn.Module) -> int | None:
    convolutions = (part for part in network.modules() if isinstance(part, nn.Conv2d))
    return next((part.in_channels for part in convolutions), None)


def _try_out(trained: TrainedNetwork, data: DataModule, metrics: dict[str, Any]) -> Prepared:
    """Find the layers of a network from one sample."""
    inputs, _ = next(iter(data.probe("test")))
    place = next(trained.network.parameters())
    sample = inputs[:1].to(place.device, place.dtype)
    calls: list[Call] = []

    def note(call: Call, output: torch.Tensor) -> None:
        calls.append(call)

    try:
        readable = Taps(trained.network, sites=metrics["sites"])
        with torch.no_grad(), readable.hooked(note) as run:
            output = run(sample)
    except (AssertionError, RuntimeError) as error:
        size = "x".join(map(str, data.input_shape))
        raise UserError(
            f"{trained.name} does not accept samples of {size} ({first_line(error)})\n"
            "Choose other data, or data.image_size=N"
        ) from error
    taps = sorted(readable.taps(calls).values(), key=lambda tap: tap.layer_index)
    is_classifier = isinstance(output, torch.Tensor) and output.shape == (1, data.num_classes)
    return Prepared(trained, data, tuple(taps), is_classifier)
