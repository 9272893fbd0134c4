"""Measuring runs that have been trained. `python -m bnstudy.measure --help`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bnstudy.config import CONFIG_FOLDER, explain, validate
from bnstudy.errors import UserError
from bnstudy.runs.environment import environment
from bnstudy.runs.lease import held
from bnstudy.runs.record import Record
from bnstudy.terminal import console
from bnstudy.terms import SPLITS, Split

# torch is imported where it is needed: bnstudy.train tells that nothing is missing without it.

Wanted = dict[int, set[tuple[str, str, str]]]  # by epoch, (split, site, metric)

MOST_NAMES = 5  # that are listed

HELP = """\
Measure runs that have been trained, from the checkpoints they kept, without training.

  python -m bnstudy.measure multirun/mnist5k_cnn metrics=full
  python -m bnstudy.measure multirun/mnist5k_cnn/CELL metrics.names=[dunn,hoyer] --split test
  python -m bnstudy.measure similarity RUN_A RUN_B       how alike the layers of two runs are
  python -m bnstudy.measure map RUN_OR_STUDY_DIR         where samples lie in a plane

What a run's record has already is not measured again, so that the same command goes on where it was
interrupted. A run keeps the weights of its last epoch, and of those that checkpoint_epochs=... of
bnstudy.train asked for.
"""


def measure_missing(
    record: Record,
    metrics: dict[str, Any],
    splits: Sequence[Split] = SPLITS,
    epochs: Sequence[int] | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> bool:
    """Measure what is asked for and not in a run's record, and tell what was and what was not.

    Args:
        record: Of a run that has ended; it is added to after each epoch.
        metrics: The configuration group of that name.
        splits: Whose probe sets are measured.
        epochs: Which ones; None: every n-th, as `metrics` says, and the last one.
        say: Told what is measured next.

    Returns:
        Whether anything was missing.
    """
    possible, without = missing_metrics(record, metrics, splits, epochs)
    if possible:
        measure_checkpoints(record, possible, metrics["memory_budget"], say)
        console.print(f"  measured from checkpoints: {_told(possible)}")
    if without:
        console.print(
            f"  not measured, for want of a checkpoint: {_told(without)} "
            "(bnstudy.train keeps those of checkpoint_epochs=..., and of the last epoch)",
            style="yellow",
        )
    return bool(possible or without)


def missing_metrics(
    record: Record,
    metrics: dict[str, Any],
    splits: Sequence[Split] = SPLITS,
    epochs: Sequence[int] | None = None,
) -> tuple[Wanted, Wanted]:
    """What is asked for and not in a run's record: with a checkpoint to measure, and without.

    Args:
        record: Of a run that has ended.
        metrics: The configuration group of that name.
        splits: Whose probe sets are measured.
        epochs: Which ones; None: every n-th, as `metrics` says, and the last one.
    """
    if epochs is None:
        last = record.description["final"]["epoch"]
        epochs = sorted({*range(0, last, metrics["every_n_epochs"]), last})
    missing = record.missing(metrics["names"], metrics["sites"], epochs, splits)
    kept = record.checkpoints()
    possible = {epoch: what for epoch, what in missing.items() if epoch in kept}
    return possible, {epoch: what for epoch, what in missing.items() if epoch not in kept}


def measure_checkpoints(
    record: Record,
    wanted: Wanted,
    memory_budget: float,
    say: Callable[[str], None] = lambda message: None,
) -> None:
    """Add to the record what is wanted of epochs whose weights were kept, epoch by epoch.

    Args:
        record: Of a run that has ended.
        wanted: By epoch, (split, site, metric).
        memory_budget: GiB that activations and the distances between samples may take.
        say: Told what is measured next.

    Raises:
        UserError: The run is of another version of bnstudy, or its data cannot be had.
    """
    record.require_this_version()
    from bnstudy.build import build, load_weights
    from bnstudy.callbacks import RepresentationMetrics

    data, classifier = build(record.description["config"], record)
    done: list[int] = []
    record.description.setdefault("measured_later", []).append(
        {
            "epochs": done,
            "metrics": _names(wanted),
            "splits": sorted({split for what in wanted.values() for split, _, _ in what}),
            "sites": sorted({site for what in wanted.values() for _, site, _ in what}),
            "environment": environment(),
        }
    )
    for epoch, what in wanted.items():

        def say_which(message: str, epoch: int = epoch) -> None:
            say(f"epoch {epoch}: {message}")

        step = load_weights(classifier, record.checkpoints()[epoch], data)
        metrics = RepresentationMetrics(
            {split: data.probe(split) for split in SPLITS if any(split == one for one, *_ in what)},
            sorted({name for _, _, name in what}),
            sorted({site for _, site, _ in what}),
            memory_budget=memory_budget,
            on_layer=say_which,
        )
        rows = metrics.measure(classifier, epoch, step)
        record.description["metrics"] |= metrics.directions()
        record.save()  # first: a direction without a value does no harm
        record.add_rows(row for row in rows if (row.split, row.site, row.metric) in what)
        done.append(epoch)
        record.save()


def progress_bar(of: str) -> Progress:
    """How many are done, gone when all are.

    Args:
        of: What is counted.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(of),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


