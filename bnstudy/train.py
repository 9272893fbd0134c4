"""One run: compose, build data and network, fit, record. `python -m bnstudy.train --help`."""

import logging
import os
import signal
import sys
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from bnstudy.config import CONFIG_FOLDER
from bnstudy.config.composition import resolve
from bnstudy.config.identity import register_resolvers
from bnstudy.config.mistakes import explain
from bnstudy.config.schema import validate
from bnstudy.errors import UserError
from bnstudy.runs.description import RunDescription
from bnstudy.runs.lease import CellInUse
from bnstudy.runs.record import Observer, Record, discard_if_empty
from bnstudy.runs.version import VERSION
from bnstudy.sweeps.progress import SweepProgress
from bnstudy.sweeps.search_config import register_search, worst_value
from bnstudy.terminal import console
from bnstudy.trained.measuring import measure_missing
from bnstudy.training.data_check import DataCheck
from bnstudy.training.processes import is_first_process, stopping_in_order

# torch and Lightning are imported where they are needed: they take seconds, and a cell that is
# complete is skipped without them.


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Attributes:
        record: Of the run.
        trained: Whether anything was trained; a complete cell is not trained again.
        objective: Of a search: which of the record's final numbers.
    """

    record: Record
    trained: bool
    objective: str

    def __float__(self) -> float:
        """The objective, as a search wants it; the worst there is where the run diverged."""
        value: float | None = self.record.description.final.numbers[self.objective]
        if self.record.description.status == "diverged" or value is None or not isfinite(value):
            return worst_value(self.objective)
        return value


def run(cfg: DictConfig) -> Outcome:
    """Train and measure one cell; go on where it was interrupted; skip it where it is complete.

    Args:
        cfg: The composed configuration, of a Hydra job.

    Raises:
        UserError: The configuration, the data or the cell's folder needs the user's hand.
    """
    config = resolve(cfg)
    validate(config)
    job = HydraConfig.get()
    folder, first = cell_of_job(), is_first_process()
    single = job.mode is RunMode.RUN
    if single and first and (config["sweep"]["redo"] or config["sweep"]["dry_run"]):
        raise UserError("sweep.redo and sweep.dry_run are for multiruns: add -m")
    choices, overrides = dict(job.runtime.choices), list(job.overrides.task)
    described = RunDescription.new(config, folder.name, choices, overrides)
    with (Record if first else Observer).held(folder, described) as record:
        trained = not record.has_ended
        if not trained and first:
            DataCheck().require_same(record, config)
        if trained:
            # Several workers' lines would overwrite one another.
            alone = single or SweepProgress.total > 0
            lines = Console(force_terminal=False, highlight=False, markup=False, soft_wrap=True)
            from bnstudy.training.recipe import fit

            fit(record, config, console if alone else lines)
        if first:
            record.remove_parts()  # now: a run killed before this line has its table, and its parts
            tell_result(record)
            if (version := record.description.version) != VERSION:
                console.print(
                    f"  trained by bnstudy {version}, so not compared with runs of "
                    f"{VERSION}; sweep.redo=all -m trains it anew",
                    style="yellow",
                )
            measure_missing(record, config["metrics"])
            tell_not_measured(record, config["callbacks"])
        return Outcome(record, trained, config["sweep"]["objective"])


def tell_result(record: Record) -> None:
    """Say how a run ended."""
    described = record.description
    accuracy = f"test accuracy {described.final.numbers['test_accuracy']:.2%}"
    console.print(
        f"{record.folder}: {described.status}, {accuracy} after {described.final.epoch} epochs"
    )


def tell_not_measured(record: Record, callbacks: dict[str, dict[str, Any]]) -> None:
    """Print which of the callbacks asked for a run did not have, or had with other options.

    Args:
        record: Record of the run.
        callbacks: Options of each callback that is asked for now.
    """
    had = record.description.callbacks
    kept = record.description.config.get("callbacks", {})
    without = [name for name in callbacks if name not in had]
    other = [
        f"callbacks.{name}.{key}={kept[name][key]} and not {value}"
        for name, options in callbacks.items()
        if name in had and name in kept
        for key, value in options.items()
        if key != "memory_budget" and kept[name].get(key, value) != value
    ]
    told = [f"without callbacks={','.join(without)}"] if without else []
    told += [f"with {', '.join(other)}"] if other else []
    if told:
        console.print(
            f"  trained {', and '.join(told)}, which cannot be measured later; "
            "choose another study=NAME to train it with them",
            style="yellow",
        )


def cell_of_job() -> Path:
    """The folder of the Hydra job that runs, as the user would write it."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def job(cfg: DictConfig) -> Outcome:
    """A Hydra job: one run."""
    try:
        with stopping_in_order():
            return run(cfg)
    except Exception as error:
        message = explain(error)
        if isinstance(error, UserError) and not isinstance(error, CellInUse):
            discard_if_empty(cell_of_job(), Path(cfg.output_root))
            logging.getLogger().handlers.clear()  # of the log in that folder
        if message is None:
            logging.getLogger(__name__).exception("This run failed")  # to the cell's train.log
        if HydraConfig.get().mode is RunMode.RUN:
            if message:
                sys.exit(message)  # raised, Hydra would add to it
        else:
            told = message or f"{type(error).__name__}: {error}"
            console.print(f"Failed: {told}", style="red")
        raise  # in a multirun Hydra goes on with the other jobs, then raises the first error
    except (KeyboardInterrupt, SystemExit) as stop:
        if is_first_process():
            console.print("Interrupted: the same command goes on from the last finished epoch")
        # Lightning answers SIGTERM with an exit status that would look like success.
        terminated = isinstance(stop, SystemExit) and stop.code is None
        sys.exit(128 + (signal.SIGTERM if terminated else signal.SIGINT))


def main() -> None:
    """The command line."""
    # Hydra then raises its errors, and they are told in the user's words here.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # Hydra takes it before all overrides or after them; here it may stand among them.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))
    register_resolvers()
    register_search()
    # Not as a decorator: launchers find the job by its name in other processes.
    hydra_main = hydra.main(config_path=str(CONFIG_FOLDER), config_name="train", version_base="1.3")
    try:
        hydra_main(job)()
    except KeyboardInterrupt:  # outside of a job, which tells of it itself
        console.print("Interrupted: the same command goes on")
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        sys.exit(message)


if __name__ == "__main__":
    # Again by its name: launchers send the job to processes whose __main__ is another.
    from bnstudy import train

    train.main()
