"""Command line that trains one run or a sweep. See `python -m bnstudy.train --help`."""

import os
import sys

import hydra

from bnstudy.cli import command_line
from bnstudy.config import CONFIG_FOLDER
from bnstudy.config.composition import check_overrides, select_own_classes
from bnstudy.config.identity import START_TIME, register_resolvers
from bnstudy.sweeps.grid import defer_to_jobs
from bnstudy.sweeps.job import job
from bnstudy.sweeps.search_config import register_search
from bnstudy.training.processes import is_first_process


def main() -> None:
    """Run the command line."""
    # With this variable Hydra raises its errors, so that `job` and `command_line` can explain them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Hydra accepts -m only before or after all overrides; here it may be anywhere.
    sys.argv[1:] = sorted(
        select_own_classes(sys.argv[1:]), key=lambda word: word not in ("-m", "--multirun")
    )
    if sys.argv[1:2] in (["-m"], ["--multirun"]):
        sys.argv[1:] = defer_to_jobs(sys.argv[1:])
    register_resolvers()
    register_search()
    if is_first_process():  # the other processes of a distributed run keep its start time
        os.environ.pop(START_TIME, None)  # if inherited, it is that of another command
    # As a decorator it would replace `job`, which launchers could then not pickle.
    hydra_main = hydra.main(config_path=str(CONFIG_FOLDER), config_name="train", version_base="1.3")
    # `job` handles interruptions inside of a job.
    with command_line("Interrupted; repeat the command to continue"):
        check_overrides(sys.argv[1:])
        hydra_main(job)()


if __name__ == "__main__":
    main()
