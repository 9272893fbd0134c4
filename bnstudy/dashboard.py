"""Command line for studies in Weights & Biases. `python -m bnstudy.dashboard --help`."""

import argparse
import json
from pathlib import Path

from bnstudy.cli import command_line
from bnstudy.terminal import console

HELP = """\
Exchange studies with Weights & Biases.

  python -m bnstudy.dashboard push --project bnstudy       create or update the dashboard
  python -m bnstudy.dashboard sync multirun/mnist5k_cnn    upload what the server does not have
  python -m bnstudy.dashboard pull --project bnstudy       download a project's runs as studies

Each command can be repeated: it creates neither a second dashboard nor a second copy of a run.
"""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        "bnstudy.dashboard", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="push | sync | pull")
    push = commands.add_parser("push", help="create or update the dashboard of a project")
    push.add_argument("--project", default="bnstudy", help="default: %(default)s")
    push.add_argument(
        "--study",
        type=Path,
        metavar="STUDY_DIR",
        help="study whose layers and metrics the dashboard shows",
    )
    push.add_argument(
        "--json", action="store_true", help="print the dashboard as JSON instead of uploading it"
    )
    sync = commands.add_parser("sync", help="upload what the server does not have")
    sync.add_argument("study", type=Path, metavar="STUDY_DIR", help="folder of a study or of a run")
    sync.add_argument("--project", help="default: the project in each run's configuration")
    pull = commands.add_parser("pull", help="download a project's runs as studies")
    pull.add_argument("--project", default="bnstudy", help="default: %(default)s")
    pull.add_argument(
        "--output-root", type=Path, default=Path("multirun"), help="default: %(default)s"
    )
    for command in (push, sync, pull):
        command.add_argument("--entity", help="W&B user or team; default: your default entity")
    options = parser.parse_args()
    alternative = "copy the study to a folder that can be written"
    if options.command == "pull":
        alternative = "choose another folder: --output-root FOLDER"
    with command_line("Interrupted; the same command continues", alternative):
        run(options)


def run(options: argparse.Namespace) -> None:
    """Run the chosen command."""
    match options.command:
        case "push":
            from bnstudy.adapters.wandb_internals import view_spec
            from bnstudy.tracking import workspace

            study = options.study
            measured = workspace.find_measured(study) if study else workspace.Measured()
            if options.json:
                view = workspace.make_workspace(options.entity or "me", options.project, measured)
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
