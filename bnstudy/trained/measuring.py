"""Measuring finished runs from the checkpoints they kept."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bnstudy.errors import UserError
from bnstudy.runs.description import MeasuredLater
from bnstudy.runs.record import Record
from bnstudy.terminal import console, progress_bar
from bnstudy.terms import SPLITS, Split
from bnstudy.training.environment import environment

# torch is imported where it is needed: bnstudy.train tells that nothing is missing without it.


Wanted = dict[int, set[tuple[str, str, str]]]  # by epoch, (split, site, metric)

MOST_NAMES = 5  # that are listed


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
        last = record.last_epoch
        epochs = sorted({*range(0, last, metrics["every_n_epochs"]), last})
    missing = record.table.missing(metrics["names"], metrics["sites"], epochs, splits)
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
    from bnstudy.callbacks import RepresentationMetrics
    from bnstudy.trained.finished_run import rebuild
    from bnstudy.training.build import load_weights

    data, classifier = rebuild(record)
    measurement = MeasuredLater(
        epochs=[],
        metrics=_names(wanted),
        splits=sorted({split for what in wanted.values() for split, _, _ in what}),
        sites=sorted({site for what in wanted.values() for _, site, _ in what}),
        environment=environment(),
    )
    record.description.add_measurement(measurement)
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
        record.description.add_directions(metrics.directions())
        record.save()  # first: a direction without a value does no harm
        record.table.add_rows(row for row in rows if (row.split, row.site, row.metric) in what)
        measurement.epochs.append(epoch)
        record.save()


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


def measure_cell(
    cell: Path,
    metrics: dict[str, Any],
    splits: Sequence[Split],
    epochs: Sequence[int] | None,
    say: Callable[[str], None],
) -> None:
    """Measure what is missing in one cell, under its lease.

    Args:
        cell: Folder of the run.
        metrics: The configuration group of that name.
        splits: Splits whose probe sets are measured.
        epochs: Epochs; None: every n-th, as `metrics` says, and the last one.
        say: Called with what is measured next.

    Raises:
        UserError: The run has not ended, or another process works in the cell.
    """
    with Record.held(cell) as record:
        record.require_end()
        console.print(str(cell))
        if not measure_missing(record, metrics, splits, epochs, say):
            console.print("  nothing is missing")


def _names(wanted: Wanted) -> list[str]:
    return sorted({name for what in wanted.values() for _, _, name in what})


def _told(wanted: Wanted) -> str:
    names = _names(wanted)
    what = ", ".join(names) if len(names) <= MOST_NAMES else f"{len(names)} metrics"
    return f"{what} of epoch{'s' * (len(wanted) > 1)} {', '.join(map(str, wanted))}"
