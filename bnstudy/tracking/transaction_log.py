"""What a run has logged, from the file in which W&B's SDK keeps it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bnstudy.adapters.wandb_internals import read_transaction_log


@dataclass
class TransactionLog:
    """What a run has logged.

    Attributes:
        rows: Of its history, by W&B's step.
        staged: Files of its artifacts, outside of the run's folder.
        exit_code: None where the run was killed, or goes on.
    """

    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    staged: list[Path] = field(default_factory=list)
    exit_code: int | None = None


def read(path: Path) -> TransactionLog:
    """Read a log as far as it is whole."""
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
                log.staged += [Path(one.local_path) for one in contents if one.local_path]
            case "exit":
                log.exit_code = record.exit.exit_code
    return log
