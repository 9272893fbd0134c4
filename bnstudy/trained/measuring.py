"""Measurement of finished runs from their saved checkpoints."""

import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from bnstudy.config.mistakes import explain
from bnstudy.runs.parts import MeasuredLater
from bnstudy.runs.record import Record
from bnstudy.terminal import console, progress_bar
from bnstudy.terms import SPLITS, Split
from bnstudy.trained.only_in_training import describe_missing_options, print_missing_options
from bnstudy.training.environment import describe_environment

# torch is imported in functions: bnstudy.train skips complete cells without importing it.

# Metrics to measure by epoch, each as (split, site, metric).
Wanted = dict[int, set[tuple[str, str, str]]]

MAX_LISTED_NAMES = 5  # if there are more metrics, a message gives only their number


def measure_missing(
    record: Record,
    metrics: dict[str, Any],
    data_folders: Mapping[str, Any],
    splits: Sequence[Split] = SPLITS,
    epochs: Sequence[int] | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> bool:
    """Measure the metrics that are missing from a run's record, and print the outcome.

    Args:
        record: Record of a finished run; results are saved after each epoch.
        metrics: Configuration group `metrics`.
        data_folders: Current `root` and `cache` of the data, in case the data have moved.
        splits: Splits whose probe sets are measured.
        epochs: Epochs to measure; None: multiples of `every_n_epochs` in `metrics`, and the last
            epoch.
        progress: Function that is called with a description of the next step.

    Returns:
        Whether anything was missing.
    """
    possible, impossible = find_missing_metrics(record, metrics, splits, epochs)
    if possible:
        measure_checkpoints(record, possible, metrics, data_folders, progress)
        console.print(f"  measured from checkpoints: {_format_wanted(possible)}")
    if impossible:
        console.print(
            f"  not measured, because there is no checkpoint: {_format_wanted(impossible)} "
            "(bnstudy.train keeps those of checkpoint_epochs=..., and of the last epoch)",
            style="yellow",
        )
    return bool(possible or impossible)


def find_missing_metrics(
    record: Record,
    metrics: dict[str, Any],
    splits: Sequence[Split] = SPLITS,
    epochs: Sequence[int] | None = None,
) -> tuple[Wanted, Wanted]:
    """Find the metrics that are missing from a run's record.

    Args:
        record: Record of a finished run.
        metrics: Configuration group `metrics`.
        splits: Splits whose probe sets are measured.
        epochs: Epochs to measure; None: multiples of `every_n_epochs` in `metrics`, and the last
            epoch.

    Returns:
        Missing metrics of epochs with a checkpoint, and of epochs without one.
    """
    if epochs is None:
        last = record.last_epoch
        epochs = sorted({*range(0, last, metrics["every_n_epochs"]), last})
    missing = record.table.find_missing(metrics["names"], metrics["sites"], epochs, splits)
    kept = record.checkpoints()
    possible = {epoch: missing[epoch] for epoch in missing if epoch in kept}
    return possible, {epoch: missing[epoch] for epoch in missing if epoch not in kept}


def measure_checkpoints(
    record: Record,
    wanted: Wanted,
    metrics: dict[str, Any],
    data_folders: Mapping[str, Any],
    progress: Callable[[str], None] = lambda message: None,
) -> None:
    """Measure epochs from their checkpoints, and add the results to the record epoch by epoch.

    Args:
        record: Record of a finished run.
        wanted: Metrics to measure; each epoch has a checkpoint.
        metrics: Configuration group `metrics`, for memory budget and precision.
        data_folders: Current `root` and `cache` of the data, in case the data have moved.
        progress: Function that is called with a description of the next step.

    Raises:
        UserError: Another version of bnstudy trained the run, or its data cannot be loaded.
    """
    record.require_this_version()
    from bnstudy.callbacks import RepresentationMetrics
    from bnstudy.trained.finished_run import rebuild
    from bnstudy.training.build import load_weights

    data, classifier = rebuild(record, data_folders)
    splits, sites, names = _list_distinct(*wanted.values())
    measurement = MeasuredLater(
        epochs=[],
        metrics=names,
        splits=splits,
        sites=sites,
        environment=describe_environment(record.folder.parent),
    )
    record.description.add_measurement(measurement)
    for epoch, missing in wanted.items():

        def show_layer(message: str, epoch: int = epoch) -> None:
            progress(f"epoch {epoch}: {message}")

        step = load_weights(classifier, record.checkpoints()[epoch], data)
        splits, sites, names = _list_distinct(missing)
        callback = RepresentationMetrics(
            {split: data.probe(split) for split in SPLITS if split in splits},
            names,
            sites,
            memory_budget=metrics["memory_budget"],
            precision=metrics["precision"],
            on_layer=show_layer,
        )
        rows = callback.measure(classifier, epoch, step)
        record.description.add_directions(callback.directions())
        record.description.add_precisions(callback.precisions)
        record.save()  # before the values, because each value needs its direction
        present = record.table.measured_keys()
        record.table.add_rows(
            row
            for row in rows
            if (row.split, row.site, row.metric) in missing
            # Loss and accuracy of the probe set:
            or (row.site is None and (epoch, row.split, None, row.metric) not in present)
        )
        measurement.epochs.append(epoch)
        record.save()


def process_runs(
    cells: Sequence[Path], work: Callable[[Path, Callable[[str], None]], None], participle: str
) -> None:
    """Process runs one after the other; print an error that the user can fix, and continue.

    Args:
        cells: Folders of the runs.
        work: Function that processes one run. Its arguments are the run's folder and a function to
            call with a description of the next step.
        participle: Past participle of the work for the final message, such as "measured".

    Raises:
        SystemExit: At least one run failed.
    """
    failed = 0
    with progress_bar("runs") as bar:
        task = bar.add_task("", total=len(cells))
        for cell in cells:

            def progress(message: str, cell: Path = cell) -> None:
                bar.update(task, description=f"{cell.name} · {message}")

            progress("reading the record")
            try:
                work(cell, progress)
            except Exception as error:
                if (message := explain(error)) is None:
                    raise
                console.print(message, style="red")
                failed += 1
            bar.advance(task)
    if failed:
        sys.exit(f"{failed} of {len(cells)} runs were not {participle}")


def measure_cell(
    cell: Path,
    metrics: dict[str, Any],
    data_folders: Mapping[str, Any],
    splits: Sequence[Split],
    epochs: Sequence[int] | None,
    progress: Callable[[str], None],
) -> None:
    """Measure the metrics that are missing in one cell, while holding its lease.

    Args:
        cell: Folder of the run.
        metrics: Configuration group `metrics`.
        data_folders: Current `root` and `cache` of the data, in case the data have moved.
        splits: Splits whose probe sets are measured.
        epochs: Epochs to measure; None: multiples of `every_n_epochs` in `metrics`, and the last
            epoch.
        progress: Function that is called with a description of the next step.

    Raises:
        UserError: The run is not finished, or another process is working in the cell.
    """
    with Record.open(cell) as record:
        console.print(str(cell))
        if record.describe_table_damage():
            metrics = _recreate_table(record, metrics)
        record.require_finished()
        missing_options = describe_missing_options(record, metrics)
        print_missing_options(missing_options)
        is_missing = measure_missing(record, metrics, data_folders, splits, epochs, progress)
        if not is_missing and not missing_options:
            console.print("  all requested metrics are already recorded")


def _recreate_table(record: Record, metrics: dict[str, Any]) -> dict[str, Any]:
    """Recreate the lost table of a run with its final losses and accuracies only.

    Args:
        record: Record of a run that was trained to its end.
        metrics: Configuration group `metrics`.

    Returns:
        Configuration group `metrics` that also names the lost metrics and sites.

    Raises:
        UserError: The last checkpoint is damaged as well, or another version trained the run.
    """
    record.require_this_version()
    from bnstudy.training.checkpoints import load_checkpoint

    description = record.description
    sites = [
        *description.config["metrics"]["sites"],
        *(site for later in description.measured_later for site in later.sites or ()),
    ]
    record.recreate_table(load_checkpoint(record.paths.last_checkpoint)["global_step"])
    console.print(
        "  losses and accuracies of earlier epochs are lost; to train the run again, repeat its "
        "command with sweep.redo=all -m",
        style="yellow",
    )
    return metrics | {
        "names": list(dict.fromkeys([*description.metrics, *metrics["names"]])),
        "sites": list(dict.fromkeys([*sites, *metrics["sites"]])),
    }


def _list_distinct(*missing: set[tuple[str, str, str]]) -> tuple[list[str], list[str], list[str]]:
    """List the distinct splits, sites and metrics in sets of (split, site, metric), sorted."""
    splits, sites, names = (sorted(set(column)) for column in zip(*chain(*missing), strict=True))
    return splits, sites, names


def _format_wanted(wanted: Wanted) -> str:
    names = _list_distinct(*wanted.values())[2]
    listed = ", ".join(names) if len(names) <= MAX_LISTED_NAMES else f"{len(names)} metrics"
    return f"{listed} of epoch{'s' * (len(wanted) > 1)} {', '.join(map(str, wanted))}"