def runs_below(folder: Path) -> list[Path]:
    """The cells in a study's folder, or the one that the folder is.

    Raises:
        UserError: There is none.
    """
    if (folder / "run.json").exists():
        return [folder]
    cells = sorted(path.parent for path in folder.glob("*/run.json"))
    if not cells:
        raise UserError(
            f"{folder}: no run.json in it or in its folders; give the folder of a run or of a "
            "study, such as multirun/mnist5k_cnn"
        )
    return cells


def asked_metrics(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration group `metrics` with overrides as on the command line of bnstudy.train.

    Raises:
        UserError: Something else is overridden, or a value is not allowed.
    """
    for override in overrides:
        if not override.startswith(("metrics=", "metrics.")):
            raise UserError(
                f"{override}: of a run that has been trained only metrics=... and metrics.KEY=... "
                "can be chosen; train another run for the rest"
            )
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        cfg = compose("train", overrides=list(overrides))
    metrics: dict[str, Any] = OmegaConf.to_container(cfg.metrics)  # type: ignore[assignment]
    validate({"metrics": metrics})
    from bnstudy.metrics import chosen

    chosen(metrics["names"])
    return metrics


def measure(arguments: Sequence[str]) -> None:
    """Measure runs and studies.

    Raises:
        UserError: Something is asked for that is not there; a run's own trouble is told, and the
            others are measured.
    """
    parser = argparse.ArgumentParser(
        "bnstudy.measure", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN_OR_STUDY_DIR | metrics=...",
        help="folders; metrics=default (default), fast, full or paper; metrics.KEY=VALUE",
    )
    parser.add_argument("--split", choices=SPLITS, help="only this one")
    parser.add_argument(
        "--epochs",
        type=_epochs,
        metavar="N,N",
        help="only these; 0 is before training",
    )
    options = parser.parse_intermixed_args(arguments)
    metrics = asked_metrics([word for word in options.words if _is_override(word)])
    folders = [Path(word) for word in options.words if not _is_override(word)]
    cells = [cell for folder in folders for cell in runs_below(folder)]
    if not cells:
        parser.error("give the folder of a run or of a study")
    splits = [options.split] if options.split else SPLITS

    def measure_one(cell: Path, say: Callable[[str], None]) -> None:
        _measure_cell(cell, metrics, splits, options.epochs, say)

    each_run(cells, measure_one, "measured")


def each_run(
    cells: Sequence[Path], work: Callable[[Path, Callable[[str], None]], None], what: str
) -> None:
    """Work on runs one after the other; the trouble with one is told, and the others go on.

    Args:
        cells: The runs' folders.
        work: Is called with a run's folder, and a function that is told what is done next.
        what: In a word, what is done.
    """
    failed = 0
    with progress_bar("runs") as bar:
        task = bar.add_task("", total=len(cells))
        for cell in cells:

            def say(message: str, cell: Path = cell) -> None:
                bar.update(task, description=f"{cell.name} · {message}")

            say("reading the record")
            try:
                work(cell, say)
            except UserError as error:
                console.print(str(error), style="red")
                failed += 1
            bar.advance(task)
    if failed:
        sys.exit(f"{failed} of {len(cells)} runs were not {what}")


def _measure_cell(
    cell: Path,
    metrics: dict[str, Any],
    splits: Sequence[Split],
    epochs: Sequence[int] | None,
    say: Callable[[str], None],
) -> None:
    with held(cell) as lease:
        record = Record.read(cell)
        record.lease = lease
        record.require_end()
        record.remove_leftovers()
        console.print(str(cell))
        if not measure_missing(record, metrics, splits, epochs, say):
            console.print("  nothing is missing")


def _names(wanted: Wanted) -> list[str]:
    return sorted({name for what in wanted.values() for _, _, name in what})


def _told(wanted: Wanted) -> str:
    names = _names(wanted)
    what = ", ".join(names) if len(names) <= MOST_NAMES else f"{len(names)} metrics"
    return f"{what} of epoch{'s' * (len(wanted) > 1)} {', '.join(map(str, wanted))}"


def _is_override(word: str) -> bool:
    return "=" in word and not Path(word).exists()


def _epochs(text: str) -> list[int]:
    try:
        return [int(epoch) for epoch in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: it takes epochs such as 0,5") from error


def main() -> None:
    """The command line."""
    arguments = sys.argv[1:]
    again = "the same command goes on from the last measured epoch"
    try:
        if arguments[:1] == ["similarity"]:
            from bnstudy.similarity import compare

            again = "nothing was written"
            compare(arguments[1:])
        elif arguments[:1] == ["map"]:
            from bnstudy.maps import make_maps

            again = "the same command goes on with the run that it was at"
            make_maps(arguments[1:])
        else:
            measure(arguments)
    except KeyboardInterrupt:
        sys.exit(f"Interrupted: {again}")
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        sys.exit(message)


if __name__ == "__main__":
    main()
