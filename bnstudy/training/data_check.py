"""Whether a run was trained on the data that a configuration describes now."""

import json
from typing import Any

from bnstudy.data.contents import find_sha256
from bnstudy.errors import UserError
from bnstudy.runs.description import DataFacts
from bnstudy.runs.record import Record


class DataCheck:
    """Compares data with those that runs were trained on; each data set is looked at once."""

    def __init__(self) -> None:
        self._found: dict[str, str | None] = {}

    def require_same(self, record: Record, config: dict[str, Any]) -> None:
        """Make sure that a run was trained on the data of a configuration.

        Data that are not there, and those of a run that never read any, contradict nothing.

        Args:
            record: Record of the run.
            config: The resolved configuration.

        Raises:
            UserError: They are other data, or cannot be read.
        """
        if record.description.data is None:
            return
        key = json.dumps(config["data"], sort_keys=True)
        if key not in self._found:
            self._found[key] = find_sha256(config["data"])
        if (sha256 := self._found[key]) is not None:
            require_sha256(record, config, sha256)


def note_data(record: Record, config: dict[str, Any], facts: dict[str, Any]) -> None:
    """Note what the data of a run are; make sure that they are those it was trained on.

    Args:
        record: Record of the run.
        config: The resolved configuration that the data are of.
        facts: Facts about the data, of `ImageDataModule.facts`.

    Raises:
        UserError: The run was trained on others.
    """
    if record.description.data is None:
        record.description.data = DataFacts.model_validate(facts)
    require_sha256(record, config, facts["sha256"])


def require_sha256(record: Record, config: dict[str, Any], sha256: str) -> None:
    """Make sure that a run was trained on data of some SHA-256.

    Args:
        record: Record of the run; one that has no data contradicts nothing.
        config: The resolved configuration that the data are of.
        sha256: Of the data.

    Raises:
        UserError: It was trained on others.
    """
    trained_on = record.description.data.sha256 if record.description.data else sha256
    if sha256 != trained_on:
        now, then = (one["data"].get("root") for one in (config, record.description.config))
        key = "data" if now is None else f"data.root={now}"
        source = "" if then == now else f", which were in data.root={then}"
        raise UserError(
            f"{key}: not the images that {record.folder} was trained on{source} "
            f"(SHA-256 {sha256[:8]}, not {trained_on[:8]})\n"
            "Put those images back, choose another study=NAME, or train the cell on these with "
            "sweep.redo=all -m"
        )
