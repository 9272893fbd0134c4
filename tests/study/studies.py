"""Studies on disk with known numbers."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import DictConfig

from bnstudy.config.composition import resolve
from bnstudy.runs.description import RunDescription
from bnstudy.runs.long_table import Row
from bnstudy.runs.record import Record
from bnstudy.terms import SPLITS

DIRECTIONS = {"silhouette": "higher", "unit_sparsity": None}


class Studies:
    """Writes runs into a study's folder.

    Args:
        compose: The fixture `composed`.
        folder: Folder of the study.
    """

    # Shared by all studies of the process: composing takes longer than writing a run.
    composed: ClassVar[dict[tuple[str, ...], dict[str, Any]]] = {}

    def __init__(self, compose: Callable[..., DictConfig], folder: Path) -> None:
        self.compose = compose
        self.folder = folder

    def add(
        self,
        norm: str,
        seed: int = 0,
        *overrides: str,
        layers: Mapping[str, Sequence[float]] | Mapping[tuple[str, int], Sequence[float]] = {},
        features: Mapping[str, float] = {},
        curves: Mapping[tuple[str, str], Sequence[float]] = {},
        accuracy: float = 0.5,
        train_accuracy: float = 1.0,
        loss: float | None = None,
        status: str = "completed",
        data: str = "a" * 64,
        version: str = "0.1.0",
        **changes: Any,
    ) -> Record:
        """Write a run.

        Args:
            norm: Name of the norm.
            seed: Seed.
            overrides: Other overrides of the configuration.
            layers: Values of the activations by layer, on the training split. A key is a metric,
                for values after 5 epochs, or a metric and an epoch.
            features: Value of what the classifier reads, by metric.
            curves: Values of the whole model after 0, 1, ... epochs, by metric and split.
            accuracy: Accuracy on the test split.
            train_accuracy: Accuracy on the training split.
            loss: Loss on both splits.
            status: Status; a run that has not ended has no table.
            data: SHA-256 of the data.
            version: Version of bnstudy.
            changes: Changes of run.json.
        """
        words = (f"norm={norm}", *overrides)
        if words not in self.composed:
            self.composed[words] = resolve(self.compose(*words))
        config = copy.deepcopy(self.composed[words]) | {"seed": seed}
        name = "-".join([*words, f"seed={seed}"])
        described = RunDescription.new(config, name, {"model": "cnn", "data": "digits"}, [])
        facts = {
            "status": status,
            "metrics": DIRECTIONS,
            "data": {"sha256": data, "probe": {"train": 10, "test": 10}},
            "environment": {"packages": {"bnstudy": version}},
            "attempts": [{"status": status, "started": "2026-01-01"}],
        } | changes
        described = RunDescription.model_validate(described.model_dump(exclude_unset=True) | facts)
        record = Record(self.folder / name, described)
        rows = [
            Row(5, 50, "test", -1, "model", None, "accuracy", accuracy, None),
            Row(5, 50, "train", -1, "model", None, "accuracy", train_accuracy, None),
        ]
        rows += [
            Row(epoch, 10 * epoch, split, -1, "model", None, metric, value, None)
            for (metric, split), values in curves.items()
            for epoch, value in enumerate(values)
        ]
        if loss is not None:
            rows += [Row(5, 50, split, -1, "model", None, "loss", loss, None) for split in SPLITS]
        for key, values in layers.items():
            metric, epoch = (key, 5) if isinstance(key, str) else key
            rows += [
                Row(
                    epoch,
                    10 * epoch,
                    "train",
                    number,
                    f"block{number + 1:02d}",
                    "act",
                    metric,
                    value,
                    None,
                )
                for number, value in enumerate(values)
            ]
        rows += [
            Row(5, 50, "train", 9, "classifier", "features", metric, value, None)
            for metric, value in features.items()
        ]
        if status in ("completed", "diverged"):
            record.table.write_part(5, rows)
            record.join_parts()
            record.remove_intermediate_files()
        record.save()
        return record
