"""Command line for studies in Weights & Biases. `python -m bnstudy.dashboard --help`."""

import argparse
import json
from pathlib import Path

from bnstudy.cli import command_line
from bnstudy.terminal import console

HELP = """\
Studies in Weights & Biases: their dashboard, and the way there and back.

  python -m bnstudy.dashboard push --project bnstudy       make the dashboard, or update it
  python -m bnstudy.dashboard sync multirun/mnist5k_cnn    upload what is not there yet
  python -m bnstudy.dashboard pull --project bnstudy       write a project's runs as studies

push twice, and there is one dashboard; sync twice, and each run is there once.
"""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        "bnstudy.dashboard", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="push | sync | pull")
    push = commands.add_parser("push", help="make or update the dashboard of a project")
    push.add_argument("--project", default="bnstudy", help="default: %(default)s")
    push.add_argument(
        "--study", type=Path, metavar="STUDY_DIR", help="whose layers and metrics it shows"
    )
    push.add_argument("--json", action="store_true", help="print it; no server is asked")
    sync = commands.add_parser("sync", help="upload what is not yet there")
    sync.add_argument("study", type=Path, metavar="STUDY_DIR", help="or the folder of a run")
    sync.add_argument("--project", help="default: that of each run's configuration")
    pull = commands.add_parser("pull", help="write a project's runs as studies")
    pull.add_argument("--project", default="bnstudy", help="default: %(default)s")
    pull.add_argument(
        "--output-root", type=Path, default=Path("multirun"), help="default: %(default)s"
    )
    for command in (push, sync, pull):
        command.add_argument("--entity", help="W&B's user or team; default: your own")
    options = parser.parse_args()
    with command_line(
        "Interrupted: the same command goes on", "choose another folder: --output-root FOLDER"
    ):
        run(options)


def run(options: argparse.Namespace) -> None:
    """Run the chosen command."""
    match options.command:
        case "push":
            from bnstudy.adapters.wandb_internals import view_spec
            from bnstudy.tracking import workspace

            study = options.study
            measured = workspace.measured_in(study) if study else workspace.Measured()
            if options.json:
                view = workspace.workspace(options.entity or "me", options.project, measured)
                print(json.dumps(json.loads(view_spec(view)), indent=2))
            else:
                console.print(workspace.push(options.project, options.entity, measured))
        case "sync":
            from bnstudy.tracking.sync import sync

            sync(options.study, options.project, options.entity)
        case "pull":
            from bnstudy.tracking.pull import pull

            pull(options.project, options.entity, options.output_root)


if __name__ == "__main__":
    main()
