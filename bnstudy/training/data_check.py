"""Check that a configuration's data are those that a run was trained on."""

import json
from typing import Any

from bnstudy.data.contents import FILE_DATA_SETS, find_sha256, read_sha256, select_source_options
from bnstudy.errors import UserError
from bnstudy.runs.parts import DataFacts
from bnstudy.runs.record import Record


class DataCheck:
    """Comparison of data with those that runs were trained on; each data set is read once."""

    def __init__(self) -> None:
        self._sha256: dict[str, str | None] = {}  # by source of the data; None if not known

    def require_same(self, record: Record, config: dict[str, Any]) -> None:
        """Verify that a run was trained on the data of a configuration.

        The check passes if the run has not loaded data yet, or if the SHA-256 of the data is not
        known: see `bnstudy.data.contents.find_sha256`.

        Args:
            record: Record of the run.
            config: Resolved configuration.

        Raises:
            UserError: The data differ, or cannot be read.
        """
        if record.description.data is None:
            return
        if (sha256 := self._find_sha256(config["data"])) is not None:
            _require_sha256(record, config, sha256)

    def require_data(self, config: dict[str, Any]) -> None:
        """Verify that the data of a configuration exist; download or make them if possible.

        Data modules of the user's own are not verified.

        Args:
            config: Resolved configuration.

        Raises:
            UserError: The data do not exist, or cannot be read.
        """
        data = config["data"]
        if data["_target_"] in FILE_DATA_SETS and self._find_sha256(data) is None:
            self._sha256[_source_key(data)] = read_sha256(data)

    def _find_sha256(self, data: dict[str, Any]) -> str | None:
        key = _source_key(data)
        if key not in self._sha256:
            self._sha256[key] = find_sha256(data)
        return self._sha256[key]


def _source_key(data: dict[str, Any]) -> str:
    return json.dumps(select_source_options(data), sort_keys=True)


def note_data(record: Record, config: dict[str, Any], facts: dict[str, Any]) -> None:
    """Record the facts about a run's data, and verify that it was trained on these data.

    Args:
        record: Record of the run.
        config: Resolved configuration from which the data were loaded.
        facts: Facts about the data, as returned by `DataModule.facts`.

    Raises:
        UserError: The run was trained on other data.
    """
    if record.description.data is None:
        record.description.data = DataFacts.model_validate(facts)
    _require_sha256(record, config, facts["sha256"])


def _require_sha256(record: Record, config: dict[str, Any], sha256: str) -> None:
    """Verify that a run, which has loaded data, was trained on data with a given SHA-256.

    Raises:
        UserError: The run was trained on other data.
    """
    trained_on = record.data.sha256
    if sha256 != trained_on:
        now, then = (
            settings["data"].get("root") for settings in (config, record.description.config)
        )
        key = "data" if now is None else f"data.root={now}"
        source = "" if then == now else f", which were in data.root={then}"
        raise UserError(
            f"{key}: not the images that {record.folder} was trained on{source} "
            f"(SHA-256 {sha256[:8]}, not {trained_on[:8]})\n"
            "Put those images back, choose another study=NAME, or train the cell on these with "
            "sweep.redo=all -m"
        )
