"""The twin of a run: the same run with another normalization, whose sparsity is the target."""

from typing import Any

from bnstudy.config.identity import select_identity_options
from bnstudy.errors import UserError
from bnstudy.redaction import redact_values
from bnstudy.runs.paths import list_cells
from bnstudy.runs.record import Record
from bnstudy.runs.version import VERSION

# Configuration keys, and prefixes of keys, in which twins may differ.
TWIN_SPECIFIC_KEYS = ("norm.", "regularizer.", "optim.lr", "model.residual_init")


def with_target_sparsity(record: Record, config: dict[str, Any]) -> dict[str, Any]:
    """Replace a regularizer's target that names a normalization by the sparsity of the twin.

    The numbers are saved in the record, and read from it when the run is resumed or measured.

    Args:
        record: Record of the run; its data are already recorded.
        config: Resolved configuration of the run.

    Returns:
        Configuration whose target is a number, or a number for each layer.

    Raises:
        UserError: There is no twin, or its sparsity was not measured.
    """
    norm = config["regularizer"].get("target")
    if not isinstance(norm, str):
        return config
    description = record.description
    if description.target_sparsity is None:
        description.target_sparsity = read_final_sparsity(find_twin(record, config, norm))
    return config | {"regularizer": config["regularizer"] | {"target": description.target_sparsity}}


def find_twin(record: Record, config: dict[str, Any], norm: str) -> Record:
    """Find the run of the same study that differs in its normalization and has no regularizer.

    It is finished, has the same seed, and was trained on the same data by this version of bnstudy.

    Args:
        record: Record of the run; its data are already recorded.
        config: Resolved configuration of the run.
        norm: Normalization of the twin.

    Raises:
        UserError: No such run is finished, or there are several.
    """
    study = record.folder.parent
    twins = []
    for folder in list_cells(study):
        try:
            candidate = Record.read(folder)
        except UserError:  # a damaged record is no twin
            continue
        other = candidate.description.config
        if (
            candidate.is_finished
            and (other["norm"]["name"], other["regularizer"]["name"]) == (norm, "none")
            and _select_shared_options(other) == _select_shared_options(config)
            and candidate.data.sha256 == record.data.sha256
            and candidate.description.version == VERSION
        ):
            twins.append(candidate)
    if len(twins) != 1:
        listed = ", ".join(str(twin.folder) for twin in twins) or "none that is finished"
        raise UserError(
            f"regularizer.target={norm} needs one run of norm={norm} regularizer=none in {study}/, "
            f"otherwise the same, of the same images and bnstudy {VERSION}; there is: {listed}\n"
            "Train it first, then run the same command again; or give a number from 0 to 1"
        )
    return twins[0]


def read_final_sparsity(record: Record) -> dict[str, float]:
    """Read the share of zeros (unit_sparsity) on the training split after the last epoch, by layer.

    Args:
        record: Record of a finished run.

    Raises:
        UserError: The metric was not measured.
    """
    values = record.table.values(record.last_epoch, "train", "act", "unit_sparsity")
    if not values:
        raise UserError(
            f"{record.folder}: its unit_sparsity was not measured\n"
            f"python -m bnstudy.measure {record.folder} metrics.names=[unit_sparsity]"
        )
    return values


def _select_shared_options(config: dict[str, Any]) -> dict[str, Any]:
    """Select the identity's options in which twins do not differ."""
    return {
        key: value
        for key, value in select_identity_options(redact_values(config)).items()
        if not key.startswith(TWIN_SPECIFIC_KEYS)
    }
