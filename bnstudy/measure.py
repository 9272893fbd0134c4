"""Command line that measures finished runs. See `python -m bnstudy.measure --help`."""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from bnstudy.cli import command_line
from bnstudy.config import CONFIG_FOLDER
from bnstudy.config.composition import check_overrides, plain_values, select_own_classes
from bnstudy.config.identity import GROUPS, register_resolvers
from bnstudy.config.schema import validate
from bnstudy.config.targets import trust
from bnstudy.config.without_effect import ONLY_IN_TRAINING, refuse_without_effect
from bnstudy.errors import UserError
from bnstudy.runs.paths import find_cells
from bnstudy.terms import SITES, SPLITS
from bnstudy.trained.measuring import measure_cell, process_runs
from bnstudy.trained.selection import MIN_SAMPLES, Selection

HELP = """\
Measure finished runs from their checkpoints, without training.

  python -m bnstudy.measure multirun/mnist5k_cnn metrics=full
  python -m bnstudy.measure multirun/mnist5k_cnn/CELL metrics.names=[dunn,hoyer] --split test
  python -m bnstudy.measure similarity RUN_A RUN_B       compare the layers of two runs
  python -m bnstudy.measure map RUN_OR_STUDY_DIR         embed the samples in two dimensions
  python -m bnstudy.measure network torchvision:vgg16    measure a network that is trained already

Only values that are missing from a run's record are measured, so an interrupted command can be
repeated. A run has the checkpoint of its last epoch, and those that checkpoint_epochs=... of
bnstudy.train selected.

If the data have moved since training, give their folder by data.root=FOLDER (in similarity and map
too) or by the environment variable BNSTUDY_DATA. The images have to be the same.

A run of your own network needs --trust with the name of its class: a record alone never makes this
command run code that is not part of bnstudy.
"""

# Overrides with the current folders of data that have moved.
DATA_FOLDERS = ("data.root", "data.cache")

SIMILARITY_HELP = """\
Compare the layers of two runs, or of one run among themselves. The result is a matrix for each
similarity of `python -m bnstudy.metrics`: layers of RUN_A x layers of RUN_B.

  python -m bnstudy.measure similarity multirun/STUDY/CELL_A multirun/STUDY/CELL_B
  python -m bnstudy.measure similarity multirun/STUDY/CELL_A

Writes <metric>.csv, <metric>.svg, <metric>.png and similarity.json.
"""

COPY_ADVICE = "copy the runs to a folder that can be written"  # after an error of writing

MAP_HELP = """\
Embed the samples of finished runs in two dimensions, layer by layer: their first two principal
components, and UMAP if it is installed (pip install -e '.[umap]').

  python -m bnstudy.measure map multirun/mnist5k_cnn
  python -m bnstudy.measure map multirun/mnist5k_cnn/CELL --samples 500 --epoch 0

Writes maps.parquet into each run's folder; bnstudy.report shows the embeddings. Existing ones are
kept, or replaced if the epoch, split, number of samples or sites differ.
"""

NETWORK_HELP = """\
Measure networks that are trained already, and make a study of them. Networks that differ in their
normalization, such as vgg16 and vgg16_bn, are compared layer by layer.

  python -m bnstudy.measure network torchvision:vgg16 torchvision:vgg16_bn \\
      data=image_folder data.root=FOLDER --weights DEFAULT
  python -m bnstudy.measure network torchvision:vgg16 torchvision:vgg16_bn \\
      data=image_folder data.root=FOLDER --weights vgg16=FILE vgg16_bn=FILE
  python -m bnstudy.measure network mypackage.nets:plain mypackage.nets:with_batchnorm data=cifar10

Options of the study are those of bnstudy.train: data=..., probe.test=500, metrics=full, study=NAME.
Images are preprocessed as torchvision's weights ask for, if these have 1000 classes; otherwise as
in bnstudy.train. Weights are read with weights_only. All values are recorded as those of epoch 1.
"""

# Groups and keys that `bnstudy.measure network` accepts.
NETWORK_KEYS = ("data", "probe", "metrics", "study", "output_root")


def measure(arguments: Sequence[str]) -> None:
    """Measure the metrics that are missing in runs and studies.

    An error of one run is printed, and the other runs are measured.

    Args:
        arguments: Words of the command line.

    Raises:
        UserError: A folder has no runs, or an override is not allowed.
        SystemExit: An argument is invalid, or at least one run failed.
    """
    parser = _make_parser("bnstudy.measure", HELP)
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN_OR_STUDY_DIR | metrics=...",
        help="folders of runs or studies; metrics=default, fast, full or paper; metrics.KEY=VALUE",
    )
    parser.add_argument("--split", choices=SPLITS, help="split to measure; default: all")
    parser.add_argument(
        "--epochs",
        type=_parse_epochs,
        metavar="N,N",
        help="epochs to measure; 0 is before training; default: those of metrics.every_n_epochs",
    )
    _add_trust(parser)
    arguments, data_folders = split_data_folders(arguments)
    options = parser.parse_intermixed_args(arguments)
    trust(options.trust)
    metrics = compose_metrics([word for word in options.words if _is_override(word)])
    folders = [Path(word) for word in options.words if not _is_override(word)]
    cells = [cell for folder in folders for cell in find_cells(folder)]
    if not cells:
        parser.error("name the folder of a run or of a study")
    splits = [options.split] if options.split else SPLITS

    def measure_one(cell: Path, progress: Callable[[str], None]) -> None:
        measure_cell(cell, metrics, data_folders, splits, options.epochs, progress)

    process_runs(cells, measure_one, "measured")


