"""The run that a run is paired with: the same but for its normalization."""

from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from bnstudy.config.identity import essence
from bnstudy.errors import UserError
from bnstudy.runs.record import Record
from bnstudy.runs.version import VERSION

# What may be each norm's own.
OF_THE_NORM = ("norm.", "regularizer.", "optim.lr", "model.residual_init")


def find_twin(record: Record, config: dict[str, Any], norm: str) -> Record:
    """The run of a study with another normalization, the same seed and all else, unregularized.

    It was trained on the same data, by this version of bnstudy.

    Args:
        record: Record of the run that is paired, which has its data.
        config: The resolved configuration of that run.
        norm: The twin's normalization.

    Raises:
        UserError: There is none that has ended, or several.
    """
    study = record.folder.parent
    twins = []
    for path in sorted(study.glob("*/run.json")):
        candidate = Record.read(path.parent)
        other = candidate.description["config"]
        if (
            candidate.has_ended
            and (other["norm"]["name"], other["regularizer"]["name"]) == (norm, "none")
            and _shared(other) == _shared(config)
            and candidate.description["data"]["sha256"] == record.description["data"]["sha256"]
            and candidate.version == VERSION
        ):
            twins.append(candidate)
    if len(twins) != 1:
        found = ", ".join(str(twin.folder) for twin in twins) or "none that has ended"
        raise UserError(
            f"regularizer.target={norm} needs one run of norm={norm} regularizer=none in {study}/, "
            f"otherwise the same, of the same images and bnstudy {VERSION}; there is: {found}\n"
            "Train it first, then run the same command again; or give a number from 0 to 1"
        )
    return twins[0]


def final_sparsity(record: Record) -> dict[str, float]:
    """By layer, the share of zeros (unit_sparsity) on the training split after the last epoch.

    Raises:
        UserError: It was not measured.
    """
    table = pq.read_table(record.table_path)
    chosen = (
        (pc.field("epoch") == record.description["final"]["epoch"])
        & (pc.field("split") == "train")
        & (pc.field("site") == "act")
        & (pc.field("metric") == "unit_sparsity")
    )
    rows = table.filter(chosen).to_pylist()
    if not rows:
        raise UserError(
            f"{record.folder}: its unit_sparsity was not measured\n"
            f"python -m bnstudy.measure {record.folder} metrics.names=[unit_sparsity]"
        )
    return {row["layer"]: row["value"] for row in rows}


def _shared(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in essence(config).items() if not key.startswith(OF_THE_NORM)}
