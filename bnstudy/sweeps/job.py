"""One Hydra job: one cell of a sweep is trained and measured, or skipped if it is complete."""

import gc
import logging
import signal
import sys
import traceback
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from bnstudy.config.composition import redact_files, resolve
from bnstudy.config.identity import name_cell_folder
from bnstudy.config.mistakes import explain
from bnstudy.config.schema import validate
from bnstudy.config.targets import find_targets, trust
from bnstudy.config.without_effect import refuse_without_effect
from bnstudy.errors import UserError
from bnstudy.runs.description import RunDescription
from bnstudy.runs.lease import CellInUse
from bnstudy.runs.record import Observer, Record, remove_unused_folder
from bnstudy.runs.version import VERSION
from bnstudy.sweeps.progress import SweepProgress
from bnstudy.sweeps.search_config import worst_value
from bnstudy.terminal import console, shorten_warnings
from bnstudy.terms import format_count
from bnstudy.trained.measuring import measure_missing
from bnstudy.trained.only_in_training import describe_missing_options, print_missing_options
from bnstudy.training.data_check import DataCheck
from bnstudy.training.processes import is_first_process, stopping_on_signal
from bnstudy.workers import end_with_parent, make_picklable

# torch and Lightning are imported in functions: the imports take seconds, and complete cells are
# skipped without them.


@dataclass(frozen=True)
class Outcome:
    """Result of one Hydra job.

    Attributes:
        record: Record of the run.
        has_trained: Whether the job trained; False if the cell was complete before.
        objective: Name of the final number, in the record, that a search optimizes.
    """

    record: Record
    has_trained: bool
    objective: str

    def __float__(self) -> float:
        """Return the objective for a search; the worst possible value if the run diverged.

        Raises:
            UserError: The data have no validation split.
        """
        if self.record.description.status == "diverged":
            return worst_value(self.objective)
        numbers = self.record.description.final.numbers
        if self.objective not in numbers:
            raise UserError(
                f"sweep.objective={self.objective}: the data have no validation split\n"
                "Add one to them, or set data.validation=0.1"
            )
        value = numbers[self.objective]
        return worst_value(self.objective) if value is None or not isfinite(value) else value

    def __str__(self) -> str:
        """Format the objective; if it has the worst possible value, the status of the run."""
        value = float(self)
        if value == worst_value(self.objective):
            return str(self.record.description.status)
        return f"{self.objective}={value:.4f}"


def run(cfg: DictConfig) -> Outcome:
    """Train and measure one cell.

    An interrupted cell continues from its last checkpoint. A complete cell is not trained again.

    Args:
        cfg: Composed configuration of a Hydra job.

    Raises:
        UserError: The user has to correct the configuration, the data or the cell's folder.
    """
    config = resolve(cfg)
    validate(config)
    refuse_without_effect(config)
    # The record of a run that is resumed may then name the classes that this command names.
    trust(find_targets(config))
    hydra_config = HydraConfig.get()
    folder, is_first = cell_folder(), is_first_process()
    if is_first:
        redact_files(folder / ".hydra")
    is_single_run = hydra_config.mode is RunMode.RUN
    if is_single_run and is_first and (config["sweep"]["redo"] or config["sweep"]["dry_run"]):
        raise UserError("sweep.redo and sweep.dry_run apply only to multiruns: add -m")
    choices = dict(hydra_config.runtime.choices)
    overrides = list(hydra_config.overrides.task)
    description = RunDescription.new(config, folder.name, choices, overrides)
    with (Record if is_first else Observer).open(folder, description) as record:
        should_train = not record.is_finished
        if should_train:
            if is_first and not record.description.attempts:
                print_former_default(folder, config, overrides)
            # Workers that run side by side print a line for each epoch instead of a progress line:
            # redrawn lines would overwrite each other.
            is_alone = is_single_run or SweepProgress.total > 0
            plain = Console(force_terminal=False, highlight=False, markup=False, soft_wrap=True)
            from bnstudy.training.fit import fit

            fit(record, config, console if is_alone else plain)
        elif is_first:
            DataCheck().require_same(record, config)
        if is_first:
            # Also if the run was complete before: it may have been killed before this line.
            record.remove_intermediate_files()
            print_result(record)
            if (version := record.description.version) != VERSION:
                console.print(
                    f"  this run was trained by bnstudy {version} and is not compared with runs "
                    f"of {VERSION}; sweep.redo=all -m trains it again",
                    style="yellow",
                )
            measure_missing(record, config["metrics"], config["data"])
            print_missing_options(
                describe_missing_options(record, config["metrics"], config["callbacks"])
            )
        return Outcome(record, should_train, config["sweep"]["objective"])