def measure_similarity(arguments: Sequence[str]) -> None:
    """Compare the layers of two runs, or of one run among themselves.

    Args:
        arguments: Words of the command line.

    Raises:
        UserError: A run cannot be compared.
    """
    parser = _make_parser("bnstudy.measure similarity", SIMILARITY_HELP)
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="folder of a run")
    parser.add_argument(
        "run_b", type=Path, metavar="RUN_B", nargs="?", help="folder of another run; default: RUN_A"
    )
    _add_selection(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder of the files; default: STUDY/similarity/<cell A>~<cell B>",
    )
    arguments, data_folders = split_data_folders(arguments)
    options = parser.parse_args(arguments)
    trust(options.trust)
    from bnstudy.trained.layer_similarity import compare_runs

    selection = _make_selection(options, data_folders)
    compare_runs(options.run_a, options.run_b, selection, options.epoch, options.output)


def measure_embeddings(arguments: Sequence[str]) -> None:
    """Embed the samples of runs in two dimensions.

    An error of one run is printed, and the other runs are embedded.

    Args:
        arguments: Words of the command line.

    Raises:
        UserError: A folder has no runs.
        SystemExit: An argument is invalid, or at least one run failed.
    """
    parser = _make_parser("bnstudy.measure map", MAP_HELP)
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="RUN_OR_STUDY_DIR",
        help="folders of runs or studies",
    )
    _add_selection(parser)
    arguments, data_folders = split_data_folders(arguments)
    options = parser.parse_args(arguments)
    trust(options.trust)
    from bnstudy.trained.embeddings import embed_run

    cells = [cell for folder in options.folders for cell in find_cells(folder)]
    selection = _make_selection(options, data_folders)

    def embed_one(cell: Path, progress: Callable[[str], None]) -> None:
        embed_run(cell, selection, options.epoch, progress)

    process_runs(cells, embed_one, "embedded")


def measure_networks(arguments: Sequence[str]) -> None:
    """Measure networks that are trained already.

    An error of one network is printed, and the others are measured.

    Args:
        arguments: Words of the command line.

    Raises:
        UserError: A network, its weights or the data cannot be used.
        SystemExit: An argument is invalid, or at least one network failed.
    """
    parser = _make_parser("bnstudy.measure network", NETWORK_HELP)
    parser.add_argument(
        "words",
        nargs="+",
        metavar="NETWORK | KEY=VALUE",
        help="torchvision:NAME or package.module:function; data=..., metrics=..., study=NAME",
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        action="extend",
        default=[],
        metavar="DEFAULT | NAME=FILE",
        help="weights that torchvision publishes, or files of state dictionaries",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace runs that were measured before"
    )
    options = parser.parse_intermixed_args(arguments)
    names = [word for word in options.words if not _is_override(word)]
    # Overrides after --weights were read as weights, such as data=cifar10.
    networks_with_weights = {name.rpartition(":")[2] for name in names}
    groups = {*GROUPS, *NETWORK_KEYS, "seed"}
    misread = [
        word
        for word in options.weights
        if "=" in word
        and _group_of(word) in groups
        and word.partition("=")[0] not in networks_with_weights
    ]
    weights = [word for word in options.weights if word not in misread]
    words = [*options.words, *misread]
    for name in names:
        if not all(name.partition(":")):
            parser.error(f"{name}: expected torchvision:NAME or package.module:function")
    if not names:
        parser.error("name a network, such as torchvision:vgg16")
    config = compose_study([word for word in words if _is_override(word)])
    from bnstudy.trained.networks import (
        load_networks,
        make_run,
        match_layers,
        measure_network,
        prepare_networks,
    )

    networks = load_networks(names, weights)
    prepared = prepare_networks(networks, config)
    layer_names = match_layers(prepared)
    runs = [make_run(network, config["study"], config["output_root"]) for network in networks]
    cells = [run.folder for run in runs]

    def measure_one(cell: Path, progress: Callable[[str], None]) -> None:
        i = cells.index(cell)
        measure_network(
            prepared[i], layer_names[i], runs[i], config["metrics"], options.overwrite, progress
        )

    process_runs(cells, measure_one, "measured")


