"""Reader of the transaction log in which W&B's SDK stores a run's data."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bnstudy.adapters.wandb_internals import read_transaction_log


@dataclass
class TransactionLog:
    """Data that a run has logged.

    Attributes:
        rows: Rows of the run's history, by W&B's step.
        staged: Files of the run's artifacts, outside of its folder.
        exit_code: Exit code; None if the run was killed or is still running.
    """

    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    staged: list[Path] = field(default_factory=list)
    exit_code: int | None = None


def read_log(path: Path) -> TransactionLog:
    """Read a log up to the first incomplete entry."""
    log = TransactionLog()
    for record in read_transaction_log(path):
        match record.WhichOneof("record_type"):
            case "history":
                items = record.history.item
                row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
                step = row.get("_step", record.history.step.num)
                log.rows.setdefault(int(step), {}).update(row)
            case "artifact":
                contents = record.artifact.manifest.contents
                log.staged += [Path(file.local_path) for file in contents if file.local_path]
            case "exit":
                log.exit_code = record.exit.exit_code
    return log