def print_result(record: Record) -> None:
    """Print the status, the test accuracy and the last epoch of a finished run."""
    description = record.description
    accuracy = f"test accuracy {description.final.numbers['test_accuracy']:.2%}"
    console.print(
        f"{record.folder}: {description.status}, {accuracy} after "
        f"{format_count(description.final.epoch or 0, 'epoch')}"
    )


def print_former_default(folder: Path, config: dict[str, Any], overrides: list[str]) -> None:
    """Print how to continue a run that was trained with the former default of `probe`.

    Nothing is printed if there is no such run with otherwise the same configuration, or if an
    override sets `probe`.

    Args:
        folder: Folder of the new cell.
        config: Resolved configuration.
        overrides: Overrides of the job.
    """
    earlier = folder.with_name(name_cell_folder(config | {"probe": {"train": None, "test": None}}))
    if earlier.exists() and not any(word.startswith("probe") for word in overrides):
        console.print(
            f"{earlier} was trained before the default of probe changed to 2000; to continue that "
            "run, add probe.train=null probe.test=null",
            style="yellow",
        )


def cell_folder() -> Path:
    """Return the folder of the current Hydra job, relative to the working folder if inside it."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def job(cfg: DictConfig) -> Outcome:
    """Run one Hydra job, and print its errors and interruptions."""
    end_with_parent()
    shorten_warnings()  # a worker runs only this function of the command
    try:
        with stopping_on_signal():
            return run(cfg)
    except Exception as error:
        message = explain(error)
        if isinstance(error, UserError) and not isinstance(error, CellInUse):
            remove_unused_folder(cell_folder(), Path(cfg.output_root))
            handlers = logging.getLogger().handlers
            for handler in handlers:
                handler.close()
            handlers.clear()  # they write to the log in the removed folder
        if message is None:
            logging.getLogger(__name__).exception("This run failed")  # to the cell's train.log
        is_multirun = HydraConfig.get().mode is RunMode.MULTIRUN
        if is_multirun:
            reason = message or f"{type(error).__name__}: {error}"
            state = "Running elsewhere" if isinstance(error, CellInUse) else "Failed"
            console.print(f"{state}: {reason}", style="red")
        elif message:
            sys.exit(message)  # Hydra would add a hint to a raised error
        release_locals(error)
        if is_multirun and (picklable := make_picklable(error)) is not error:
            raise picklable from None
        raise  # in a multirun, Hydra runs the other jobs before it raises the first error
    except (KeyboardInterrupt, SystemExit) as stop:
        if is_first_process():
            console.print("Interrupted; the same command continues after the last complete epoch")
        # After SIGTERM, Lightning exits with status 0, which would look like success.
        terminated = isinstance(stop, SystemExit) and stop.code is None
        sys.exit(128 + (signal.SIGTERM if terminated else signal.SIGINT))
    finally:
        # Lightning's trainer, the network and the data refer to each other; without this, they
        # would stay in memory beside those of the next jobs of this process.
        gc.collect()


def release_locals(error: BaseException | None) -> None:
    """Clear the local variables in the traceback of an error and of its causes.

    Hydra keeps errors until the sweep ends, and with them their local variables, such as a network.

    Args:
        error: Error of a job.
    """
    cleared: set[BaseException] = set()  # an error can be the context of its own cause
    while error is not None and error not in cleared:
        traceback.clear_frames(error.__traceback__)
        cleared.add(error)
        error = error.__cause__ or error.__context__