def split_data_folders(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separate the current folders of the data from the other words of a command line.

    Args:
        arguments: Words of the command line, such as "data.root=FOLDER".

    Returns:
        The other words; and the folders by `root` and `cache`.

    Raises:
        HydraException: An override cannot be parsed.
    """
    words, folders = [], {}
    for word in arguments:
        key = word.partition("=")[0]
        if key in DATA_FOLDERS and word != key:
            folders[key.removeprefix("data.")] = str(
                OverridesParser.create().parse_override(word).value()
            )
        else:
            words.append(word)
    return words, folders


def compose_metrics(overrides: Sequence[str]) -> dict[str, Any]:
    """Compose the configuration group `metrics` from overrides, as bnstudy.train does.

    Args:
        overrides: Words such as "metrics=full" and "metrics.names=[dunn]".

    Raises:
        UserError: An override is not of the group `metrics`, or a value is not allowed.
    """
    for override in overrides:
        if not override.startswith(("metrics=", "metrics.")):
            raise UserError(
                f"{override}: a finished run takes only metrics=..., metrics.KEY=... and "
                "data.root=...; train another run to change other settings"
            )
    check_overrides(overrides)
    register_resolvers()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        cfg = compose("train", overrides=list(overrides))
    metrics = plain_values(cfg.metrics)
    validate({"metrics": metrics})
    refuse_without_effect({"metrics": metrics})
    from bnstudy.metrics import chosen

    chosen(metrics["names"])
    return metrics


def compose_study(overrides: Sequence[str]) -> dict[str, Any]:
    """Compose data, probe set, metrics and study from overrides, as bnstudy.train does.

    Args:
        overrides: Words such as "data=cifar10" and "probe.test=500".

    Returns:
        Keys in `NETWORK_KEYS`, and `seed`. By default, the study is named after the data.

    Raises:
        UserError: An override is of another group, or a value is not allowed.
    """
    for override in overrides:
        if _group_of(override) not in NETWORK_KEYS:
            raise UserError(
                f"{override}: networks that are trained already take {', '.join(NETWORK_KEYS)}, "
                "and keys of these; other settings are those they were trained with"
            )
    check_overrides(overrides)
    register_resolvers()
    overrides = select_own_classes(overrides)
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        cfg = compose("train", overrides=overrides)
    data = [word.partition("=")[2] for word in overrides if word.startswith("data=")]
    if OmegaConf.is_interpolation(cfg, "study"):
        cfg.study = f"{[*data, 'mnist5k'][0]}_networks"
    config = plain_values(OmegaConf.create({key: cfg[key] for key in NETWORK_KEYS}))
    validate(config)
    for key in ONLY_IN_TRAINING:
        if value := config["metrics"][key]:
            raise UserError(
                f"metrics.{key}={value} has no effect on networks that are trained already: it "
                f"acts only during training\nRemove metrics.{key}"
            )
    return config | {"seed": 0}


def _make_parser(name: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--epoch", type=int, metavar="N", help="epoch of the weights; default: the last"
    )
    parser.add_argument(
        "--split", choices=SPLITS, default="test", help="split of the samples; default: test"
    )
    parser.add_argument(
        "--samples",
        type=_parse_samples,
        default=1000,
        metavar="N",
        help="number of samples; default: 1000",
    )
    parser.add_argument(
        "--sites", nargs="+", choices=SITES, default=["act"], help="sites in a block; default: act"
    )
    parser.add_argument(
        "--memory-budget",
        type=_parse_gibibytes,
        metavar="GIB",
        help="as metrics.memory_budget; default: that of the run",
    )
    _add_trust(parser)


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="NAME",
        help="a class or function of your own that records name, such as mypackage.nets.Net",
    )


def _make_selection(options: argparse.Namespace, data_folders: Mapping[str, Any]) -> Selection:
    return Selection(
        options.split, options.samples, tuple(options.sites), options.memory_budget, data_folders
    )


def _parse_samples(text: str) -> int:
    if not text.isdecimal() or int(text) < MIN_SAMPLES:
        raise argparse.ArgumentTypeError(f"{text}: expected an integer of at least {MIN_SAMPLES}")
    return int(text)


def _parse_gibibytes(text: str) -> float:
    try:
        budget = float(text)
    except ValueError:
        budget = 0
    if not 0 < budget < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")
    return budget


def _group_of(override: str) -> str:
    """Return the configuration group, or the key without a group, that an override changes."""
    return override.lstrip("+~").partition("=")[0].partition(".")[0]


def _is_override(word: str) -> bool:
    """Check whether a word is KEY=VALUE, and not the name of an existing file or folder."""
    return "=" in word and not Path(word).exists()


def _parse_epochs(text: str) -> list[int]:
    try:
        return [int(epoch) for epoch in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: expected epochs such as 0,5") from error


def main() -> None:
    """Run the command line."""
    match sys.argv[1:]:
        case ["similarity", *arguments]:
            with command_line(
                "Interrupted; nothing was written", "choose another folder: --output FOLDER"
            ):
                measure_similarity(arguments)
        case ["network", *arguments]:
            with command_line("Interrupted; the same command measures what is missing"):
                measure_networks(arguments)
        case ["map", *arguments]:
            with command_line(
                "Interrupted; the same command continues with the interrupted run", COPY_ADVICE
            ):
                measure_embeddings(arguments)
        case arguments:
            with command_line(
                "Interrupted; the same command continues after the last measured epoch", COPY_ADVICE
            ):
                measure(arguments)


if __name__ == "__main__":
    main()
