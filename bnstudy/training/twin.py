"""The run that a run is paired with: the same but for its normalization."""

from typing import Any

from bnstudy.config.identity import essence
from bnstudy.errors import UserError
from bnstudy.runs.paths import cells_of
from bnstudy.runs.record import Record
from bnstudy.runs.version import VERSION

# What may be each norm's own.
OF_THE_NORM = ("norm.", "regularizer.", "optim.lr", "model.residual_init")


def with_target_sparsity(record: Record, config: dict[str, Any]) -> dict[str, Any]:
    """Put numbers in the place of a regularizer's target that is another run's sparsity.

    They are noted in the record, and taken from there when the run goes on or is measured.

    Args:
        record: Record of the run, which has its data.
        config: The resolved configuration of that run.

    Returns:
        The configuration, with the target of each layer.

    Raises:
        UserError: There is no such other run.
    """
    norm = config["regularizer"].get("target")
    if not isinstance(norm, str):
        return config
    described = record.description
    if described.target_sparsity is None:
        described.target_sparsity = final_sparsity(find_twin(record, config, norm))
    return config | {"regularizer": config["regularizer"] | {"target": described.target_sparsity}}


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
    for folder in cells_of(study):
        candidate = Record.read(folder)
        other = candidate.description.config
        if (
            candidate.has_ended
            and (other["norm"]["name"], other["regularizer"]["name"]) == (norm, "none")
            and _shared(other) == _shared(config)
            and candidate.data.sha256 == record.data.sha256
            and candidate.description.version == VERSION
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
    """Read the share of zeros (unit_sparsity) on the training split after the last epoch, by layer.

    Args:
        record: Record of a run that has ended.

    Raises:
        UserError: It was not measured.
    """
    values = record.table.values(record.last_epoch, "train", "act", "unit_sparsity")
    if not values:
        raise UserError(
            f"{record.folder}: its unit_sparsity was not measured\n"
            f"python -m bnstudy.measure {record.folder} metrics.names=[unit_sparsity]"
        )
    return values


def _shared(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in essence(config).items() if not key.startswith(OF_THE_NORM)}
